"""One exchange of a whole model between daemons on this machine, beside a raw TCP copy of the same bytes, and
hivemind where it can be had. `make bench`; alone: `PYTHONPATH=tests:bench python bench/exchange.py`, as with
`--params 25000000 --peers 2`.

Real daemons in a namespace that has a loopback and nothing else, each with an attached script whose local
step costs nothing; d-psgd on the complete graph, uncompressed, so that every model is the exact mean after
one round, which is checked; between four also all-reduce, which comes to the same mean in parts, as hivemind
does. A round is timed from the moment all scripts are ready until `swarm.step()` is back, which includes
reading the module, mixing, and writing it. Bytes are those of the interface, so TLS, HTTP/2, TCP,
acknowledgements and probes count. Memory is the peak of what a device's daemon and script have of their own,
and of the payloads between them, over what both had when there was a model with its optimizer and no round of
it yet: not pages of libraries, which others on this machine use too. Beside it the peaks of script, daemon,
and payloads. The raw copy: as many processes and bytes, blocking sockets, no TLS, into memory that is there
already. hivemind: its DecentralizedAverager as its own documentation has it, if the interpreter
$HIVEMIND_PYTHON can import it. CPU seconds and bytes of both are those of all their processes and of the
interface, as ours are. hivemind's memory is the peak of all its processes in one more round, shared memory
too, over what those that it was imported in had with a model, by peer.

Goals stand beside the figures: bytes, seconds (for 1M parameters a number, else half of hivemind's), memory,
and the bound that memory of a stream is to keep: one message out, one from each neighbor, and 64 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # hivemind's interpreter runs this file too, and has neither this nor rich
    from lan.device import Device, Network  # tests/, see the Makefile

TASK = """
import torch
from torch import nn


def model():
    return nn.ParameterList([torch.zeros({params})])


def batches(shard, device):
    while True:
        yield None


def loss(model, batch):
    return model[0][0] * 0.0
"""
SESSION = (
    *("--topology", "complete", "--compression", "none", "--local-steps", "1"),
    *("--pace", "lockstep", "--lr", "0.1", "--option", "schedule=constant", "--interface", "lo"),
    *("--momentum", "0"),  # as in the script, which else would be given the built-in learner's buffers
)
ALGORITHMS = {2: ("d-psgd",), 4: ("d-psgd", "all-reduce")}  # by peers; between two parts save nothing
WARM = 2  # rounds before the clock counts: connections, buffers, patience
TOGETHER = 6  # rounds from when all have heard all to the first of them: those without meeting points
WEIGHED = 2  # rounds in which memory is looked at, and not the clock
CHUNK = 1 << 20
HIVEMIND_WRONG = 1e-2  # of the mean over coordinates, which is known to 1 / sqrt(params)
PAYLOAD = "/memfd:peerd-payload"  # as peer/shared_buffer.py names them
BYTES_GOAL = 1.01  # at most, of the bytes of the models themselves
SECONDS_GOAL = {1_000_000: 0.05}  # by parameters; of others half of what hivemind takes


# --- meeting points between processes -----------------------------------------------------------------


class Meeting:
    """Files in a folder: `here` waits until all `n` have said the same word."""

    def __init__(self, folder: Path, me: int, n: int) -> None:
        self.folder, self.me, self.n = folder, me, n

    def here(self, word: str) -> None:
        (self.folder / f"{word}.{self.me}").touch()
        while not all((self.folder / f"{word}.{i}").exists() for i in range(self.n)):
            time.sleep(0.001)

    def agree(self, round_: int | None) -> int | None:
        """The largest of the rounds that all have named, None until they have."""
        mine = self.folder / f"round.{self.me}"
        if round_ is not None and not mine.exists():
            (self.folder / f"naming.{self.me}").write_text(str(round_))
            (self.folder / f"naming.{self.me}").rename(mine)
        named = [self.folder / f"round.{i}" for i in range(self.n)]
        return max(int(file.read_text()) for file in named) if all(f.exists() for f in named) else None


def interface_bytes() -> int:
    """Sent on this namespace's loopback."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()[8])


