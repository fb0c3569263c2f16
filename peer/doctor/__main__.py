"""The doctor's entry: `python -m peer.doctor [--socket PATH] [--state FOLDER]`.

Writes one JSON object a line: {"progress": TEXT} while something is waited for, {"finding": …} of each check.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

from peer.doctor import firewall
from peer.doctor.examine import examine
from peer.doctor.invoker import become, invoker


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peer.doctor", description="What 'peerd doctor' shows.")
    parser.add_argument("--socket", help="the daemon's control socket")
    parser.add_argument("--state", help="its state folder")
    asked = parser.parse_args()
    asyncio.run(_write(asked.socket, asked.state))


async def _write(socket: str | None, state: str | None) -> None:
    rules = None
    if (user := invoker(socket, state, os.environ)) is not None:
        rules = firewall.rules_or_why()  # while this is root
        become(user, os.environ)
    async for finding in examine(socket, state, lambda text: _line({"progress": text}), rules):
        _line({"finding": finding.to_dict()})


def _line(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
