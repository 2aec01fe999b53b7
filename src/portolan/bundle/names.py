"""Names of a bundle's files: one portable spelling, so that no name means two places on any file system."""

from __future__ import annotations

import re
from collections.abc import Iterable

from portolan.errors import VerificationFailed

#: What to do about a bundle that is not what it says.
AGAIN = "nothing of it was run; fetch the bundle again, or pack it again"

#: Endings of files that are programs, or that a loader executes. `.pt2` is a zip with a shared library, `.engine` is
#: TensorRT's code for a GPU.
_CODE = (
    ".so", ".pt2", ".pt", ".pth", ".dll", ".dylib", ".exe", ".py", ".pyc", ".pyd", ".pkl", ".pickle", ".joblib",
    ".engine",
)  # fmt: skip
_MAGIC = (b"\x7fELF", b"MZ\x90\0", b"\xcf\xfa\xed\xfe", b"\xfe\xed\xfa\xcf", b"\xca\xfe\xba\xbe", b"PK\3\4")

_PART = re.compile(r"[A-Za-z0-9_+=@,-][A-Za-z0-9._+=@,-]{0,99}\Z")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)", re.IGNORECASE)
_LONGEST, _DEEPEST = 240, 8


def broken(message: str, where: str | None = None) -> VerificationFailed:
    """The error for a bundle whose contents are not what they should be."""
    return VerificationFailed(message, hint=AGAIN, where=where)


def show(text: str, longest: int = 80) -> str:
    """`text` from a stranger, made safe to print: no control characters, no more than `longest` characters."""
    safe = text if text.isprintable() else ascii(text)[1:-1]
    return safe if len(safe) <= longest else f"{safe[: longest - 3]}..."


def is_code(name: str, start: bytes) -> bool:
    """Whether a file that begins with `start` is a program, or a package of programs, that a runtime would execute."""
    low = name.lower()
    return low.endswith(_CODE) or ".so." in low or (start.startswith(_MAGIC) and not low.endswith(".npz"))


def name_fault(name: str) -> str | None:
    """Why `name` cannot be a file of a bundle, or None.

    Allowed are relative names of plain ASCII letters, digits and `._+=@,-`, at most 8 parts divided by `/`. That leaves
    out `..`, absolute names, drives, backslashes, hidden files, a trailing dot, and the device names of Windows.
    """
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute name"
    parts = name.split("/")
    if ".." in parts:
        return "leaves the bundle's folder"
    if len(name) > _LONGEST or len(parts) > _DEEPEST:
        return "is too long"
    for part in parts:
        if not _PART.match(part) or part.endswith("."):
            return "is not a portable name"
        if _DEVICES.match(part):
            return "is the name of a device on some systems"
    return None


def check_names(names: Iterable[str], where: str) -> None:
    """Checks every name, and that no two can fall together.

    Raises:
        VerificationFailed: a name that is not allowed, appears twice, differs from another only in case, or is both
            a file and a folder.
    """
    seen: dict[str, str] = {}
    for name in names:
        if fault := name_fault(name):
            raise broken(f"the name `{show(name)}` {fault}", where)
        other = seen.setdefault(name.lower(), name)
        if other is not name:
            how = "appears twice" if other == name else f"differs from `{other}` only in case"
            raise broken(f"the name `{name}` {how}", where)
    for low, name in seen.items():
        parts = low.split("/")
        for end in range(1, len(parts)):
            if (parent := "/".join(parts[:end])) in seen:
                raise broken(f"`{seen[parent]}` is both a file and the folder of `{name}`", where)
