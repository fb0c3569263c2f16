"""What gRPC with mutual TLS takes for the bytes of one exchange alone: no daemon, no learner, no mean.

`PYTHONPATH=tests:bench python bench/bare_grpc.py`: as many processes as an exchange has daemons, each with a
server and a channel to every other one, of grpc.aio as peerd's are. A message is one call that streams it in
pieces of 512 KiB, and is answered when it is there. Whole models to everybody, as d-psgd has it, or parts in
two halves, as all-reduce has. What exchange.py measures has this in it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from exchange import Meeting, cpu_of
from kept import keep
from rich.console import Console
from rich.table import Table

PIECE = 1 << 19
WARM, ROUNDS = 5, 20
METHOD = "/bare.Bare/Take"


def certificate(folder: Path) -> None:
    """One key and certificate, which all of them have and trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bare")]),
    )
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bare")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )


async def one(asked: argparse.Namespace) -> None:
    """One of the processes; the first one's figures are everybody's, but for CPU time."""
    import grpc

    cert, key = (asked.folder / "cert").read_bytes(), (asked.folder / "key").read_bytes()

    async def take(pieces: AsyncIterator[bytes], context: Any) -> bytes:
        async for _ in pieces:
            pass
        return b"x"

    handler = grpc.stream_unary_rpc_method_handler(take)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bare.Bare", {"Take": handler})])
    own = grpc.ssl_server_credentials([(key, cert)], root_certificates=cert, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", own)
    await server.start()
    meeting = Meeting(asked.folder, asked.one, asked.peers)
    (asked.folder / f"port.{asked.one}").write_text(str(port))
    meeting.here("listening")
    credentials = grpc.ssl_channel_credentials(cert, key, cert)
    options = [("grpc.ssl_target_name_override", "bare"), ("grpc.use_local_subchannel_pool", 1)]
    calls = [
        grpc.aio.secure_channel(
            f"127.0.0.1:{(asked.folder / f'port.{i}').read_text()}", credentials, options
        ).stream_unary(METHOD)
        for i in range(asked.peers)
        if i != asked.one
    ]

    async def send(call: Any, message: memoryview) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(message), PIECE):
                yield bytes(message[at : at + PIECE])

        await call(pieces())

    async def here(word: str) -> None:
        """Without stopping the server, which still answers others."""
        await asyncio.to_thread(meeting.here, word)

    message = memoryview(bytearray(asked.bytes))
    seconds, cpu = [], []
    for round_ in range(WARM + ROUNDS):
        await here(f"ready-{round_}")
        began, spent = time.perf_counter(), cpu_of([os.getpid()])
        for half in range(asked.halves):
            await asyncio.gather(*(send(call, message) for call in calls))
            if half < asked.halves - 1:
                await here(f"half-{round_}-{half}")
        seconds.append(time.perf_counter() - began)
        await here(f"done-{round_}")
        cpu.append(cpu_of([os.getpid()]) - spent)
    (asked.folder / f"result.{asked.one}").write_text(
        json.dumps({"seconds": seconds[WARM:], "cpu": sum(cpu[WARM:]) / ROUNDS})
    )
    await here("end")
    await server.stop(None)


def measured(params: int, peers: int, algorithm: str, cores: int) -> dict[str, Any]:
    os.sched_setaffinity(0, set(range(cores)))
    halves = 2 if algorithm == "all-reduce" else 1
    length = 4 * params // (peers if halves == 2 else 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate(folder)
        words = ["--folder", name, "--peers", str(peers), "--bytes", str(length), "--halves", str(halves)]
        command = [sys.executable, "-P", str(Path(__file__)), *words]
        started = [subprocess.Popen([*command, "--one", str(i)]) for i in range(peers)]
        codes = [process.wait() for process in started]
        if any(codes):
            raise SystemExit("one of them failed; see above")
        results = [json.loads((folder / f"result.{i}").read_text()) for i in range(peers)]
    slowest = [max(times) for times in zip(*(r["seconds"] for r in results), strict=True)]
    return {
        "params": params,
        "peers": peers,
        "algorithm": algorithm,
        "cores": cores,
        "seconds": statistics.median(slowest),
        "cpu_seconds": sum(r["cpu"] for r in results),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Its ratios are to the first row: what more bytes, and another core, come to."""
    table = Table(
        *("parameters", "peers", "algorithm", "cores", "s", "of the first", "CPU s", "of the first"),
        title="gRPC with TLS alone, for the bytes of one exchange",
    )
    for row in rows:
        times = [
            cell
            for what in ("seconds", "cpu_seconds")
            for cell in (f"{row[what]:.3f}", f"{row[what] / rows[0][what]:.1f}x")
        ]
        case = (f"{row['params'] / 1e6:g}M", str(row["peers"]), row["algorithm"], str(row["cores"]))
        table.add_row(*case, *times)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    for hidden in ("--one", "--peers", "--bytes", "--halves"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        asyncio.run(one(asked))
        return
    rows = [
        measured(asked.params, peers, algorithm, cores)
        for peers, algorithm in ((2, "d-psgd"), (4, "d-psgd"), (4, "all-reduce"))
        for cores in (1, 2)
    ]
    show(rows)
    if asked.json:
        keep(asked.json, rows)


if __name__ == "__main__":
    main()
