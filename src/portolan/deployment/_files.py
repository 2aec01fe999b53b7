"""Writing what a platform emitted, and taking the model's own files out of a bundle. Nothing of the bundle is run."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from portolan.bundle import Bundle
from portolan.bundle.pack import sources_of
from portolan.bundle.write import disk_error, write_sources
from portolan.core import storage
from portolan.deployment._platform import Emitted
from portolan.errors import ModelError, UsageError

#: What Portolan keeps beside the model's files in `compiled/`, which no other runtime reads.
_OURS = frozenset(("compiled.json", "signature.json"))
_TABLE = "storage.json"


def model_files(bundle: Bundle) -> list[str]:
    """The names of the model's files, unpacked, relative to their folder."""
    names = [e.path.removeprefix("compiled/") for e in bundle.manifest.files if e.path.startswith("compiled/")]
    if _TABLE not in names:
        return [name for name in names if name not in _OURS]
    try:
        return sorted(json.loads(bundle.read(f"compiled/{_TABLE}")))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"the packed files cannot be read: {error}", hint="pack the bundle again", where=f"compiled/{_TABLE}"
        ) from error


def listing(bundle: Bundle, emitted: Emitted) -> list[str]:
    """Every file that will be written, relative to the platform's folder."""
    names = list(emitted.texts)
    if emitted.bundle is not None:
        names += [f"{emitted.bundle}/{name}" for name in bundle.files]
    if emitted.model is not None:
        names += [f"{emitted.model}/{name}" for name in model_files(bundle)]
    return sorted(names)


def write(bundle: Bundle, emitted: Emitted, folder: Path) -> None:
    """Writes the files into `folder`, which exists and is empty.

    Raises:
        UsageError: the disk is full, or the folder cannot be written.
        VerificationFailed: the bundle changed since it was opened.
    """
    try:
        for name, text in emitted.texts.items():
            _place(folder, name).write_text(text, encoding="utf-8")
        if emitted.bundle is not None:
            write_sources(_place(folder, emitted.bundle), sources_of(bundle), force=False)
        if emitted.model is not None:
            _write_model(bundle, _place(folder, emitted.model))
        for path in folder.rglob("*"):
            # A service of another user reads them, whatever the umask here is.
            path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        raise disk_error(folder, error) from error


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A private folder on the same file system as `out`; gone afterwards."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".portolan-", dir=out))
    except OSError as error:
        raise disk_error(out, error) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.rmdir()  # empty: nothing was written


def publish(made: Path, folder: Path) -> None:
    """Moves the files in `made` to `folder`, over what has the same names there; other files stay."""
    try:
        if not folder.exists():
            made.rename(folder)
            return
        for path in sorted(made.rglob("*")):
            target = folder / path.relative_to(made)
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                path.replace(target)
    except OSError as error:
        raise disk_error(folder, error) from error


def check_free(folder: Path, names: list[str], force: bool) -> None:
    """Refuses to overwrite.

    Raises:
        UsageError: the folder is there and `force` is not given, or it is no folder.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is there and is no folder", hint="choose another place with `-o`")
    if not force:
        raise UsageError(f"`{folder}` exists", hint="write over it with `--force`, or choose another place with `-o`")
    # The files of an older bundle would be read along with the new ones.
    kept = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() not in names]
    if kept:
        raise UsageError(
            f"`{folder}` holds `{kept[0].relative_to(folder).as_posix()}`, which is none of the files to be written",
            hint="remove it first, or choose another place with `-o`",
        )


def _place(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_model(bundle: Bundle, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".portolan-", dir=folder.parent) as scratch:
        packed = Path(scratch)
        kept = [s for s in sources_of(bundle) if s.entry.path.startswith("compiled/")]
        for source in kept:
            name = source.entry.path.removeprefix("compiled/")
            if name in _OURS:
                continue
            with _place(packed, name).open("xb") as out:
                for piece in source.checked():
                    out.write(piece)
        folder.mkdir(parents=True, exist_ok=True)
        if storage.packed(packed):
            storage.unpack(packed, folder)
            return
        for path in sorted(p for p in packed.rglob("*") if p.is_file()):
            path.rename(_place(folder, path.relative_to(packed).as_posix()))
