"""Detection from recorded files: features, limits, names, and what the fingerprint depends on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from portolan.core.target import Target
from portolan.targets import local as module
from portolan.targets.local import from_files, from_sysctl, parse_cpuinfo

RECORDED = Path(__file__).parent / "cpuinfo"
Tree = Callable[..., Path]


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Writes files under a root: a machine as its kernel shows it."""

    def write(cpuinfo: str, files: dict[str, str] | None = None) -> Path:
        usual = {"proc/cpuinfo": cpuinfo, "proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB\n"}
        for name, text in (usual | (files or {})).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def cache(level: int, form: str, size: str, cpu: int = 0, index: int = 0) -> dict[str, str]:
    folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    return {f"{folder}/level": f"{level}\n", f"{folder}/type": f"{form}\n", f"{folder}/size": f"{size}\n"}


def detect(root: Path, machine: str = "x86_64", affinity: tuple[int, ...] = (0, 1)) -> Target:
    return from_files(root, machine, affinity, {})


def test_zen5_behind_a_hypervisor(tree: Tree) -> None:
    files = cache(1, "Data", "48K") | cache(1, "Instruction", "32K", index=1) | cache(2, "Unified", "1024K", index=2)
    found = detect(tree(recorded("zen5-vm"), files | cache(3, "Unified", "32M", index=3)))
    assert (found.id, found.kind, found.arch, found.cores) == ("local", "vm", "x86_64", 2)
    assert found.has("avx512_vnni")
    assert found.has("avx512_bf16")
    assert not found.has("amx_int8")
    assert found.caches == {"L1d": 48 * 2**10, "L2": 2**20, "L3": 32 * 2**20}
    assert found.ram == 16384000 * 1024
    assert found.display == "AMD EPYC (AuthenticAMD family 26 model 2)"
    assert found.features == tuple(sorted(found.features))


def test_haswell_on_bare_metal(tree: Tree) -> None:
    found = detect(tree(recorded("haswell")))
    assert found.kind == "physical"
    assert found.has("avx2")
    assert not found.has("avx512f", "avx512_vnni")
    assert not found.has("ept_x_only")  # a flag of the hypervisor's own line
    assert "family 6 model 63" in found.display


def test_graviton3(tree: Tree) -> None:
    board = {"sys/class/dmi/id/sys_vendor": "Amazon EC2\n", "sys/class/dmi/id/product_name": "c7g.xlarge\n"}
    found = detect(tree(recorded("graviton3"), board), "aarch64", (0, 1, 2, 3))
    assert (found.kind, found.arch, found.cores, found.display) == ("vm", "aarch64", 4, "Arm Neoverse V1")
    assert found.has("i8mm")
    assert found.has("sve")
    assert not found.has("sve2")
    board["sys/class/dmi/id/product_name"] = "c7g.metal\n"
    assert detect(tree(recorded("graviton3"), board), "aarch64").kind == "physical"


def test_other_boards(tree: Tree) -> None:
    arm = recorded("graviton3")
    assert detect(tree(arm), "arm64").arch == "aarch64"
    assert detect(tree(arm), "arm64").kind == "physical"
    assert detect(tree(arm, {"sys/class/dmi/id/product_name": "Virtual Machine"}), "arm64").kind == "vm"
    assert detect(tree(arm, {"sys/class/dmi/id/product_name": "", "sys/hypervisor/type": "xen"}), "arm64").kind == "vm"


def test_riscv(tree: Tree) -> None:
    found = detect(tree(recorded("riscv64")), "riscv64", (0,))
    assert found.has("v")
    assert found.has("zvfh")
    assert found.display == "thead,c908"


def test_an_unknown_arm_part_is_named_by_number() -> None:
    text = recorded("graviton3").replace("0xd40", "0xfff")
    assert parse_cpuinfo(text).display == "Arm implementer 0x41 part 0xfff"


def test_only_what_all_processors_have_is_a_feature() -> None:
    first, _, rest = recorded("graviton3").partition("\n\n")
    assert "sve" not in parse_cpuinfo(f"{first.replace(' sve ', ' ')}\n\n{rest}").features
    assert "i8mm" in parse_cpuinfo(f"{first.replace(' sve ', ' ')}\n\n{rest}").features


