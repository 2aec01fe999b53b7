"""What a worker on another machine, or under an emulator, says of where it is."""

from __future__ import annotations

import dataclasses

from portolan.core.target import Target
from portolan.targets import _cpuid
from portolan.targets.local import local


def emulated(name: str) -> Target:
    """The machine that this process takes itself to be on, as an emulated target called `name`.

    Caches and accelerators are those of the machine that emulates, so nothing is said of them; qemu writes
    `/proc/cpuinfo` anew for Arm and RISC-V and not for x86.
    """
    here = local.processor()
    features = _cpuid.features() if here.arch == "x86_64" else here.features
    display = here.arch if here.arch == "x86_64" else here.display
    return dataclasses.replace(
        here, id=name, kind="emulated", features=features, caches={}, accelerators=(), display=display
    )
