"""Packing: write a bundle, prove that it runs, and only then put it where it was asked for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portolan.bundle.manifest import MANIFEST, FileEntry
from portolan.bundle.read import Bundle, open_bundle
from portolan.bundle.verify import Verification, verify_isolated
from portolan.bundle.write import BundleParts, Source, check_out, publish, sources, write_sources


@dataclass(frozen=True)
class Packed:
    """A bundle on disk: what `pack` answers."""

    bundle: Path
    sha256: str
    files: tuple[str, ...]
    verification: Verification | None

    @property
    def verified(self) -> bool:
        """Whether its golden inputs were run and agreed."""
        return self.verification is not None

    def to_json(self) -> dict[str, Any]:
        """The `pack` object of the contract."""
        notes = list(self.verification.notes) if self.verification else []
        return {
            "bundle": str(self.bundle),
            "sha256": self.sha256,
            "files": list(self.files),
            "verified": self.verified,
            "notes": notes,
        }

    def __repr__(self) -> str:
        state = "verified" if self.verified else "not verified"
        return f"Packed({str(self.bundle)!r}, {len(self.files)} files, {state}, sha256={self.sha256[:12]})"


def pack_parts(
    parts: BundleParts, out: str | Path, *, force: bool = False, verify: bool = True, timeout: float = 600.0
) -> Packed:
    """Writes a bundle and verifies it in a process of its own. A bundle that fails is not left behind.

    Args:
        parts: what it is made of.
        out: a name that ends in `.portolan` for one file, any other for a folder.
        force: replace a bundle that is there.
        verify: run the golden inputs; without it the bundle is only written.
        timeout: seconds that the verification may take.

    Raises:
        UsageError: `out` exists, the disk is full, or parts that do not fit each other.
        VerificationFailed: the bundle does not answer its golden inputs as it should.
        NoBackend: the runtime is missing, so nothing can be verified.
    """
    out = Path(out)
    check_out(out, force)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as place:
        made = write_sources(Path(place) / out.name, sources(parts), force=False)
        with open_bundle(made) as bundle:
            sha256, files = bundle.sha256, tuple(bundle.files)
        # Naming the hash is the permission to run compiled code: it was made here a moment ago.
        done = verify_isolated(made, sha256=sha256, timeout=timeout) if verify else None
        publish(made, out, force=force)
    return Packed(out, sha256, files, done and replace(done, bundle=str(out)))


def check(
    path: str | Path, *, run: bool = True, sha256: str | None = None, native: bool = False, timeout: float = 600.0
) -> Packed:
    """Checks a bundle as `pack` left it: all files and, with `run`, the golden outputs in a process of its own.

    Raises:
        UsageError, NoBackend, VerificationFailed: as `open_bundle` and `Bundle.verify`.
    """
    with open_bundle(path, sha256=sha256, native=native) as bundle:
        found, files = bundle.sha256, tuple(bundle.files)
    done = verify_isolated(path, sha256=sha256, native=native, timeout=timeout) if run else None
    return Packed(Path(path), found, files, done)


def export(path: str | Path, out: str | Path, *, force: bool = False) -> Path:
    """Writes the same bundle, checked, in the form that the name `out` asks for: `.portolan` file or folder.

    Nothing is run, and the sha256 stays the same.

    Raises:
        UsageError, VerificationFailed: as `open_bundle`, and as `write_bundle` for `out`.
    """
    out = Path(out)
    check_out(out, force)
    with open_bundle(path) as bundle:
        return write_sources(out, sources_of(bundle), force=force)


def unpack(path: str | Path, folder: str | Path, *, force: bool = False) -> Path:
    """`export` to a folder, whatever its name."""
    folder = Path(folder)
    with open_bundle(path) as bundle:
        return write_sources(folder, sources_of(bundle), force=force)


def sources_of(bundle: Bundle) -> list[Source]:
    """The files of an opened bundle, the manifest first, each checked again while it is read."""
    manifest = Source.of(MANIFEST, bundle.manifest.encode())
    return [manifest, *(_again(bundle, entry) for entry in bundle.manifest.files)]


def _again(bundle: Bundle, entry: FileEntry) -> Source:
    return Source(entry, lambda: bundle.export_chunks(entry.path))
