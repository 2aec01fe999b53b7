"""Which OpenCL device is taken, by drivers that are made up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from portolan.errors import NoBackend
from portolan.kernels.languages.opencl import first_device

CPU, GPU = 2, 4
Drivers = Callable[..., None]


class Refused(Exception):
    """What a driver raises."""


def device(name: str, kind: int = CPU, refuses: str = "") -> SimpleNamespace:
    return SimpleNamespace(name=name, type=kind, refuses=refuses)


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drivers]:
    def build(context: list[Any], code: str) -> SimpleNamespace:
        def built() -> None:
            if context[0].refuses:
                raise Refused(context[0].refuses)

        return SimpleNamespace(build=built)

    def put(*platforms: list[Any]) -> None:
        first_device.cache_clear()
        listed = [SimpleNamespace(get_devices=lambda found=found: found) for found in platforms]
        module = SimpleNamespace(
            get_platforms=lambda: listed,
            device_type=SimpleNamespace(GPU=GPU),
            Context=lambda devices: devices,
            Program=build,
            Error=Refused,
        )
        monkeypatch.setitem(sys.modules, "pyopencl", module)

    yield put
    first_device.cache_clear()


def test_a_gpu_comes_before_what_was_found_first(drivers: Drivers) -> None:
    drivers([device("cpu"), device("other cpu")], [device("gpu", GPU)])
    assert first_device().name == "gpu"


def test_a_device_that_compiles_nothing_is_passed_by(drivers: Drivers) -> None:
    drivers([device("gpu", GPU, "no license")], [device("old", CPU, "unknown target CPU"), device("cpu")])
    assert first_device().name == "cpu"


def test_no_device_that_compiles_is_told_with_what_each_said(drivers: Drivers) -> None:
    drivers([device("old", CPU, "clBuildProgram failed\n\nerror: unknown target CPU 'generic'\nDevice failed")])
    with pytest.raises(NoBackend, match="refuses to compile: error: unknown target CPU 'generic'") as caught:
        first_device()
    assert caught.value.hint == "apt install pocl-opencl-icd"
    drivers([device("mute", CPU, " ")])
    with pytest.raises(NoBackend, match="refuses to compile: Refused"):
        first_device()
    drivers([])
    with pytest.raises(NoBackend, match="no OpenCL driver has a device"):
        first_device()
