"""Writing bundles: all or nothing, and the same bytes for the same contents."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import portolan
from portolan.bundle import fields, golden
from portolan.bundle.archive import CHUNK, write_zip
from portolan.bundle.golden import Tolerance
from portolan.bundle.manifest import (
    COMPILED,
    INPUTS,
    MANIFEST,
    OUTPUTS,
    RECIPE,
    SUFFIX,
    FileEntry,
    Manifest,
    Needs,
    describe,
)
from portolan.bundle.names import is_code
from portolan.bundle.read import without_none
from portolan.core import registry
from portolan.core.files import sha256
from portolan.core.measurement import Metrics
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.serving import Profile
from portolan.core.target import Target
from portolan.errors import DiskFull, PortolanError, UsageError, VerificationFailed, no_space

#: Features in /proc/cpuinfo's spelling that compiled code uses.
_VECTOR = ("avx", "amx", "fma", "f16c", "bmi", "asimd", "sve", "sme", "i8mm", "bf16")


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """Everything a bundle is made of.

    Attributes:
        name: what people call it.
        model: the original model (its signature is what is served).
        recipe: how it was compressed and compiled.
        compiled: the folder that `Executable.save` wrote.
        golden_inputs: for each input, samples stacked along the first axis as in `--data`; or `golden.stack(calls)`.
        golden_outputs: what the compiled model answered, call by call: `golden.join(outputs, signature)`.
        claims: metrics of this recipe.
        target: where it was compiled and measured.
        backend_versions: `Backend.versions()` at that place.
        created: when, in ISO 8601 with a time zone. Given, so that the same parts make the same bytes.
        environment: what the claims were measured under, as plain data.
        tolerance: for all outputs, or by output; None takes `golden.default_tolerance`.
        needs: what the compiled files cannot run without; None: for compiled code the target's vector features, else
            nothing.
        licence: a note on the model's licence.
        profile: what a batch of each size takes, for who serves it.
    """

    name: str
    model: Model
    recipe: Recipe
    compiled: Path
    golden_inputs: Mapping[str, np.ndarray]
    golden_outputs: Mapping[str, np.ndarray]
    claims: Metrics
    target: Target
    backend_versions: Mapping[str, str]
    created: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Tolerance | Mapping[str, Tolerance] | None = None
    needs: Needs | None = None
    licence: str | None = None
    profile: Profile | None = None


@dataclass(frozen=True)
class Source:
    """One file to write: its name, size, hash and where its bytes come from."""

    entry: FileEntry
    chunks: Callable[[], Iterable[bytes]]

    @classmethod
    def of(cls, name: str, raw: bytes) -> Source:
        """Bytes at hand."""
        return cls(FileEntry(name, len(raw), hashlib.sha256(raw).hexdigest()), lambda: [raw])

    def checked(self) -> Iterator[bytes]:
        """The bytes again, refused at their end if they are no longer those that were hashed."""
        seen, size = hashlib.sha256(), 0
        for piece in self.chunks():
            seen.update(piece)
            size += len(piece)
            yield piece
        if size != self.entry.bytes or seen.hexdigest() != self.entry.sha256:
            raise VerificationFailed(f"`{self.entry.path}` changed while it was packed", hint="pack again")


def write_bundle(out: Path, parts: BundleParts, *, force: bool = False) -> Path:
    """Writes a bundle: one file if `out` ends in `.portolan`, else a folder. Nothing is left behind on failure.

    Returns:
        `out`.

    Raises:
        UsageError: `out` exists and `force` is not given, the disk is full, or the parts do not fit each other.
    """
    check_out(out, force)
    return write_sources(out, sources(parts), force=force)


def sources(parts: BundleParts) -> list[Source]:
    """The files of a bundle, the manifest first.

    Raises:
        UsageError: parts that make no valid bundle.
    """
    signature = parts.model.signature
    wanted = sorted(spec.name for spec in signature.outputs)
    if sorted(parts.golden_outputs) != wanted:
        raise UsageError(
            f"the golden outputs are {', '.join(sorted(parts.golden_outputs)) or 'none'}, "
            f"and the model's are {', '.join(wanted)}",
            hint="run the golden inputs through the compiled model, and give all of its outputs",
        )
    files = [
        Source.of(RECIPE, recipe_toml(parts.recipe)),
        Source.of(INPUTS, golden.dump(parts.golden_inputs, "golden input")),
        Source.of(OUTPUTS, golden.dump(parts.golden_outputs, "golden output")),
        *_compiled(parts.compiled, parts.recipe),
    ]
    manifest = Manifest(
        name=parts.name,
        created=parts.created,
        portolan=portolan.__version__,
        model=parts.model.name,
        model_sha256=parts.model.sha256,
        signature=signature,
        recipe=parts.recipe,
        versions=parts.backend_versions,
        target=describe(parts.target.to_json()),
        needs=parts.needs or _needs(files, parts.target),
        rows=golden.count_rows(signature, parts.golden_inputs),
        tolerance=_tolerance(parts),
        claims=parts.claims,
        environment=parts.environment,
        files=tuple(sorted((source.entry for source in files), key=lambda entry: entry.path)),
        licence=parts.licence,
        profile=parts.profile,
    )
    return [Source.of(MANIFEST, _encoded(manifest)), *sorted(files, key=lambda source: source.entry.path)]


def write_sources(out: Path, files: list[Source], *, force: bool) -> Path:
    """Writes `files` beside `out` and moves them there when they are complete and on the disk."""
    with _beside(out) as place:
        made = place / out.name
        try:
            if out.suffix == SUFFIX:
                _write_file(made, files)
            else:
                _write_folder(made, files)
        except OSError as error:
            raise disk_error(out, error) from error
        publish(made, out, force=force)
    return out


def publish(made: Path, out: Path, *, force: bool) -> None:
    """Moves a complete bundle to `out` in one step; what was there is replaced only with `force`.

    `made` has to be on the same file system, in a folder of its own.
    """
    check_out(out, force)
    old = made.parent / "replaced"
    try:
        if force and (out.exists() or out.is_symlink()):
            out.rename(old)
        try:
            if made.is_file() and not force:
                # A link refuses an existing name where a rename would replace what appeared there meanwhile.
                os.link(made, out)
                made.unlink()
            else:
                made.rename(out)
        except BaseException:
            if old.exists() or old.is_symlink():
                old.rename(out)
            raise
        _sync(out.parent)
    except OSError as error:
        raise disk_error(out, error) from error


def check_out(out: Path, force: bool) -> None:
    """Refuses to overwrite.

    Raises:
        UsageError: `out` exists, or exists and is nothing that a bundle may replace, or its folder does not exist.
    """
    if not out.absolute().parent.is_dir():
        raise UsageError(
            f"there is no folder `{out.parent}` to write `{out.name}` into", hint="make it, or choose `-o`"
        )
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UsageError(f"`{out}` exists", hint="replace it with `--force`, or choose another name with `-o`")
    if out.is_symlink() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise UsageError(
            f"`{out}` exists and is not a bundle, so `--force` does not replace it", hint="remove it first"
        )
    if out.is_dir() == (out.suffix == SUFFIX):
        raise UsageError(
            f"`{out}` exists and is not a bundle, so `--force` does not replace it", hint="remove it first"
        )


def recipe_toml(recipe: Recipe) -> bytes:
    """The recipe as a recipe file."""
    import tomli_w

    return tomli_w.dumps(without_none(recipe.to_json())).encode()


def exact(recipe: Recipe) -> bool:
    """Whether a recipe keeps the model's own arithmetic, as far as its backend and passes can be asked."""
    try:
        lossy = any(registry.pass_(step.name).lossy(step.options) for step in recipe.passes)
        return not lossy and registry.backend(recipe.backend).exact(recipe.options)
    except PortolanError:
        return False


