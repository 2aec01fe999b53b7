"""WGSL: WebGPU in a headless Chromium, on its software adapter: right or wrong is seen there, speed is not."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core import chromium
from portolan.kernels.browser import Browser
from portolan.kernels.language import Array, Here, Language, Loaded
from portolan.kernels.plan import Plan
from portolan.kernels.printers.wgsl import GROUP, MOST_GROUPS, WGSLPrinter

_INFINITY, _NAN = 0x7F800000, 0x7FC00000


class WGSL(Language):
    """Compiled by the browser when it is loaded."""

    name, about, suffix, built = "wgsl", "WGSL, for WebGPU in browsers", ".wgsl", ".wgsl"
    shares = True

    def printer(self) -> WGSLPrinter:
        """WGSL."""
        return WGSLPrinter()

    def probe(self) -> Here:
        """Whether there is a browser; whether it has WebGPU is seen when it is used."""
        program = chromium.found()
        if program is None:
            return Here("print", reason="there is no Chromium", fix="apt install chromium")
        asked = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
        reason = "checked in software: this says nothing about speed"
        return Here("check", f"{' '.join(asked.stdout.split()[:2])}, SwiftShader", reason=reason)

    def load(self, path: Path, plan: Plan) -> Loaded:
        """In the browser of this process."""
        return _Loaded(path.read_text(encoding="utf-8"), plan)


@lru_cache(maxsize=1)
def _browser() -> Browser:
    """One for each process; it ends with its worker's process group, or here."""
    import atexit

    browser = Browser()
    atexit.register(browser.close)
    return browser


class _Loaded(Loaded):
    """Code, sent with every call; the page keeps what it compiled of it."""

    def __init__(self, code: str, plan: Plan) -> None:
        self.code, self.plan = code, plan

    def __call__(self, arrays: Sequence[Array], sizes: Mapping[str, int], pool: Any = None) -> None:
        """Sends the arguments, and takes the results."""
        starts, given = self.plan.starts(sizes), len(self.plan.inputs)
        words = max(1, *(words for _, _, words in starts))
        job = {
            "code": self.code,
            "buffers": [
                *({"size": _padded(a.nbytes), "given": n < given, "result": n >= given} for n, a in enumerate(arrays)),
                {"size": 4 * words, "given": False, "result": False},
            ],
            "starts": [
                {"entry": entry, "groups": _groups(tasks), "numbers": self._numbers(sizes, tasks)}
                for entry, tasks, _ in starts
            ],
        }
        data = b"".join(a.tobytes() + bytes(_padded(a.nbytes) - a.nbytes) for a in arrays[:given])
        _, back = _browser().ask(job, data)
        place = 0
        for array in arrays[given:]:
            array[...] = np.frombuffer(back, array.dtype, array.size, place).reshape(array.shape)
            place += _padded(array.nbytes)

    def _numbers(self, sizes: Mapping[str, int], tasks: int) -> list[int]:
        numbers = [*self.plan.numbers(sizes), tasks, _INFINITY, _NAN]
        return [*numbers, *[0] * (-len(numbers) % 4)]


def _padded(size: int) -> int:
    return max(4, -(-size // 4) * 4)


def _groups(tasks: int) -> list[int]:
    """Groups along the first and the second axis: one axis takes only so many."""
    groups = max(1, -(-tasks // GROUP))
    return [groups, 1, 1] if groups <= MOST_GROUPS else [MOST_GROUPS, -(-groups // MOST_GROUPS), 1]


wgsl = WGSL()
