"""`peerd doctor` on devices of which each has another trouble with its network or its disk. One story: a test
relies on the ones before it.

Nothing trains here. A stand-in for torch keeps every learner waiting in its import, and passes the doctor's
trial.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from lan.bridge import HOLE, WIRE, Switch, Wired

pytestmark = [pytest.mark.lan]

SMALL = ("--task", "quadratic", "--option", "dim=100")
MDNS = ("match", "ip", "protocol", "17", "0xff", "match", "ip", "dport", "5353", "0xffff")
TORCH = """
import signal, sys
if sys.argv[0] != "-c":
    signal.pause()
__version__ = "2.99"
class ones:
    grad = 1
    def __init__(self, *_, **__): pass
    def __matmul__(self, other): return self
    def sum(self): return self
    def item(self): return 2016
    exp = mean = backward = sum
arange = ones
"""


@pytest.fixture(scope="module", autouse=True)
def _no_torch(lan: Switch) -> Any:
    stand_in = lan.folder / "stand-in"
    stand_in.mkdir()
    (stand_in / "torch.py").write_text(TORCH)
    before = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{stand_in}:{before}" if before else str(stand_in))
        yield


def doctor(device: Wired, code: int) -> dict[str, list[dict[str, Any]]]:
    """What it finds, by check; its exit code must be this."""
    done = device.peerd("doctor", "--json")
    assert done.code == code, done.said
    checks: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.out)["checks"]:
        checks.setdefault(finding["check"], []).append(finding)
    return checks


def worst(checks: dict[str, list[dict[str, Any]]], check: str) -> dict[str, Any]:
    order = ("ok", "warning", "problem")
    return max(checks[check], key=lambda finding: order.index(finding["verdict"]))


def members(device: Wired) -> list[dict[str, Any]]:
    """Those that are alive, as this device's daemon knows them."""
    [session] = device.ask("network")["network"]["sessions"]
    found: list[dict[str, Any]] = session["members"]
    return found


def joined(device: Wired, lan: Switch) -> None:
    """In the session, which says nobody was linked in time: learners never come so far here."""
    key = lan.devices["a"].ok("key", "home").out.split()[-1]
    said = device.peerd("join", "home", "--key", key, "--task", "quadratic", "--timeout", "0.5")
    assert said.code == 75, said.said


def test_without_a_daemon_it_says_so_and_looks_by_itself(lan: Switch) -> None:
    a = lan.add("a")
    checks = doctor(a, 1)
    assert worst(checks, "daemon")["verdict"] == "problem"
    assert str(a.socket) in worst(checks, "daemon")["seen"]
    assert list(worst(checks, "interfaces")["data"]["used"]) == [WIRE]
    heard = worst(checks, "multicast")
    assert (heard["verdict"], heard["data"]["interfaces"][WIRE]["own_heard"]) == ("warning", True)
    assert "--peer HOST:PORT" in heard["advice"]
    assert worst(checks, "torch")["seen"] == "torch 2.99 computes"
    assert worst(checks, "disk")["verdict"] == "ok"


def test_two_that_see_each_other_are_well(lan: Switch) -> None:
    a, b = lan.devices["a"], lan.add("b")
    lan.start(a, b)
    a.ok("create", "home", *SMALL)
    joined(b, lan)
    lan.wait("both have met", lambda: all(m["calls"] for d in (a, b) for m in members(d)) and members(a))
    checks = doctor(b, 0)
    assert worst(checks, "multicast")["seen"].startswith(f"works on {WIRE}: own question and 1 other device")
    assert {
        worst(checks, name)["verdict"] for name in ("daemon", "interfaces", "peers", "key", "dialing")
    } == {"ok"}
    assert list(worst(checks, "peers")["data"]["seen"]) == [a.peer]


def test_a_firewall_is_told_at_both_ends(lan: Switch) -> None:
    a, b = lan.devices["a"], lan.devices["b"]
    b.crash()
    b.firewall()
    lan.start(b)
    lan.wait(
        "a cannot dial b, which dials it", lambda: [m for m in members(a) if m["unreached"] and m["calls"]]
    )
    b.namespace.run("ip", "link", "add", HOLE, "type", "veth", "peer", "name", "bottom0")
    b.namespace.run("tc", "qdisc", "add", "dev", WIRE, "clsact")
    drop = ("u32", *MDNS, "action", "mirred", "egress", "redirect", "dev", HOLE)
    for end in (HOLE, "bottom0"):
        b.namespace.run("ip", "link", "set", end, "up")
    b.namespace.run("tc", "filter", "add", "dev", WIRE, "ingress", "protocol", "ip", "prio", "1", *drop)
    hidden = worst(doctor(a, 0), "dialing")
    assert (hidden["verdict"], list(hidden["data"]["undialable"])) == ("warning", [b.peer])
    deaf = worst(doctor(b, 1), "multicast")
    assert f"no multicast on {WIRE}: this device's own question does not come back" in deaf["seen"]
    assert "UDP port 5353" in deaf["advice"]


def test_a_network_that_keeps_multicast_back_and_a_disk_that_turned_read_only(lan: Switch) -> None:
    c = lan.add("c")
    c.deafen()
    c.mute()
    lan.start(c)
    joined(c, lan)
    c.namespace.run("mount", "--bind", str(c.state), str(c.state))
    c.namespace.run("mount", "-o", "remount,bind,ro", str(c.state))
    checks = doctor(c, 1)
    kept_back = worst(checks, "multicast")
    assert (kept_back["verdict"], "nothing of any other was heard" in kept_back["seen"]) == ("problem", True)
    assert "AP or guest isolation" in kept_back["advice"]
    assert "'home' has met nobody" in worst(checks, "peers")["seen"]
    assert worst(checks, "disk")["verdict"] == "problem"
    assert f"the disk of {c.state} is read-only" in worst(checks, "disk")["seen"]


def test_a_copied_card_is_told_by_where_its_identity_is_announced(lan: Switch) -> None:
    a, d = lan.devices["a"], lan.add("d")
    d.state.mkdir(mode=0o700)
    shutil.copy(a.state / "device.pem", d.state / "device.pem")
    lan.start(d)
    d.ok("create", "other", *SMALL)
    twin = worst(doctor(a, 1), "identity")
    assert twin["verdict"] == "problem"
    assert f"{d.host}:" in twin["seen"]
    assert "device.pem" in twin["advice"]
