"""The chip's assembly language: printing a claimed operator as a program, and reading programs back.

A line is `name key=value ...`; a value is a whole number, a decimal number, a word, or numbers joined by `x`.

    stream at=0 type=uint8 zero=0 channels=48 height=8 width=8 kernel=3x3 ...    the shape of what is multiplied
    load source=weights from=0 bytes=6912 to=3072                                DMA into memory
    weights at=3072 block=3072                                                   a tile into the cells
    multiply row=0 rows=64 depth=0 first=1                                       rows through the cells
    drain row=0 rows=64 column=0 columns=16 ...                                  accumulators, scaled, into memory
    store at=17000                                                               the result, by DMA
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.errors import ModelError

if TYPE_CHECKING:
    from portolan_systolic.claims import Claim

EDGE, ROWS = 16, 1024


@dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Where things lie in memory: the sample, two blocks of weights by turns, the result.

    Attributes:
        block: bytes of one block: all the weights of 16 columns.
        result: the result's address.
        total: bytes that are needed.
    """

    block: int
    result: int
    total: int

    @classmethod
    def of(cls, claim: Claim) -> Layout:
        """The layout of a claim, whether it fits or not."""
        block = math.ceil(claim.depth / EDGE) * EDGE * EDGE
        blocks = min(2, math.ceil(claim.columns / EDGE)) * block
        result = _even(claim.input_bytes) + blocks
        return cls(block, result, result + claim.output_bytes)


def _even(size: int) -> int:
    """Addresses are multiples of 64."""
    return math.ceil(size / 64) * 64


class Printer:
    """Prints claims as programs. Loops are written out: the chip has no jumps."""

    def source(self, claim: Claim) -> str:
        """The program of one sample."""
        return "\n".join([f"# {claim.operator} {claim.output}", *self._lines(claim)]) + "\n"

    def _lines(self, claim: Claim) -> Iterator[str]:
        layout = Layout.of(claim)
        first = _even(claim.input_bytes)
        yield _line("stream", at=0, **claim.stream)
        yield _line("load", source="data", **{"from": 0}, bytes=claim.input_bytes, to=0)
        for number, column in enumerate(range(0, claim.columns, EDGE)):
            at = first + (number % 2) * layout.block
            yield _line("load", source="weights", **{"from": number * layout.block}, bytes=layout.block, to=at)
            for row in range(0, claim.rows, ROWS):
                rows = min(ROWS, claim.rows - row)
                for depth in range(0, claim.depth, EDGE):
                    yield _line("weights", at=at + depth * EDGE, block=at)
                    yield _line("multiply", row=row, rows=rows, depth=depth, first=int(depth == 0))
                yield _line(
                    "drain", row=row, rows=rows, column=column, columns=min(EDGE, claim.columns - column),
                    at=layout.result, all_rows=claim.rows, all_columns=claim.columns, planes=int(claim.planes),
                    relu=int(claim.relu), type=claim.type, step=claim.step, zero=claim.zero,
                )  # fmt: skip
        yield _line("store", at=layout.result)


def _line(name: str, **arguments: Any) -> str:
    return " ".join([name, *(f"{key}={_text(value)}" for key, value in arguments.items())])


def _text(value: Any) -> str:
    return (
        "x".join(map(str, value))
        if isinstance(value, tuple)
        else repr(value)
        if isinstance(value, float)
        else str(value)
    )


def parse(text: str, where: str = "program") -> list[Instruction]:
    """Reads a program.

    Raises:
        ModelError: a line is none.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        name, _, rest = line.partition(" ")
        if not name or name == "#":
            continue
        try:
            pairs = (part.split("=", 1) for part in rest.split())
            found.append(Instruction(name, {key: _value(key, value) for key, value in pairs}))
        except ValueError as error:
            raise ModelError(
                f"line {number} of `{where}` is no instruction: `{line[:80]}`", hint="compile the model again"
            ) from error
    return found


def _value(key: str, text: str) -> Any:
    if key in ("source", "type"):
        return text
    if key in ("kernel", "stride", "dilation", "pad"):
        return tuple(int(part) for part in text.split("x") if part)
    return float(text) if key == "step" else int(text)