def test_nothing_to_read(tmp_path: Path) -> None:
    found = detect(tmp_path, "x86_64", ())
    assert (found.features, found.cores, found.ram, found.caches, found.display) == ((), 1, 0, {}, "x86_64")


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (" avx512_vnni ", " ", False),
        (" gfni ", " ", False),
        ("AMD EPYC", "AMD EPYC 9R45", True),
        ("stepping\t: 1", "stepping\t: 2", True),
        ("cpu MHz\t\t: 2600", "cpu MHz\t\t: 4100", True),
        ("model\t\t: 2", "model\t\t: 17", True),
    ],
)
def test_a_masked_flag_changes_the_fingerprint_and_a_name_does_not(old: str, new: str, same: bool, tree: Tree) -> None:
    text = recorded("zen5-vm")
    assert old in text
    before = detect(tree(text)).fingerprint
    assert (detect(tree(text.replace(old, new))).fingerprint == before) is same


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "900000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/a\n3:memory:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/of/the/host\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_cores_follow_the_quota(files: dict[str, str], cores: int, tree: Tree) -> None:
    root = tree(recorded("graviton3"), {"proc/self/cgroup": "0::/\n"} | files)
    assert detect(root, "aarch64", (0, 1, 2, 3)).cores == cores


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 16000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{512 * 2**20}\n"}, 512),
        (
            {
                "proc/self/cgroup": "3:memory:/a\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{256 * 2**20}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            256,
        ),
    ],
)
def test_memory_follows_the_limit(files: dict[str, str], mib: int, tree: Tree) -> None:
    assert detect(tree(recorded("haswell"), files)).ram == mib * 2**20


def test_caches_are_those_of_a_processor_we_may_use(tree: Tree) -> None:
    files = (
        cache(2, "Unified", "2048K", cpu=0) | cache(2, "Unified", "4096K", cpu=5) | cache(3, "Unified", "?", index=1)
    )
    root = tree(recorded("haswell"), files)
    assert detect(root, affinity=(5, 6)).caches == {"L2": 4 * 2**20}
    assert detect(root, affinity=(0, 5)).caches == {"L2": 2 * 2**20}


def test_accelerators(tree: Tree) -> None:
    listed = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 120\n"
    gpus = {f"proc/driver/nvidia/gpus/0000:0{i}:00.0/information": listed for i in range(2)}
    text = recorded("zen5-vm")
    assert detect(tree(text)).accelerators == ()
    assert detect(tree(text, {"dev/nvidia0": "", "dev/nvidiactl": ""})).accelerators == ("NVIDIA GPU",)
    assert detect(tree(text, {"dev/nvidia1": "", **gpus})).accelerators == ("NVIDIA H200", "NVIDIA H200")


def test_a_container_sees_its_own_device_only(tree: Tree) -> None:
    gpus = {f"proc/driver/nvidia/gpus/{i}/information": f"Model: NVIDIA {m}\n" for i, m in enumerate("AAB")}
    root = tree(recorded("zen5-vm"), {"dev/nvidia2": "", **gpus})
    assert detect(root).accelerators == ("NVIDIA GPU",)
    (root / "proc/driver/nvidia/gpus/2/information").write_text("Model: NVIDIA A\n")
    assert detect(root).accelerators == ("NVIDIA A",)


def test_a_mac() -> None:
    found = from_sysctl(recorded("sysctl-m2"), "arm64", {"onnxruntime": "1.24"})
    assert (found.kind, found.arch, found.cores, found.ram) == ("physical", "aarch64", 8, 2**34)
    assert found.features == ("bf16", "i8mm")
    assert found.caches == {"L1d": 65536, "L2": 4 * 2**20}
    assert found.display == "Apple M2"


def test_this_machine_is_found_by_name() -> None:
    from portolan.core.registry import TARGETS

    found = TARGETS.get("local").detect()
    assert found.id == "local"
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert found.ram > 2**28
    assert Target.from_json(found.to_json()) == found
    assert found.fingerprint == TARGETS.get("local").detect().fingerprint


def test_runtimes_are_named_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from portolan.errors import PortolanError

    class Names:
        def names(self) -> list[str]:
            return ["broken", "odd"]

        def get(self, name: str) -> object:
            if name == "broken":
                raise PortolanError("it cannot be loaded")
            return type("Odd", (), {"versions": lambda self: {"b": "2", "a": "1"}})()

    monkeypatch.setattr("portolan.core.registry.BACKENDS", Names())
    assert module.runtimes() == {"a": "1", "b": "2"}
