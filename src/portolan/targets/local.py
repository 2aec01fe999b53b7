"""This machine: what `/proc`, `/sys` and the control groups say of it, without starting anything.

Only observed features count. A hypervisor that masks a flag makes another target; a name that changes does not.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from portolan.core import cuda
from portolan.core.target import Target

#: What hypervisors write into the vendor or product name of the virtual board.
_VIRTUAL = re.compile(
    r"qemu|kvm|xen|vmware|virtualbox|innotek|bochs|virtual machine|parallels|openstack|compute engine|amazon ec2"
    r"|alibaba cloud|hvm domu|bhyve|droplet|vserver",
    re.IGNORECASE,
)
#: Arm's part numbers by name, for people to read.
_PARTS = {
    ("0x41", "0xd03"): "Arm Cortex-A53",
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse N1",
    ("0x41", "0xd40"): "Arm Neoverse V1",
    ("0x41", "0xd49"): "Arm Neoverse N2",
    ("0x41", "0xd4f"): "Arm Neoverse V2",
    ("0xc0", "0xac3"): "Ampere-1",
}
_ARCH = {"amd64": "x86_64", "arm64": "aarch64", "i386": "x86", "i686": "x86"}
_SIZES = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Cpu:
    """What `/proc/cpuinfo` says: features that every processor has, and a name for people."""

    features: tuple[str, ...]
    display: str


class Local:
    """The target `local`."""

    name = "local"

    def detect(self) -> Target:
        """This machine as a Target. Takes some milliseconds; nothing is cached, since limits change.

        Only where a GPU shows itself its driver is asked too, once in a process, in another process.
        """
        return self._detect(self._gpus(), runtimes())

    def processor(self) -> Target:
        """This machine without its devices, for whoever asks for cores or features: no driver is asked."""
        return self._detect(cuda.Found(), runtimes())

    def fingerprint(self) -> str:
        """That of `detect()`, a tenth of the time: runtimes, which are no part of it, are not asked for."""
        return self._detect(self._gpus(), {}).fingerprint

    def _gpus(self) -> cuda.Found:
        return cuda.asked() if cuda.visible(Path("/")) else cuda.Found()

    def _detect(self, gpus: cuda.Found, versions: dict[str, str]) -> Target:
        if sys.platform == "darwin":
            return from_sysctl(_sysctl(), platform.machine(), versions)
        affinity = sorted(os.sched_getaffinity(0))
        return from_files(Path("/"), platform.machine(), affinity, versions, gpus)


local = Local()


def from_files(
    root: Path,
    machine: str,
    affinity: Sequence[int],
    versions: dict[str, str],
    gpus: cuda.Found = cuda.Found(),  # noqa: B008 - frozen
) -> Target:
    """A Linux machine.

    Args:
        root: the folder that holds `proc` and `sys`; `/`, or a recorded tree.
        machine: as `uname -m` says it.
        affinity: the processors that this process may use.
        versions: the installed runtimes.
        gpus: what the driver says of GPUs.
    """
    cpu = parse_cpuinfo(_text(root / "proc/cpuinfo"))
    groups = control_groups(root)
    cores = usable_cores(groups, affinity)
    memory = [parse_memory(_text(root / "proc/meminfo")), *(m for g in groups if (m := _memory_limit(g)) is not None)]
    return Target(
        id="local",
        kind=kind(root, cpu.features),
        arch=_ARCH.get(machine.lower(), machine.lower()),
        features=cpu.features,
        cores=max(1, cores),
        ram=min(memory),
        caches=caches(root, affinity[0] if affinity else 0),
        accelerators=accelerators(root, gpus),
        devices=gpus.devices,
        runtimes=versions,
        display=cpu.display or machine,
    )


def runtimes() -> dict[str, str]:
    """Version of each installed distribution that a backend names, without importing it."""
    from portolan.core.registry import BACKENDS
    from portolan.errors import PortolanError

    found: dict[str, str] = {}
    for name in BACKENDS.names():
        try:
            found |= BACKENDS.get(name).versions()
        except PortolanError:
            continue  # `doctor` says what is wrong with a plug-in; it must not hide the machine
    return dict(sorted(found.items()))


def parse_cpuinfo(text: str) -> Cpu:
    """Reads `/proc/cpuinfo` of x86 (`flags`), Arm (`Features`) or RISC-V (`isa`).

    Where processors differ, only what all have is a feature: a thread can be moved to any of them.
    """
    blocks = [dict(_pairs(block)) for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]
    sets = [found for block in blocks if (found := _features(block))]
    common = set.intersection(*sets) if sets else set()
    first = next((b for b in blocks if _features(b)), blocks[0] if blocks else {})
    return Cpu(tuple(sorted(common)), _display(first))


def _pairs(block: str) -> Iterable[tuple[str, str]]:
    for line in block.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _features(block: dict[str, str]) -> set[str]:
    for key in ("flags", "Features"):
        if key in block:
            return set(block[key].split())
    if "isa" in block:  # rv64imafdcv_zicsr_zba
        base, *extensions = block["isa"].lower().split("_")
        return {*re.sub(r"^rv\d+", "", base), *extensions}
    return set()


def _display(block: dict[str, str]) -> str:
    if "CPU part" in block:
        maker, part = block.get("CPU implementer", "?"), block["CPU part"]
        return _PARTS.get((maker, part), f"Arm implementer {maker} part {part}")
    name = block.get("model name", block.get("uarch", ""))
    if "cpu family" not in block:
        return name
    who = f"{block.get('vendor_id', '?')} family {block['cpu family']} model {block.get('model', '?')}"
    return f"{name} ({who})" if name else who


def parse_memory(text: str) -> int:
    """Bytes of RAM, from `/proc/meminfo`; 0 where it does not say."""
    match = re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def caches(root: Path, cpu: int = 0) -> dict[str, int]:
    """Bytes of each level as one processor sees it: `{"L1d": 49152, "L2": 1048576, "L3": 33554432}`."""
    found = {}
    for index in sorted((root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index*")):
        level, form, size = (_text(index / name).strip() for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if not level or form == "Instruction" or match is None:
            continue
        found[f"L{level}{'d' if form == 'Data' else ''}"] = int(match[1]) * _SIZES.get(match[2], 1)
    return dict(sorted(found.items()))


def kind(root: Path, features: Sequence[str]) -> Literal["physical", "vm"]:
    """Whether a hypervisor is visible: x86 says so in a flag, others in the names of the board."""
    if "hypervisor" in features:
        return "vm"
    board = " ".join(_text(root / f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name"))
    if ".metal" in board:  # the same vendor sells whole machines
        return "physical"
    known = (root / "proc/device-tree/hypervisor").exists() or _text(root / "sys/hypervisor/type").strip()
    return "vm" if known or _VIRTUAL.search(board) else "physical"


def accelerators(root: Path, gpus: cuda.Found) -> tuple[str, ...]:
    """NVIDIA's devices in words: as the driver describes them, else by what is plugged in, and why nothing can use it.

    `NVIDIA GPU` where only the device file is visible.
    """
    if gpus.devices:
        return tuple(map(str, gpus.devices))
    names = _plugged(root)
    return tuple(f"{name} ({gpus.reason})" for name in names) if gpus.reason else names


def _plugged(root: Path) -> tuple[str, ...]:
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    found = [match[1].strip() for f in files if (match := re.search(r"^Model:\s*(.+)$", _text(f), re.MULTILINE))]
    devices = sorted(p for p in (root / "dev").glob("nvidia*") if p.name[6:].isdigit())
    # A container sees the driver's list of the whole host, but the device files of its own devices only.
    if devices and len(devices) < len(found):
        return tuple(found[: len(devices)]) if len(set(found)) == 1 else ("NVIDIA GPU",) * len(devices)
    return tuple(found) if found else ("NVIDIA GPU",) * len(devices)


def usable_cores(groups: Sequence[Path], affinity: Sequence[int]) -> int:
    """Processors that this process may use all the time, by the limits of its control groups."""
    quota = min((q for folder in groups if (q := _quota(folder)) is not None), default=None)
    # Part of a processor is none: a thread more than the quota holds is a thread that gets stopped in mid-run.
    return len(affinity) if quota is None else min(len(affinity), max(1, int(quota + 1e-9)))


def control_groups(root: Path) -> list[Path]:
    """The control group folders whose limits bind this process: its own and all above, of both versions."""
    found: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",") if controllers else ["", "unified"]
        for name in names:
            if name not in ("", "unified", "cpu", "memory"):
                continue
            top = root / "sys/fs/cgroup" / name
            # Inside a container the path may be the host's; then the top is the container's own group.
            group = top / path.strip("/")
            found += [p for p in (group, *group.parents) if p.is_relative_to(top) and p.is_dir()]
    return list(dict.fromkeys(found))


def _quota(group: Path) -> float | None:
    """Processors that the group may use at a time, or None without a limit."""
    match = re.match(r"(\d+) (\d+)", _text(group / "cpu.max"))
    if match:
        return int(match[1]) / int(match[2])
    quota, period = _whole(group / "cpu.cfs_quota_us"), _whole(group / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _memory_limit(group: Path) -> int | None:
    limits = [_whole(group / name) for name in ("memory.max", "memory.limit_in_bytes")]
    return next((limit for limit in limits if limit), None)


def _whole(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> str:
    return run(["/usr/sbin/sysctl", "hw", "machdep.cpu"], capture_output=True, text=True, check=False).stdout


def from_sysctl(text: str, machine: str, versions: dict[str, str]) -> Target:
    """A Mac, from the output of `sysctl hw machdep.cpu`."""
    facts = dict(_pairs(text))
    flags = " ".join(facts.get(f"machdep.cpu.{key}", "") for key in ("features", "leaf7_features")).lower().split()
    arm = [k.rpartition("FEAT_")[2].lower() for k, v in facts.items() if "optional.arm.FEAT_" in k and v == "1"]
    sizes = {"L1d": "hw.l1dcachesize", "L2": "hw.l2cachesize", "L3": "hw.l3cachesize"}
    return Target(
        id="local",
        kind="vm" if facts.get("hw.optional.hypervisor") == "1" or "vmm" in flags else "physical",
        arch=_ARCH.get(machine.lower(), machine.lower()),
        features=tuple(sorted({*flags, *arm})),
        cores=int(facts.get("hw.logicalcpu", "1")),
        ram=int(facts.get("hw.memsize", "0")),
        caches={name: int(facts[key]) for name, key in sizes.items() if facts.get(key, "0") != "0"},
        runtimes=versions,
        display=facts.get("machdep.cpu.brand_string", machine),
    )
