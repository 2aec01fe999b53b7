"""Compiles src/portolan/serving/messages/*.proto: `python tools/make_messages.py`. Needs `grpcio-tools`.

What it writes is a set of descriptors, which depends on the .proto files alone and not on the compiler's version. A
test fails when it is out of date.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src" / "portolan" / "serving" / "messages"
COMPILED = FOLDER / "messages.binpb"


def compiled() -> bytes:
    """The descriptors of all .proto files there."""
    from grpc_tools import protoc

    sources = sorted(path.name for path in FOLDER.glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "all"
        if protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={out}", *sources]):
            raise SystemExit("the protocol does not compile")
        return out.read_bytes()


def main() -> int:
    """Writes them."""
    COMPILED.write_bytes(compiled())
    print(COMPILED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
