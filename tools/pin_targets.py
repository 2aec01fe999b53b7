"""Writes the pins of emulated targets from what Debian and PyPI have now: `python tools/pin_targets.py`.

Needs apt-get, a network and no root rights. The closure of a root is what apt would install on an empty machine. Wheels
are those of the versions in `_WHEELS`. The packages of npm have a lock file of their own, which
`npm install --package-lock-only` in `src/portolan/emulation/pins/web` writes.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from portolan.emulation import debian, wheels
from portolan.emulation.kinds import MIRROR, PINS, SUITE

_ROOTS = {
    "qemu-amd64.txt": ("amd64", ("qemu-user",), False),
    "qemu-arm64.txt": ("arm64", ("qemu-user",), False),
    "aarch64.txt": ("arm64", ("python3.13-minimal", "libpython3.13-stdlib", "libstdc++6"), True),
    "riscv64.txt": ("riscv64", ("python3-onnxruntime", "python3-numpy", "python3-onnx"), True),
}
_WHEELS = (
    "flatbuffers==25.12.19", "ml_dtypes==0.5.4", "ncnn==1.0.20261020", "numpy==2.4.6", "onnx==1.23.2",
    "onnxruntime==1.32.0", "openvino==2026.4.1", "packaging==26.3", "protobuf==6.33.6",
    "typing_extensions==4.16.0",
)  # fmt: skip
_NOTE = "Written by tools/pin_targets.py."


def root(folder: Path, arch: str, names: Sequence[str], *, closure: bool) -> str:
    """The lines of a file of pins."""
    archive = debian.Debian(folder, arch, MIRROR, latest=True, say=print)
    archive.folder.mkdir(parents=True, exist_ok=True)
    every = archive.closure(names) if closure else list(names)
    lines = [f"# Debian {SUITE}, {arch}: name version sha256 bytes. {_NOTE}"]
    shown = archive.show(every)
    for name in sorted(every):
        found = re.search(rf"^Package: {re.escape(name)}\n(.*?)(?:\n\n|\Z)", shown, re.DOTALL | re.MULTILINE)
        if found is None:
            raise LookupError(name)
        fields = dict(re.findall(r"^(Version|SHA256|Size): (\S+)$", found[1], re.MULTILINE))
        lines.append(f"{name} {fields['Version']} {fields['SHA256']} {fields['Size']}")
    return "\n".join(lines) + "\n"


def packages(folder: Path, arch: str) -> str:
    """The lines of a requirements file with hashes."""
    argv = [sys.executable, "-m", "pip", "download", "-q", *wheels.place(arch), "--no-deps", "-d", str(folder)]
    subprocess.run([*argv, *_WHEELS], check=True)
    lines = [f"# Wheels of CPython 3.13 for Linux on {arch}. {_NOTE}"]
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes every file."""
    with tempfile.TemporaryDirectory() as name:
        for file, (arch, names, closure) in _ROOTS.items():
            (PINS / file).write_text(root(Path(name), arch, names, closure=closure), encoding="utf-8")
        (Path(name) / "wheels").mkdir()
        (PINS / "aarch64-wheels.txt").write_text(packages(Path(name) / "wheels", "aarch64"), encoding="utf-8")


if __name__ == "__main__":
    main()