def cpu_of(pids: Iterable[int]) -> float:
    """User + system seconds so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> tuple[int, dict[int, int]]:
    """Bytes of its own, and those of the payloads it holds, mapped or not, by inode."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) * 1024
    payloads = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if PAYLOAD in line:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            payloads[int(line.split()[4])] = last - first
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if str(link.readlink()).startswith(PAYLOAD):
                found = link.stat()
                payloads[found.st_ino] = found.st_blocks * 512
    return own, payloads


class Peak(threading.Thread):
    """The most that each of what `measure` finds has been, until `stop`."""

    def __init__(self, measure: Callable[[], list[int]]) -> None:
        super().__init__(daemon=True)
        self.measure, self.over, self.most = measure, threading.Event(), list[int]()

    def run(self) -> None:
        while not self.over.wait(0.005):
            now = self.measure()
            self.most = [max(pair) for pair in zip(self.most or now, now, strict=True)]

    def stop(self) -> list[int]:
        self.over.set()
        self.join()
        return self.most


def memory_of_device(script: int, daemon: int, before: tuple[int, int]) -> list[int]:
    """What both have together over what they had `before`; of that their own each, and both's payloads."""
    (ones, its), (others, payloads) = memory_of(script), memory_of(daemon)
    own = [ones - before[0], others - before[1], sum((its | payloads).values())]
    return [sum(own), *own]


def processes_here() -> list[int]:
    """Those of this network namespace."""
    here, found = os.readlink("/proc/self/ns/net"), []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # ended meanwhile
            if folder.name.isdecimal() and os.readlink(folder / "ns" / "net") == here:
                found.append(int(folder.name))
    return found


def memory_here() -> int:
    """Bytes of all processes of this namespace, a page that several have counted once."""
    total = 0
    for pid in processes_here():
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(
                int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
            )
    return 1024 * total


