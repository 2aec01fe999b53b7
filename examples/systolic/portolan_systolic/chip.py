"""The chip: 1 MB of memory, 16 by 16 cells that multiply int8, and a clock of its own. It runs programs exactly.

Weights stay in the cells while rows of activations stream through (Jouppi et al., In-Datacenter Performance Analysis of
a Tensor Processing Unit, 2017). Three engines work side by side and wait for each other's results: DMA, array, vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from portolan.errors import PortolanError
from portolan_systolic.program import Instruction

#: The chip's dimensions. A vendor has these from the data sheet.
EDGE, MEMORY, ROWS = 16, 1 << 20, 1024
CLOCK_HZ, BUS_BYTES, DMA_LATENCY = 500e6, 16, 64


class Fault(PortolanError):
    """A program did what the chip cannot: the compiler is wrong, not the user."""


@dataclass
class Chip:
    """One run of one program. Memory is bytes; accumulators are int32, `ROWS` by `EDGE`.

    Attributes:
        cycles: the clock when all engines are done: an estimate of the real chip's, by this model alone.
        busy: cycles in which the array multiplied.
    """

    memory: np.ndarray = field(default_factory=lambda: np.zeros(MEMORY, np.uint8))
    cycles: int = 0
    busy: int = 0
    _acc: np.ndarray = field(default_factory=lambda: np.zeros((ROWS, EDGE), np.int64))
    _cells: np.ndarray = field(default_factory=lambda: np.zeros((EDGE, EDGE), np.float32))
    _clock: dict[str, int] = field(default_factory=lambda: {"dma": 0, "array": 0, "vector": 0})
    _ready: dict[int, int] = field(default_factory=dict)
    _read: dict[int, int] = field(default_factory=dict)
    _stream: np.ndarray | None = None
    _setting: Mapping[str, Any] = field(default_factory=dict)

    def run(self, program: Sequence[Instruction], data: bytes, blobs: Mapping[str, np.ndarray], size: int) -> bytes:
        """Runs a program on the bytes of one sample; the bytes of its result.

        Args:
            program: what `program.parse` read.
            data: the sample.
            blobs: constants by name: `weights` (bytes), `scale` and `bias` (float32, one per column).
            size: bytes of the result.

        Raises:
            Fault: an address outside of the memory, or more rows than there are accumulators.
        """
        sources = {"data": np.frombuffer(data, np.uint8), "weights": blobs["weights"].view(np.uint8).ravel()}
        out = np.zeros(size, np.uint8)
        for step in program:
            a = step.arguments
            match step.name:
                case "stream":
                    self._setting, self._stream = a, None
                case "load":
                    block = sources[a["source"]][a["from"] : a["from"] + a["bytes"]]
                    self._at(a["to"], len(block))[:] = block
                    start = max(self._clock["dma"], self._read.get(a["to"], 0))
                    self._ready[a["to"]] = self._clock["dma"] = start + _moved(len(block))
                case "weights":
                    tile = self._at(a["at"], EDGE * EDGE).view(np.int8).reshape(EDGE, EDGE)
                    self._cells = tile.astype(np.float32)
                    start = max(self._clock["array"], self._ready.get(a["block"], 0))
                    self._clock["array"] = self._read[a["block"]] = start + EDGE
                case "multiply":
                    self._multiply(a)
                case "drain":
                    self._drain(a, blobs)
                case "store":
                    out[:] = self._at(a["at"], size)
                    self._clock["dma"] = max(self._clock["dma"], self._clock["vector"]) + _moved(size)
                case _:
                    raise Fault(f"the chip has no instruction `{step.name}`")
        self.cycles = max(self._clock.values())
        return out.tobytes()

    def _at(self, address: int, size: int) -> np.ndarray:
        if address < 0 or address + size > MEMORY:
            raise Fault(f"a program reads or writes {size} bytes at {address}, of {MEMORY}")
        return self.memory[address : address + size]

    def _multiply(self, a: Mapping[str, Any]) -> None:
        """Rows of the stream times the cells, onto the accumulators."""
        if self._stream is None:
            self._stream = _gathered(self, self._setting)
        rows, low = a["rows"], a["depth"]
        if rows > ROWS:
            raise Fault(f"a program fills {rows} accumulators, of {ROWS}")
        part = self._stream[a["row"] : a["row"] + rows, low : low + EDGE]
        # 16 products of 8 bits each are far below 2^24: float32 holds their sums exactly.
        sums = (part @ self._cells[: part.shape[1]]).astype(np.int64)
        self._acc[:rows] = sums if a["first"] else self._acc[:rows] + sums
        start = max(self._clock["array"], self._ready.get(self._setting["at"], 0))
        start = max(start, self._clock["vector"]) if a["first"] else start  # accumulators are drained first
        self._clock["array"] = start + rows + 2 * EDGE - 1
        self.busy += rows

    def _drain(self, a: Mapping[str, Any], blobs: Mapping[str, np.ndarray]) -> None:
        """Accumulators, scaled and rounded, into the result's place in memory."""
        rows, columns, first = a["rows"], a["columns"], a["column"]
        last = first + columns
        values = self._acc[:rows, :columns].astype(np.float32) * blobs["scale"][first:last] + blobs["bias"][first:last]
        if a["relu"]:
            values = np.maximum(values, 0)
        if a["type"] == "float32":
            result = values
        else:
            info = np.iinfo(a["type"])
            steps = np.rint(values / np.float32(a["step"])) + a["zero"]
            result = np.clip(steps, info.min, info.max).astype(a["type"])
        whole = self._at(a["at"], a["all_rows"] * a["all_columns"] * result.itemsize).view(a["type"])
        if a["planes"]:  # channels first
            place = whole.reshape(a["all_columns"], a["all_rows"])
            place[first:last, a["row"] : a["row"] + rows] = result.T
        else:
            whole.reshape(a["all_rows"], a["all_columns"])[a["row"] : a["row"] + rows, first:last] = result
        self._clock["vector"] = max(self._clock["vector"], self._clock["array"]) + rows


def _moved(size: int) -> int:
    return DMA_LATENCY + math.ceil(size / BUS_BYTES)


def _gathered(chip: Chip, s: Mapping[str, Any]) -> np.ndarray:
    """What the address generator streams: one row per result, without the zero point; (rows, depth) float32."""
    size = s["channels"] * s["height"] * s["width"]
    image = chip._at(s["at"], size).view(s["type"]).astype(np.float32) - s["zero"]
    if not s["kernel"]:
        return image.reshape(s["height"] * s["width"], s["channels"])
    (kh, kw), (sh, sw), (dh, dw), (top, left, bottom, right) = s["kernel"], s["stride"], s["dilation"], s["pad"]
    image = np.pad(image.reshape(s["channels"], s["height"], s["width"]), ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(image, ((kh - 1) * dh + 1, (kw - 1) * dw + 1), (1, 2))
    windows = windows[:, ::sh, ::sw, ::dh, ::dw]
    return np.ascontiguousarray(windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1))
