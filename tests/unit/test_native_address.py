"""Where arrays begin, against what NumPy's interface says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from portolan.core.native import address


class Named(np.ndarray):
    """An array with attributes of its own."""


def _frozen() -> Any:
    array = np.arange(8.0)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((3, 4))[1:, ::2].T,
        np.zeros(0),
        np.array(1.0),
        np.frombuffer(b"12345678", np.int8)[3:],
        np.zeros(3).view(Named),
        np.zeros(3, [("a", "i4"), ("b", "f8")])["b"],
        _frozen(),
    ],
    ids=lambda a: f"{type(a).__name__}{a.shape}{a.dtype}",
)
def test_it_is_what_the_interface_says(array: Any) -> None:
    assert address(array) == array.__array_interface__["data"][0]