class Spent:
    """CPU seconds of all processes of this namespace and bytes of its interface, by round."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.bytes: list[int] = []
        self._since = (0.0, 0)

    def begin(self) -> None:
        self._since = cpu_of(processes_here()), interface_bytes()

    def end(self) -> None:
        self.cpu.append(cpu_of(processes_here()) - self._since[0])
        self.bytes.append(interface_bytes() - self._since[1])


# --- ours -----------------------------------------------------------------------------------------------


def work(asked: argparse.Namespace) -> None:
    """One attached script. Prints its figures as JSON."""
    import torch
    from torch import nn

    import peer

    torch.set_num_threads(1)
    meeting = Meeting(asked.folder, asked.work, asked.peers)
    pids = os.getpid(), asked.daemon
    model = nn.ParameterList([torch.empty(asked.params).fill_(0.0)])  # memory is there when it is written
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = memory_of(pids[0])[0], memory_of(pids[1])[0]

    def own(i: int, round_: int) -> torch.Tensor:
        return torch.randn(asked.params, generator=torch.Generator().manual_seed(1000 * round_ + i))

    seconds, wrong, peak, cpu, sent = [], 0.0, [0] * 4, [], []
    with peer.attach("bench", model, optimizer, socket=str(asked.socket), pace="lockstep") as swarm:
        meet(swarm, model[0].data, meeting)
        done = 0
        while done < WARM + asked.rounds + WEIGHED:
            round_ = done
            weighed = round_ >= WARM + asked.rounds  # looking at memory takes time
            model[0].data.copy_(own(asked.work, round_))
            meeting.here(f"ready-{round_}")
            watch = Peak(lambda: memory_of_device(*pids, before))
            if weighed:
                watch.start()
            bytes_before, cpu_before, began = interface_bytes(), cpu_of(pids), time.perf_counter()
            mixed = swarm.step(0.0)
            took = time.perf_counter() - began
            cpu_used = cpu_of(pids) - cpu_before
            if weighed:
                peak = [max(pair) for pair in zip(peak, watch.stop(), strict=True)]
            meeting.here(f"done-{round_}")
            if not mixed:
                raise SystemExit("a step did not mix")
            done += 1
            if WARM <= round_ < WARM + asked.rounds:
                seconds.append(took)
                cpu.append(cpu_used)
                sent.append(interface_bytes() - bytes_before)
            mean = sum(own(i, round_) for i in range(asked.peers)) / asked.peers
            wrong = max(wrong, float((model[0].data - mean).abs().max()))
            del mean
        meeting.here("end")
    figures = {"seconds": seconds, "cpu": cpu, "bytes": sent, "memory": peak, "wrong": wrong}
    (asked.folder / f"result.{asked.work}").write_text(json.dumps(figures))


def meet(swarm: Any, values: Any, meeting: Meeting) -> None:
    """Step until all are in the same round and hear all others: with meeting points before that, one would
    wait for what another cannot send yet."""
    last = None
    while last is None or swarm.round < last:
        values.fill_(meeting.me)
        everybody = swarm.step(0.0) and abs(float(values[0]) - (meeting.n - 1) / 2) < 1e-6
        named = meeting.agree(swarm.round if everybody else None)
        last = None if named is None else named + TOGETHER


def create(device: Device, task: Path, algorithm: str, *more: str) -> None:
    """A session in which whole models are exchanged after each local step."""
    device.ok("create", "bench", "--task", str(task), "--algorithm", algorithm, *SESSION, *more)


def ours(params: int, peers: int, rounds: int, algorithm: str = "d-psgd") -> dict[str, Any]:
    from lan.device import Network

    network = Network()
    try:
        task = network.folder / "flat.py"
        task.write_text(TASK.format(params=params))
        devices = [network.add(f"d{i}") for i in range(peers)]
        network.start(*devices)
        create(devices[0], task, algorithm)
        key = devices[0].ok("key", "bench").out.split()[-1]
        for device in devices[1:]:
            device.ok("join", "bench", "--key", key, "--task", str(task), "--interface", "lo")
        network.wait("all are members", lambda: all(_members(d) == peers for d in devices))
        folder = network.folder / "meeting"
        folder.mkdir()
        scripts = [_script(network, d, i, folder, params, peers, rounds) for i, d in enumerate(devices)]
        for script in scripts:
            if script.wait() != 0:
                raise SystemExit("a script failed; see above")
        results = [json.loads((folder / f"result.{i}").read_text()) for i in range(peers)]
        for device in devices:
            device.stop()
    finally:
        network.close()
    per_round = zip(*(r["seconds"] for r in results), strict=True)
    return {
        "seconds": [max(times) for times in per_round],
        "cpu": sum(statistics.median(r["cpu"]) for r in results),
        "bytes": statistics.median(results[0]["bytes"]),
        "memory": [max(most) for most in zip(*(r["memory"] for r in results), strict=True)],
        "wrong": max(r["wrong"] for r in results),
    }


def _members(device: Device) -> int:
    return int(device.session("bench").get("members") or 0)


def _script(
    network: Network, device: Device, i: int, folder: Path, params: int, peers: int, rounds: int
) -> subprocess.Popen[bytes]:
    assert device.daemon is not None
    words = ["--work", str(i), "--folder", str(folder), "--socket", str(device.socket)]
    words += ["--daemon", str(device.status()["pid"]), "--params", str(params)]
    words += ["--peers", str(peers), "--rounds", str(rounds)]
    command = network.namespace.command([sys.executable, "-P", str(Path(__file__)), *words])
    environment = device.environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, cwd=network.folder)


# --- a raw copy -----------------------------------------------------------------------------------------


def copy(asked: argparse.Namespace) -> None:
    """One process of the raw copy: sends its bytes to every other one while it takes in theirs."""
    me, n, length = asked.copy, asked.peers, 4 * asked.params
    meeting = Meeting(asked.folder, me, n)
    listener = socket.create_server(("127.0.0.1", 0))
    (asked.folder / f"port.{me}.part").write_text(str(listener.getsockname()[1]))
    (asked.folder / f"port.{me}.part").rename(asked.folder / f"port.{me}")
    meeting.here("listening")
    others = [i for i in range(n) if i != me]
    while not all((asked.folder / f"port.{i}").exists() for i in others):
        time.sleep(0.001)
    out = [
        socket.create_connection(("127.0.0.1", int((asked.folder / f"port.{i}").read_text()))) for i in others
    ]
    into = [listener.accept()[0] for _ in others]
    content, places = bytearray(length), [bytearray(length) for _ in others]

    def receive(source: socket.socket, place: bytearray) -> None:
        view, at = memoryview(place), 0
        while at < length:
            at += source.recv_into(view[at : at + CHUNK])

    seconds, spent = [], Spent()
    for round_ in range(WARM + asked.rounds):
        spent.begin()
        meeting.here(f"ready-{round_}")
        began = time.perf_counter()
        threads = [threading.Thread(target=receive, args=pair) for pair in zip(into, places, strict=True)]
        threads += [threading.Thread(target=target.sendall, args=(content,)) for target in out]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds.append(time.perf_counter() - began)
        meeting.here(f"done-{round_}")
        spent.end()
        meeting.here(f"counted-{round_}")
    figures = {"seconds": seconds[WARM:], "cpu": spent.cpu[WARM:], "bytes": spent.bytes[WARM:]}
    (asked.folder / f"result.{me}").write_text(json.dumps(figures))


def raw(params: int, peers: int, rounds: int) -> dict[str, Any]:
    from lan.device import Network

    network = Network()
    try:
        folder = network.folder / "meeting"
        folder.mkdir()
        words = ["--folder", str(folder), "--params", str(params), "--peers", str(peers)]
        script = [sys.executable, "-P", str(Path(__file__)), *words, "--rounds", str(rounds)]
        processes = [
            subprocess.Popen(network.namespace.command([*script, "--copy", str(i)])) for i in range(peers)
        ]
        for process in processes:
            if process.wait() != 0:
                raise SystemExit("the raw copy failed; see above")
        results = [json.loads((folder / f"result.{i}").read_text()) for i in range(peers)]
    finally:
        network.close()
    return combined(results)


def combined(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Each round takes as long as the slowest; what all spend is what the first one has counted."""
    per_round = zip(*(r["seconds"] for r in results), strict=True)
    return {
        "seconds": statistics.median(max(times) for times in per_round),
        **{what: statistics.median(results[0][what]) for what in ("cpu", "bytes")},
    }


