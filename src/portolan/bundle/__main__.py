"""`python -m portolan.bundle PATH [--verify] [--json]`: a bundle on a machine that has little else.

Needs the standard library, NumPy and the bundle's runtime. Exit codes as everywhere: 0, 2 usage, 4 no runtime,
6 damaged or other outputs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from portolan.errors import PortolanError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m portolan.bundle", description="Check a bundle, and run its golden inputs.", allow_abbrev=False
    )
    parser.add_argument("bundle", help="a folder or a .portolan file")
    parser.add_argument("--verify", action="store_true", help="run the golden inputs and compare the outputs")
    parser.add_argument("--sha256", metavar="HEX", help="refuse any bundle but this one")
    parser.add_argument("--native", action="store_true", help="run its compiled code without --sha256")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    with _own_stdout() as out:
        try:
            answer, text = _work(options)
        except PortolanError as error:
            if options.json:
                print(json.dumps(error.to_json()), file=out)
            else:
                _complain(error)
            return error.exit_code
        print(json.dumps(answer) if options.json else text, file=out)
        return 0


def _work(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from portolan.bundle.read import open_bundle

    with open_bundle(options.bundle, sha256=options.sha256, native=options.native) as bundle:
        if not options.verify:
            return (
                bundle.to_json(),
                f"{bundle!r}\nintact: {len(bundle.files)} files match their checksums; nothing was run",
            )
        result = bundle.verify()
        for note in result.notes:
            print(f"note: {note}", file=sys.stderr)
        lines = [f"  {d.output}: off by at most {d.worst:.3g}, {d.allowed:.3g} allowed" for d in result.differences]
        return result.to_json(), "\n".join([repr(bundle), *lines, f"verified: {result.rows} golden calls agree"])


@contextlib.contextmanager
def _own_stdout() -> Iterator[TextIO]:
    """The real stdout for the answer alone: what a runtime prints goes to stderr, also from native code."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as out:
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _complain(error: PortolanError) -> None:
    print(f"error: {error.message}", file=sys.stderr)
    if error.where:
        print(f"  at {error.where}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
