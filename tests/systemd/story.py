"""What is shown in two booted trees, one step after another; each prints what it finds, or ends the story."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from systemd.container import Device, FailedError, until

SCORE = 2.0  # systemd-analyze security is to be below
SHUT = {"UserOrDynamicUser", "CapabilityBoundingSet_CAP_SYS_ADMIN", "NoNewPrivileges"}  # by its names
UNIT = "/etc/systemd/system/peerd.service"
ROUNDS = 3  # to have trained means: so many rounds with the others
PEERD = "/usr/local/bin/peerd"
began = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)


def expect(condition: object, what: str) -> None:
    if not condition:
        raise FailedError(what)
    say(f"ok: {what}")


class Story:
    """`pi` is put to the test; `other` trains with it."""

    def __init__(self, pi: Device, other: Device, wheels: Path) -> None:
        self.pi, self.other, self.wheels = pi, other, wheels

    def tell(self) -> None:
        self.pi.run("useradd", "--create-home", "alice")
        self.pi.run("useradd", "--create-home", "bob")
        before, users = self.pi.files(), self.pi.output("cut", "-d:", "-f1", "/etc/passwd", "/etc/group")
        self.install()
        self.who_may()
        self.data()
        self.train()
        self.learner_killed()
        self.daemon_killed()
        self.blocked()
        self.silent()
        self.script()
        self.reboot()
        self.score()
        self.uninstall(before, users)
        self.install_again()

    def install(self) -> None:
        took = time.monotonic()
        said = install(self.pi, self.wheels)
        say(f"{self.pi.name}: installed in {time.monotonic() - took:.0f} s: {said.splitlines()[-1]}")
        self.other.copy_from(
            self.pi, "opt/peerd", PEERD.lstrip("/")
        )  # the same script would take as long again
        self.other.run(PEERD, "service", "install")
        self.pi.run("usermod", "-aG", "peerd", "alice")
        shown = self.state()
        expect(
            shown["active"] == "active" and shown["enabled"] == "enabled", "the unit is active and enabled"
        )
        expect(
            shown["answers"] and shown["watchdog_s"] == 60.0, "the daemon answers, and is watched every 60 s"
        )
        say(f"    {self.pi.output('systemctl', 'show', 'peerd', '--property=StatusText,User,MainPID')!r}")
        modes = self.pi.output(
            "stat", "-c", "%U:%G %a %n", "/var/lib/peerd", "/run/peerd", "/run/peerd/peerd.sock"
        )
        wanted = ("700 /var/lib/peerd", "750 /run/peerd", "660 /run/peerd/peerd.sock")
        expect(
            modes.splitlines() == [f"peerd:peerd {each}" for each in wanted],
            "state 0700, runtime folder 0750, socket 0660, all of peerd:peerd",
        )

    def who_may(self) -> None:
        refused = self.pi.run(PEERD, "status", user="bob", check=False)
        expect(
            refused.returncode == 69 and "usermod -aG peerd bob" in refused.stderr,
            "bob, who is in no group: 69",
        )
        say(f"    {refused.stderr.strip()}")
        expect(
            self.pi.run(PEERD, "create", "x", user="bob", check=False).returncode == 69,
            "and he starts no other",
        )

    def data(self) -> None:
        folder = "/home/alice/data"
        self.pi.run("sh", "-c", f"umask 077; mkdir {folder}; echo 1 > {folder}/a.txt", user="alice")
        self.pi.run("chmod", "700", "/home/alice")
        for _ in range(2):
            refused = self.pi.run(PEERD, "create", "spare", "--data", folder, user="alice", check=False)
            expect(refused.returncode == 65, "a data folder that user peerd cannot read: 65")
            say(f"    {refused.stderr.strip()}")
            remedy = refused.stderr.split("'sudo ")[1].split("'")[0]
            self.pi.run(*remedy.split())
        self.pi.run(PEERD, "create", "spare", "--data", folder, user="alice")
        self.pi.run(PEERD, "leave", "spare", "--forget", user="alice")
        expect(True, "and with the two remedies it may")

    def train(self) -> None:
        said = self.pi.output(PEERD, "create", "home", user="alice")
        key = next(word for word in said.split() if word.startswith("peerd1-"))
        self.other.run(PEERD, "join", "home", "--timeout", "300", PEERD_KEY=key)
        took = until("both train", lambda: self.trains(self.pi) and self.trains(self.other))
        session = self.session(self.pi)
        say(f"ok: alice's create, a join on {self.other.name}: both train after {took:.0f} s more")
        say(f"    round {session['round']}, loss {session['loss']:.3g}, links {len(session['links'])}")
        scores = [
            self.pi.output("cat", f"/proc/{pid}/oom_score_adj") for pid in (self.daemon(), self.learner())
        ]
        expect(
            scores == ["100", "800"], "where memory ends the learner goes first: oom_score_adj 100 and 800"
        )

    def learner_killed(self) -> None:
        pid = self.learner()
        kill(self.pi, "9", pid)
        took = until("a new learner", lambda: self.learner() not in (None, pid) and self.trains(self.pi))
        expect(
            self.state()["restarts"] == 0, f"kill -9 of the learner: another one trains after {took:.0f} s"
        )

    def daemon_killed(self) -> None:
        pid = self.daemon()
        kill(self.pi, "9", pid)
        took = until("a new daemon", lambda: self.daemon() not in (0, pid) and self.trains(self.pi))
        expect(
            self.state()["restarts"] == 1, f"kill -9 of the daemon: it is back and trains after {took:.0f} s"
        )

    def blocked(self) -> None:
        daemon = self.daemon()
        kill(self.pi, "STOP", daemon)
        took = until("the watchdog", lambda: self.daemon() not in (0, daemon) and self.trains(self.pi))
        said = self.log(self.pi)
        expect(
            "Watchdog timeout" in said,
            f"a blocked loop: the watchdog fires, it trains again after {took:.0f} s",
        )
        for line in said.splitlines():
            if (
                "Watchdog timeout" in line
                or "Failed with result 'watchdog'" in line
                or "Fatal Python" in line
            ):
                say(f"    {line.strip()}")

    def silent(self) -> None:
        learner = self.learner()
        kill(self.pi, "STOP", learner)
        took = until(
            "another learner", lambda: self.learner() not in (None, learner) and self.trains(self.pi)
        )
        expect(
            self.state()["restarts"] == 2, f"a learner that is stopped: another one trains after {took:.0f} s"
        )
        said = self.log(self.pi)
        say(f"    {next(line.strip() for line in said.splitlines() if 'said nothing' in line)}")

    def script(self) -> None:
        """Whoever is in the group may train with a script, as the user it is."""
        words = (
            "/opt/peerd/venv/bin/python",
            "-P",
            str(self.wheels / "plain_loop.py"),
            "home",
            "--steps",
            "200",
        )
        said = self.pi.output(*words, user="alice")
        expect("training with the others" in said, f"a script of alice's takes part: {said.splitlines()[-1]}")
        self.pi.run(PEERD, "join", "home", user="alice")
        expect(self.trains_soon(self.pi), "and after it the service's own learner trains again")

    def reboot(self) -> None:
        until("both train", lambda: self.trains(self.pi) and self.trains(self.other))
        key = self.pi.output(PEERD, "key", "home", user="alice")
        before = self.session(self.pi)["round"]
        took = time.monotonic()
        self.pi.reboot()
        until("it trains again", lambda: self.trains(self.pi))
        session = self.session(self.pi)
        expect(
            self.pi.output(PEERD, "key", "home", user="alice") == key, "after a reboot the session is there"
        )
        took = time.monotonic() - took
        expect(
            session["round"] > before,
            f"and trains on {took:.0f} s after 'reboot': round {session['round']}, {before} before",
        )

    def score(self) -> None:
        found = self.pi.run("systemd-analyze", "verify", "--man=no", UNIT, check=False)
        about_it = [line for line in (found.stdout + found.stderr).splitlines() if "peerd" in line]
        whole = found.returncode == 0 and not about_it
        expect(whole, f"systemd finds nothing to say of the unit{''.join(f', but {s}' for s in about_it)}")
        rows = json.loads(
            self.pi.output("systemd-analyze", "security", "peerd.service", "--no-pager", "--json=short")
        )
        exposure = {row["json_field"]: row["exposure"] for row in rows}
        opened = sorted(name for name in SHUT if exposure[name] is not None)
        expect(not opened, f"what must be shut is shut{''.join(f', but {name}' for name in opened)}")
        said = self.pi.output("systemd-analyze", "security", "peerd.service", "--no-pager")
        last = said.splitlines()[-1]
        say(last.strip())
        number = float(last.partition("peerd.service: ")[2].split()[0])
        expect(number < SCORE, f"systemd-analyze security is below {SCORE}")

    def uninstall(self, before: set[str], users: str) -> None:
        said = uninstall(self.pi, self.wheels)
        say(f"    {said.splitlines()[-1]}")
        left = sorted(path for path in self.pi.files() - before if not path.startswith("/home/"))
        kept = [path for path in left if path.startswith("/var/lib/peerd")]
        others = [path for path in left if path not in (*kept, *backups(left))]
        expect(
            not others, f"nothing is left but the state folder{''.join(f', but {path}' for path in others)}"
        )
        owner = self.pi.output("stat", "-c", "%U:%G %a", "/var/lib/peerd")
        say(f"    {len(kept)} paths in /var/lib/peerd, {owner}")
        after = self.pi.output("cut", "-d:", "-f1", "/etc/passwd", "/etc/group")
        expect(after == users, "user and group are gone")
        expect(processes(self.pi, "/opt/peer[d]") == [], "no process of it is left")
        shown = self.pi.run("systemctl", "cat", "peerd.service", check=False)
        expect(shown.returncode != 0, "systemd knows no such unit")

    def install_again(self) -> None:
        install(self.pi, self.wheels)
        took = until("it trains again", lambda: self.trains(self.pi))
        expect(True, f"installed again it takes its session up from there, and trains after {took:.0f} s")

    # --- questions -----------------------------------------------------------------------------------

    def state(self, device: Device | None = None) -> dict[str, Any]:
        said = (device or self.pi).run(PEERD, "service", "status", "--json", check=False)
        found: dict[str, Any] = json.loads(said.stdout or "{}")
        return found

    def log(self, device: Device) -> str:
        return device.output("journalctl", "-u", "peerd", "-o", "cat", "--no-pager")

    def daemon(self, device: Device | None = None) -> int:
        shown = (device or self.pi).output("systemctl", "show", "peerd", "--property=MainPID", "--value")
        return int(shown or 0)

    def learner(self, device: Device | None = None) -> int | None:
        """The pid, inside, of the only learner; None without one."""
        found = processes(device or self.pi, "peer[.]learner")
        return found[0] if len(found) == 1 else None

    def session(self, device: Device) -> dict[str, Any]:
        """The status of 'home'; nothing while the daemon does not answer."""
        done = device.run(PEERD, "status", "--json", check=False)
        sessions = json.loads(done.stdout)["sessions"] if done.returncode == 0 else []
        return next((each for each in sessions if each["name"] == "home"), {})

    def trains(self, device: Device) -> bool:
        found = self.session(device)
        return (
            found.get("state") == "training" and (found["round"] or 0) >= ROUNDS and found["loss"] is not None
        )

    def trains_soon(self, device: Device) -> bool:
        until(f"{device.name} trains", lambda: self.trains(device))
        return True


def kill(device: Device, signal: str, pid: int | None) -> None:
    device.run("sh", "-c", f"kill -{signal} {pid}")


def processes(device: Device, pattern: str) -> list[int]:
    """Pids of those whose command line has it in them. pattern: not to be found in itself."""
    found = device.output("sh", "-c", f"grep -la '{pattern}' /proc/[0-9]*/cmdline", check=False).split()
    return [int(path.split("/")[2]) for path in found]


def backups(left: list[str]) -> list[str]:
    """What the tools that make users leave behind, whatever they are used for."""
    known = [f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")]
    return [path for path in left if path in (*known, "/etc/.pwd.lock")]


def install(device: Device, wheels: Path) -> str:
    """By the script, from the wheel that was just built, without a network."""
    wheel = next(wheels.glob("peerd-*.whl"))
    words = ("--wheel", str(wheel), "--torch", "torch", "--no-index", "--find-links", str(wheels))
    return device.output("bash", str(wheels / "install.sh"), *words)


def uninstall(device: Device, wheels: Path) -> str:
    return device.output("bash", str(wheels / "install.sh"), "--uninstall")