# --- hivemind -------------------------------------------------------------------------------------------


def averager_of(asked: argparse.Namespace, model: Any) -> tuple[Any, Any]:
    """Theirs, of this model, and the DHT that it finds the others by."""
    import hivemind as theirs
    from hivemind.averaging import DecentralizedAverager

    known = asked.folder / "addresses"
    if asked.hivemind:
        while not known.exists():
            time.sleep(0.01)
    dht = theirs.DHT(
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        initial_peers=json.loads(known.read_text()) if asked.hivemind else [],
        start=True,
        use_relay=False,
        use_auto_relay=False,
        auto_nat=False,
        nat_port_map=False,
    )
    if asked.hivemind == 0:
        (asked.folder / "addresses.part").write_text(json.dumps([str(a) for a in dht.get_visible_maddrs()]))
        (asked.folder / "addresses.part").rename(known)
    averager = DecentralizedAverager(
        [model],
        dht,
        start=True,
        prefix="bench",
        target_group_size=asked.peers,
        min_group_size=asked.peers,
        allow_state_sharing=False,
        min_matchmaking_time=0.5,  # 5 s as it comes
        request_timeout=0.3,
    )
    return averager, dht


def hivemind(asked: argparse.Namespace) -> None:
    """One averager of theirs; run by their interpreter."""
    import hivemind as theirs
    import torch

    torch.set_num_threads(1)
    meeting = Meeting(asked.folder, asked.hivemind, asked.peers)
    model = torch.empty(asked.params).fill_(0.0)
    meeting.here("model")
    before = memory_here()
    meeting.here("weighed")
    averager, dht = averager_of(asked, model)
    seconds, wrong, spent, peak = [], [], Spent(), Peak(lambda: [memory_here() - before])
    for round_ in range(2 + asked.rounds):
        weighed = round_ == 1 + asked.rounds and not asked.hivemind  # by the first one; looking takes time
        with averager.get_tensors() as tensors:
            tensors[0].normal_().add_(float(asked.hivemind))
        if weighed:
            peak.start()
        spent.begin()
        meeting.here(f"ready-{round_}")
        began = time.perf_counter()
        group = averager.step(timeout=90)
        seconds.append(time.perf_counter() - began)
        meeting.here(f"done-{round_}")
        spent.end()
        if weighed:
            peak.stop()
        meeting.here(f"counted-{round_}")
        with averager.get_tensors() as tensors:
            found = float(tensors[0].double().mean())
        wrong.append(abs(found - (asked.peers - 1) / 2) if group is not None else float("inf"))
    (asked.folder / f"result.{asked.hivemind}").write_text(
        json.dumps(
            {
                "seconds": seconds[1:-1],
                "cpu": spent.cpu[1:-1],
                "bytes": spent.bytes[1:-1],
                "memory": max(peak.most, default=0) / asked.peers,
                "wrong": wrong[1:-1],
                "version": theirs.__version__,
            }
        )
    )
    meeting.here("end")
    averager.shutdown()
    dht.shutdown()


