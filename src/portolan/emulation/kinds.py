"""What can be emulated, and with what: processors under qemu-user, WebAssembly under Node, WebGPU in a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from portolan.errors import PortolanError

PINS = Path(__file__).resolve().parent / "pins"
#: Debian's release that roots and emulators come from, and where it is fetched from.
SUITE, MIRROR = "trixie", "http://deb.debian.org/debian"


@dataclass(frozen=True)
class Kind:
    """A kind of target.

    Attributes:
        about: one line.
        arch: as `Target.arch`.
        cpus: what `--cpu` takes, the default first; none where there is no choice.
        emulator: the program of qemu-user; empty where none is needed.
        oldest: the oldest qemu that was seen to run ONNX Runtime there.
        root: pins of a root file system; empty where this machine's interpreter is used.
        wheels: pins of Python packages beside that root.
        npm: whether the packages of npm are needed.
        browser: whether a browser is.
        python: the interpreter inside the root.
        libraries: folders of the root with libraries that its loader does not look into.
    """

    name: str
    about: str
    arch: str
    cpus: tuple[str, ...] = ()
    emulator: str = ""
    oldest: tuple[int, int] = (0, 0)
    root: str = ""
    wheels: str = ""
    npm: bool = False
    browser: bool = False
    python: str = ""
    libraries: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "haswell",
            "an x86 of 2013: AVX2, no VNNI; this interpreter and its packages under qemu-user",
            "x86_64",
            ("Haswell", "Broadwell", "IvyBridge", "SandyBridge", "EPYC-Rome", "EPYC-Milan"),
            "qemu-x86_64",
            (7, 2),
        ),
        Kind(
            "aarch64",
            "64-bit Arm: Debian's Python and the runtimes' own wheels under qemu-user",
            "aarch64",
            (
                *("neoverse-v1", "neoverse-n1", "neoverse-n2", "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72"),
                *("cortex-a76", "cortex-a710", "a64fx", "max"),
            ),
            "qemu-aarch64",
            (10, 0),
            root="aarch64.txt",
            wheels="aarch64-wheels.txt",
            python="usr/bin/python3.13",
        ),
        Kind(
            "riscv64",
            "64-bit RISC-V: Debian's own ONNX Runtime under qemu-user",
            "riscv64",
            ("rv64", "max"),
            "qemu-riscv64",
            (10, 0),
            root="riscv64.txt",
            python="usr/bin/python3.13",
            libraries=tuple(f"/usr/lib/riscv64-linux-gnu{sub}" for sub in ("", "/blas", "/lapack")),
        ),
        Kind("wasm", "WebAssembly: ONNX Runtime Web under Node", "wasm32", npm=True),
        Kind("webgpu", "WebGPU: ONNX Runtime Web in a headless browser", "wasm32", npm=True, browser=True),
    )
}


@dataclass(frozen=True)
class Pin:
    """One package of Debian's: its version, and the hash and the bytes of its file."""

    name: str
    version: str
    sha256: str
    size: int


def pins(file: str) -> list[Pin]:
    """The packages of a file of pins, `NAME VERSION SHA256 BYTES` on each line.

    Raises:
        PortolanError: a line says something else.
    """
    found = []
    for number, line in enumerate((PINS / file).read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) == 4 and words[3].isdigit():
            found.append(Pin(words[0], words[1], words[2], int(words[3])))
        elif words:
            raise PortolanError(f"`{line}` pins no package", where=f"{file}:{number}")
    return found


def megabytes(packages: Sequence[Pin]) -> str:
    """Their size as people write it."""
    return f"{sum(pin.size for pin in packages) / 1e6:.1f} MB"
