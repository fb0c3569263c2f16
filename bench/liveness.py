"""Does a long stream starve signs of life? Round trips of probes while whole models are exchanged, beside
those while nothing is. `make bench`; alone: `PYTHONPATH=tests:bench python bench/liveness.py`.

Two real daemons with an attached script each, as in bench/exchange.py, exchange uncompressed models one after
another. A third member, which trains nothing, probes one of them EVERY_S by the control call that members
use, over a connection as members have it. Every process here shares the same cores, so the ratio counts, not
the times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from exchange import TASK, Meeting, create, meet
from kept import keep
from rich.console import Console
from rich.table import Table

from lan.device import Device, Network  # tests/, see the Makefile
from peer.events import Probe, Record, Told
from peer.keys import parse_key
from peer.mesh import identity
from peer.mesh.channels import TELL, Dialer
from peer.mesh.frames import control_to_wire
from peer.mesh.greeting import Introduction
from peer.mesh.stream import Intake
from peer.mesh.transport import Event, Transport
from peer.shared_buffer import SharedBuffer

PORT = 7001  # of the daemon that is probed; the namespace has no other
EVERY_S = 0.05
FAR_S = 1800.0  # only a failure takes so long
IDLE_S = 30.0  # before the first exchange that counts


# --- a script that trains --------------------------------------------------------------------------------


def train(asked: argparse.Namespace) -> None:
    import torch
    from torch import nn

    import peer

    torch.set_num_threads(1)
    scripts = Meeting(asked.folder, asked.script, 2)
    everybody = Meeting(asked.folder, asked.script, 3)
    model = nn.ParameterList([torch.zeros(asked.params)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with peer.attach("bench", model, optimizer, socket=str(asked.socket), pace="lockstep") as swarm:
        meet(swarm, model[0].data, scripts)
        everybody.here("idle")
        everybody.here("busy")
        for _ in range(asked.rounds):
            swarm.step(0.0)
        everybody.here("over")


# --- the member that probes ------------------------------------------------------------------------------


class Prober:
    """It answers probes as any member, and times the answers to its own: `async with` one."""

    def __init__(self, key: str) -> None:
        device = identity.Device(ec.generate_private_key(ec.SECP256R1()))
        self.record = Record(device.id, boot=1, incarnation=1)
        me = identity.SessionIdentity(parse_key(key), device)
        intake = Intake(lambda: 0, SharedBuffer.create)
        self.transport = Transport(
            me, lambda: Introduction(self.record), self._on_event, intake, random.Random(1)
        )
        self._dialer = Dialer(me, insecure=False)
        self._request = control_to_wire(Probe(b"", (self.record,)), me.seal).SerializeToString()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Told) and isinstance(event.message, Probe):
            self.transport.tell(event.peer, Probe(event.message.view, (self.record,)))

    async def __aenter__(self) -> Prober:
        await self.transport.start("127.0.0.1:0")
        await self.transport.hello(f"127.0.0.1:{PORT}")
        self._channel = self._dialer.to_any_member(f"127.0.0.1:{PORT}")
        await self.round_trip()  # the first one connects
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()
        await self.transport.stop()

    async def round_trip(self) -> float:
        began = time.perf_counter()
        answer: bytes = await self._channel.unary_unary(TELL)(self._request, metadata=self._dialer.metadata)
        assert answer, "a probe was not answered with one"
        return time.perf_counter() - began


async def probe(asked: argparse.Namespace) -> None:
    folder = asked.folder
    async with Prober(asked.key) as prober:
        times, seconds = await sampled(prober, folder)
    (folder / "result").write_text(json.dumps(times | {"seconds": seconds}))


async def sampled(prober: Prober, folder: Path) -> tuple[dict[str, list[float]], float]:
    """Round trips while nothing is exchanged and while models are, and how long the latter took."""
    await asyncio.to_thread(Meeting(folder, 2, 3).here, "idle")
    times: dict[str, list[float]] = {"idle": [], "busy": []}
    ends_at = time.perf_counter() + IDLE_S
    while time.perf_counter() < ends_at:
        times["idle"].append(await prober.round_trip())
        await asyncio.sleep(EVERY_S)
    began = time.perf_counter()
    (folder / "busy.2").touch()
    while not all((folder / f"over.{i}").exists() for i in range(2)):
        times["busy"].append(await prober.round_trip())
        await asyncio.sleep(EVERY_S)
    seconds = time.perf_counter() - began
    (folder / "over.2").touch()
    return times, seconds


# --- the table -------------------------------------------------------------------------------------------


def measure(params: int, rounds: int) -> dict[str, Any]:
    network = Network()
    try:
        task = network.folder / "flat.py"
        task.write_text(TASK.format(params=params))
        a, b = (network.add(name) for name in "ab")
        network.start(a, b)
        create(a, task, "d-psgd", "--listen", f"127.0.0.1:{PORT}")
        key = a.ok("key", "bench").out.split()[-1]
        b.ok("join", "bench", "--key", key, "--task", str(task), "--interface", "lo")
        network.wait("both are members", lambda: all(_members(d) == 2 for d in (a, b)))
        folder = network.folder / "meeting"
        folder.mkdir()
        words = ["--folder", str(folder), "--params", str(params), "--rounds", str(rounds)]
        started = [
            _start(network, device, [*words, "--script", str(i), "--socket", str(device.socket)])
            for i, device in enumerate((a, b))
        ]
        started.append(_start(network, a, [*words, "--key", key]))
        network.wait("all have ended", lambda: _have_ended(started), FAR_S)
        found: dict[str, Any] = json.loads((folder / "result").read_text())
        a.stop()
        b.stop()
    finally:
        network.close()
    quantiles = {
        when: {
            "p50": statistics.median(found[when]),
            "p99": statistics.quantiles(found[when], n=100, method="inclusive")[98],
        }
        for when in ("idle", "busy")
    }
    counts = {when: len(found[when]) for when in ("idle", "busy")}
    worst = {when: max(found[when]) for when in ("idle", "busy")}
    per_exchange = found["seconds"] / rounds
    return {"params": params, "seconds": per_exchange, "probes": counts, "worst": worst, **quantiles}


def _members(device: Device) -> int:
    return int(device.session("bench").get("members") or 0)


def _have_ended(processes: list[subprocess.Popen[bytes]]) -> bool:
    codes = [process.poll() for process in processes]
    if any(codes):
        raise SystemExit("a process failed; see above")
    return None not in codes


def _start(network: Network, device: Device, words: list[str]) -> subprocess.Popen[bytes]:
    command = network.namespace.command([sys.executable, "-P", str(Path(__file__)), *words])
    environment = device.environment() | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }  # absolute, whatever ours is
    return subprocess.Popen(command, env=environment, cwd=network.folder)


def show(row: dict[str, Any]) -> None:
    table = Table(
        "probes' round trips, ms", "idle", "busy", "ratio", title=f"{row['params'] / 1e6:g}M parameters"
    )
    for what in ("p50", "p99"):
        idle, busy = row["idle"][what], row["busy"][what]
        table.add_row(what, f"{1e3 * idle:.1f}", f"{1e3 * busy:.1f}", f"{busy / idle:.1f}")
    idle, busy = row["worst"]["idle"], row["worst"]["busy"]
    table.add_row("worst", f"{1e3 * idle:.1f}", f"{1e3 * busy:.1f}", f"{busy / idle:.1f}")
    table.add_row("probes", str(row["probes"]["idle"]), str(row["probes"]["busy"]), "")
    table.add_row("s per exchange", "", f"{row['seconds']:.2f}", "")
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=60)  # some 500 probes
    parser.add_argument("--json", type=Path)
    for hidden in ("--folder", "--socket", "--key", "--script"):
        kinds: dict[str, Any] = {"--key": str, "--script": int}
        parser.add_argument(hidden, type=kinds.get(hidden, Path), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.key is not None:
        asyncio.run(probe(asked))
    elif asked.script is not None:
        train(asked)
    else:
        row = measure(asked.params, asked.rounds)
        show(row)
        if asked.json:
            keep(asked.json, row)


if __name__ == "__main__":
    main()
