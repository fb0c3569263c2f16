"""Write peer/wire/ from peer.proto: `python proto/generate.py`. CI runs it and expects no difference.

Messages only. The three calls are made from the service's descriptor (peer/mesh/channels.py), so that a
server sees who calls before it parses a byte; the generated stubs would parse first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

SOURCES = Path(__file__).resolve().parent
WIRE = SOURCES.parent / "peer" / "wire"
DOCSTRING = '"""Generated from proto/peer.proto by proto/generate.py, and nothing else."""\n'


def main() -> int:
    """Compile into the package; the exit code is protoc's."""
    WIRE.mkdir(parents=True, exist_ok=True)
    (WIRE / "__init__.py").write_text(DOCSTRING)
    outputs = [f"--{kind}_out={WIRE}" for kind in ("python", "pyi")]
    return int(protoc.main(["protoc", f"-I{SOURCES}", *outputs, str(SOURCES / "peer.proto")]))


if __name__ == "__main__":
    sys.exit(main())