def _tolerance(parts: BundleParts) -> Mapping[str, Tolerance]:
    stated = {} if parts.tolerance is None else parts.tolerance
    if isinstance(stated, Tolerance):
        return dict.fromkeys(parts.golden_outputs, stated)
    return {**golden.default_tolerance(parts.golden_outputs, exact(parts.recipe)), **stated}


def _needs(files: list[Source], target: Target) -> Needs:
    """Compilers use all that the processor has, so code needs that again; other files are portable.

    x86's `smep` protects pages, and has nothing to do with ARM's matrix extension `sme`.
    """
    if not any(is_code(s.entry.path, next(iter(s.chunks()), b"")[:4]) for s in files):
        return Needs()
    return Needs(target.arch, tuple(f for f in target.features if f.startswith(_VECTOR) and f != "smep"))


def _encoded(manifest: Manifest) -> bytes:
    """The manifest's bytes, read back: what no reader would accept is not written."""
    try:
        raw = manifest.encode()
        Manifest.decode(raw)
    except (VerificationFailed, ValueError, TypeError) as error:
        message = error.message if isinstance(error, VerificationFailed) else str(error)
        where = error.where if isinstance(error, VerificationFailed) else None
        hint = "correct it, or leave it out"
        raise UsageError(f"these parts make no valid bundle: {message}", hint=hint, where=where) from error
    return raw


def _compiled(folder: Path, recipe: Recipe) -> list[Source]:
    files = []
    for path in sorted(folder.rglob("*")):
        name = f"compiled/{path.relative_to(folder).as_posix()}"
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UsageError(
                f"`{name}` is a link or a special file, which a bundle cannot hold", hint="put the file itself there"
            )
        if path.is_file():
            files.append(_from_disk(name, path))
    if not files:
        raise UsageError(f"the folder of the compiled model, `{folder}`, is empty", hint="compile the model first")
    if all(source.entry.path != COMPILED for source in files):
        raw = fields.encode({"backend": recipe.backend, "options": dict(recipe.options)})
        files.append(Source.of(COMPILED, raw))
    return files


def _from_disk(name: str, path: Path) -> Source:
    def chunks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece

    return Source(FileEntry(name, path.stat().st_size, sha256(path)), chunks)


def _write_file(made: Path, files: list[Source]) -> None:
    with made.open("xb") as file:
        write_zip(file, [(source.entry.path, source.entry.bytes, source.checked()) for source in files])
        file.flush()
        os.fsync(file.fileno())


def _write_folder(made: Path, files: list[Source]) -> None:
    made.mkdir()
    for source in files:
        path = made / source.entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for piece in source.checked():
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    for folder in {path.parent for path in made.rglob("*")}:
        _sync(folder)


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A private folder beside `out`, on the same file system, gone afterwards."""
    try:
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    except OSError as error:
        raise disk_error(out, error) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(out: Path, error: OSError) -> PortolanError:
    """What an error of the file system means for who asked for `out`."""
    if no_space(error):
        return DiskFull(f"the disk is full: `{out}` could not be written", hint="free some space, or choose `-o`")
    if error.errno == errno.EEXIST:
        return UsageError(f"`{out}` exists", hint="replace it with `--force`, or choose another name with `-o`")
    return UsageError(f"`{out}` cannot be written: {error.strerror or error}", hint="choose another place with `-o`")