def others(params: int, peers: int, rounds: int) -> dict[str, Any]:
    """hivemind's figures, none where it cannot be had."""
    from lan.device import Network

    interpreter = os.environ.get("HIVEMIND_PYTHON", "")
    if not interpreter or subprocess.run([interpreter, "-c", "import hivemind"], check=False).returncode:
        return {}
    network = Network()
    try:
        folder = network.folder / "meeting"
        folder.mkdir()
        words = ["--folder", str(folder), "--params", str(params), "--peers", str(peers)]
        script = [interpreter, str(Path(__file__)), *words, "--rounds", str(rounds)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(network.namespace.command([*script, "--hivemind", str(i)]), env=environment)
            for i in range(peers)
        ]
        for process in processes:
            if process.wait(600) != 0:
                raise SystemExit("hivemind failed; see above")
        results = [json.loads((folder / f"result.{i}").read_text()) for i in range(peers)]
    finally:
        network.close()
    count = len(results[0]["seconds"])
    whole = [k for k in range(count) if max(r["wrong"][k] for r in results) <= HIVEMIND_WRONG]
    if not whole:
        raise SystemExit("hivemind's models were not their mean in any round")
    for r in results:  # in some rounds parts of the mean come too late, and are left out
        r |= {what: [r[what][k] for k in whole] for what in ("seconds", "cpu", "bytes")}
    return {**combined(results), "memory": results[0]["memory"], "version": results[0]["version"]}


# --- the table ------------------------------------------------------------------------------------------


