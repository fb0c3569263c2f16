"""Bytes as `peerd rehearse` counts them, and between real daemons: is what is rehearsed what is sent?

Message bytes are frames of the links: parcels, acknowledgements, openings. Between daemons the interface
carries more: TLS, HTTP/2, TCP and its acknowledgements, probes and records. Both sides are taken over the
same rounds, from --from to --to, when everybody has joined and links have had their first parcels; per device
and round. `make bench`; alone: `PYTHONPATH=tests:bench python bench/wire.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from kept import keep
from rich.console import Console
from rich.table import Table

from lan.device import Device, Network  # tests/, see the Makefile

SESSION = "wire"
COMMON = ("--topology", "exponential", "--local-steps", "4")
CASES: dict[str, tuple[str, ...]] = {
    "difference-push, bits=1": ("--algorithm", "difference-push", "--compression", "bits=1"),
    "sparse-push, topk=1%,fp16": ("--algorithm", "sparse-push", "--compression", "topk=1%,fp16"),
    "sgp": ("--algorithm", "sgp", "--compression", "none"),
}


@dataclass(frozen=True)
class Bytes:
    """Of one device: of messages as rehearsed and between daemons, and there of the interface."""

    rehearsed: float
    messages: float
    interface: float

    @property
    def apart(self) -> float:
        return self.messages / self.rehearsed - 1


@dataclass(frozen=True)
class Row(Bytes):
    """For each round."""

    case: str


def rehearsed(words: tuple[str, ...], peers: int, rounds: int) -> float:
    """Bytes that a peer has sent by the end of so many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        subprocess.run(
            [
                *(sys.executable, "-P", "-m", "cli.main", "rehearse", "--task", "spoken-digits"),
                *("--peers", str(peers), "--rounds", str(rounds), "--json", str(file), *COMMON, *words),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return float(json.loads(file.read_text())["bytes"]["sent_per_peer"])


@dataclass(frozen=True, slots=True)
class Look:
    """At all devices at one moment: rounds and message bytes of each, and bytes of the interface."""

    rounds: tuple[int, ...]
    messages: tuple[int, ...]
    interface: int


def look(network: Network, devices: list[Device], session: str = SESSION) -> Look:
    found = [device.session(session) for device in devices]
    return Look(
        tuple(one["round"] or 0 for one in found),
        tuple(one["message_bytes_sent"] or 0 for one in found),
        _carried(network),
    )


def _carried(network: Network) -> int:
    """Bytes of the loopback interface so far."""
    lines = network.namespace.read("cat", "/proc/net/dev").splitlines()  # /sys is of where it was mounted
    return int(next(line.partition(":")[2].split()[8] for line in lines if line.strip().startswith("lo:")))


def between_daemons(words: tuple[str, ...], peers: int, first: int, last: int) -> tuple[float, float]:
    """Message bytes and interface bytes per device and round."""
    network = Network()
    try:
        devices = [network.add(f"d{i}") for i in range(peers)]
        network.start(*devices)
        shards = [("--shard", f"{i}/{peers}", "--interface", "lo") for i in range(peers)]
        devices[0].ok("create", SESSION, "--task", "spoken-digits", *COMMON, *words, *shards[0])
        key = devices[0].ok("key", SESSION).out.split()[-1]
        for device, shard in zip(devices[1:], shards[1:], strict=True):
            device.ok("join", SESSION, "--key", key, *shard)
        network.wait("all are members", lambda: all(_members(d) == peers for d in devices))
        begun = max(look(network, devices).rounds) + first
        before = network.wait("links have opened", lambda: _at(network, devices, begun), 300.0)
        after = network.wait("rounds go on", lambda: _at(network, devices, begun + last - first), 1200.0)
    finally:
        network.close()
    rounds = sum(b - a for a, b in zip(before.rounds, after.rounds, strict=True))
    messages = sum(b - a for a, b in zip(before.messages, after.messages, strict=True))
    return messages / rounds, (after.interface - before.interface) / rounds


def _members(device: Device) -> int:
    members: int = device.session(SESSION)["members"]
    return members


def _at(network: Network, devices: list[Device], round_: int) -> Look | None:
    now = look(network, devices)
    return now if min(now.rounds) >= round_ else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--from", dest="first", type=int, default=20, help="rounds after all have joined")
    parser.add_argument("--to", dest="last", type=int, default=120)
    parser.add_argument("--json", help="write the figures there")
    asked = parser.parse_args()
    rows = []
    for case, words in CASES.items():
        until, since = (rehearsed(words, asked.peers, rounds) for rounds in (asked.last, asked.first))
        per_round = (until - since) / (asked.last - asked.first)
        rows.append(Row(per_round, *between_daemons(words, asked.peers, asked.first, asked.last), case))
    table = Table(title=f"{asked.peers} devices, spoken-digits, bytes per device and round")
    for title in ("", "rehearsed", "messages", "apart", "interface", "of messages"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.case,
            f"{row.rehearsed:,.0f}",
            f"{row.messages:,.0f}",
            f"{row.apart:+.1%}",
            f"{row.interface:,.0f}",
            f"{row.interface / row.messages:.2f}x",
        )
    Console().print(table)
    if asked.json:
        keep(Path(asked.json), [asdict(row) | {"apart": row.apart} for row in rows])


if __name__ == "__main__":
    main()