def measure(params: int, peers: int, cores: int, rounds: int, algorithm: str) -> dict[str, Any]:
    os.sched_setaffinity(0, set(range(cores)))
    peerd = ours(params, peers, rounds, algorithm)
    in_parts = algorithm == "all-reduce"
    to_each = 2 * params // peers if in_parts else params  # numbers from each device, in a round
    plain = raw(to_each, peers, rounds)
    theirs = others(params, peers, max(1, rounds // 2))
    model = 4 * params
    return {
        "params": params,
        "peers": peers,
        "algorithm": algorithm,
        "cores": cores,
        "seconds": statistics.median(peerd["seconds"]),
        "all_seconds": peerd["seconds"],
        "raw_seconds": plain["seconds"],
        "raw_cpu_seconds": plain["cpu"],
        "raw_bytes": plain["bytes"],
        "hivemind_seconds": theirs.get("seconds"),
        "hivemind_cpu_seconds": theirs.get("cpu"),
        "hivemind_bytes": theirs.get("bytes"),
        "hivemind_memory_mb": theirs["memory"] / 1e6 if theirs else None,
        "hivemind_version": theirs.get("version"),
        "cpu_seconds": peerd["cpu"],
        "bytes": peerd["bytes"],
        "bytes_per_model": peerd["bytes"] / (4 * to_each * peers * (peers - 1)),
        "memory_mb": peerd["memory"][0] / 1e6,
        "memory_of_script_mb": peerd["memory"][1] / 1e6,
        "memory_of_daemon_mb": peerd["memory"][2] / 1e6,
        "memory_of_payloads_mb": peerd["memory"][3] / 1e6,
        "memory_goal_mb": 3 * model / 1e6 + 64,
        "largest_error": peerd["wrong"],
    }


def goal_s(row: dict[str, Any]) -> float | None:
    """Seconds it should take at most; None where hivemind, which it is measured by, was not there."""
    theirs = row["hivemind_seconds"]
    return SECONDS_GOAL.get(row["params"], None if theirs is None else theirs / 2)


def bound_mb(row: dict[str, Any]) -> float | None:
    """MB of a message that goes out, one that comes from each neighbor, and 64 MB; where these are models."""
    return 4 * row["params"] * row["peers"] / 1e6 + 64 if row["algorithm"] == "d-psgd" else None


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = (
        "parameters",
        "peers",
        "algorithm",
        "cores",
        "s",
        "goal",
        "raw s",
        "x raw",
        "hivemind s",
        "CPU s",
    )
    table = Table(
        *heads, "bytes / models", "goal", "memory MB", "its parts", "goal", "bound",
        title="one exchange of a whole model; what misses its goal is marked",
    )  # fmt: skip
    for row in rows:
        theirs, goal = row["hivemind_seconds"], goal_s(row)
        table.add_row(
            f"{row['params'] / 1e6:g}M", str(row["peers"]), row["algorithm"], str(row["cores"]),
            f"{row['seconds']:.3f}{_missed(row['seconds'], goal)}", "-" if goal is None else f"{goal:.3f}",
            f"{row['raw_seconds']:.3f}", f"{row['seconds'] / row['raw_seconds']:.1f}",
            "-" if theirs is None else f"{theirs:.2f} ({theirs / row['seconds']:.1f}x)",
            f"{row['cpu_seconds']:.2f}",
            f"{row['bytes_per_model']:.4f}{_missed(row['bytes_per_model'], BYTES_GOAL)}", f"{BYTES_GOAL:g}",
            f"{row['memory_mb']:.0f}{_missed(row['memory_mb'], row['memory_goal_mb'])}",
            ", ".join(f"{row[f'memory_of_{part}_mb']:.0f}" for part in ("script", "daemon", "payloads")),
            f"{row['memory_goal_mb']:.0f}", _bound(row),
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 165)
    console.print(table)
    heads, *made = ratios(rows)
    table = Table(*heads, title="what an exchange takes, in that of the same run's raw copy and hivemind")
    for cells in made:
        table.add_row(*cells)
    console.print(table)


def ratios(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Ours over theirs, heads first: seconds, CPU seconds and bytes of a raw TCP copy, and memory too of
    hivemind."""
    both: tuple[str, ...] = ("seconds", "cpu_seconds", "bytes")
    others = (("raw_", both), ("hivemind_", (*both, "memory_mb")))
    words = {"seconds": "s", "cpu_seconds": "CPU s", "bytes": "bytes", "memory_mb": "memory"}
    names = {"raw_": "raw copy's", "hivemind_": "hivemind's"}
    heads = [f"{words[what]} / {names[whose]}" for whose, measures in others for what in measures]
    made = [("parameters", "daemons", "algorithm", "cores", *heads)]
    for row in rows:
        case = (f"{row['params'] / 1e6:g}M", str(row["peers"]), row["algorithm"], str(row["cores"]))
        pairs = [(row[what], row.get(whose + what)) for whose, measures in others for what in measures]
        made.append((*case, *(f"{ours / theirs:.2f}" if theirs else "-" for ours, theirs in pairs)))
    return made


def _bound(row: dict[str, Any]) -> str:
    bound = bound_mb(row)
    return "-" if bound is None else f"{bound:.0f}{_missed(row['memory_mb'], bound)}"


def _missed(found: float, goal: float | None) -> str:
    return " (!)" if goal is not None and found > goal else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=int, action="append", help="parameters; again for more rows")
    parser.add_argument("--peers", type=int, default=0, help="2 and 4 unless given")
    parser.add_argument("--algorithm", choices=("d-psgd", "all-reduce"), help="between two d-psgd, four both")
    parser.add_argument("--cores", type=int, default=0, help="1 and 2 unless given")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    for hidden in ("--work", "--copy", "--hivemind"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--socket", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--daemon", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if (theirs := os.environ.get("HIVEMIND_PYTHON")) and shutil.which(theirs) is None:
        parser.error(f"HIVEMIND_PYTHON={theirs} cannot be run")
    if asked.folder is not None:
        asked.params = asked.params[0]
        if asked.work is not None:
            work(asked)
        elif asked.copy is not None:
            copy(asked)
        else:
            hivemind(asked)
        return
    rows = [
        measure(params, peers, cores, asked.rounds, algorithm)
        for params in asked.params or (1_000_000, 25_000_000)
        for peers in ((asked.peers,) if asked.peers else (2, 4))
        for algorithm in ((asked.algorithm,) if asked.algorithm else ALGORITHMS.get(peers, ("d-psgd",)))
        for cores in ((asked.cores,) if asked.cores else (1, 2))
    ]
    show(rows)
    if asked.json:
        from kept import keep  # hivemind's interpreter may be too old for it

        keep(asked.json, rows)


if __name__ == "__main__":
    main()
