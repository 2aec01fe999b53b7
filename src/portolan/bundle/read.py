"""Opening and running a bundle. Opening checks everything and runs nothing."""

from __future__ import annotations

import hashlib
import shutil
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan import units
from portolan.bundle import fields, golden
from portolan.bundle.contents import Contents, open_contents
from portolan.bundle.here import check_needs, local_target
from portolan.bundle.manifest import (
    COMPILED,
    INPUTS,
    MANIFEST,
    MOST_MANIFEST,
    OUTPUTS,
    RECIPE,
    SUFFIX,
    Manifest,
)
from portolan.bundle.names import broken, is_code, show
from portolan.core import registry
from portolan.core.backend import Backend, Executable
from portolan.core.interpreters import python_for
from portolan.core.plain import html_table
from portolan.core.recipe import Recipe
from portolan.core.scratch import Scratch
from portolan.errors import NoBackend, PortolanError, UsageError, VerificationFailed

if TYPE_CHECKING:
    from portolan.bundle.verify import Verification

_MOST_SMALL = 2**20


def open_bundle(path: str | Path, *, sha256: str | None = None, native: bool = False) -> Bundle:
    """Opens a bundle, a folder or a `.portolan` file, and checks all of it: names, sizes, checksums, golden arrays.

    Args:
        path: the bundle.
        sha256: the hash you got from where you trust it; another bundle is refused.
        native: run what the bundle holds of compiled code (see `Bundle.code`) although no `sha256` was given.

    Raises:
        UsageError: no bundle, or one of a newer format.
        VerificationFailed: it is damaged, was changed, or tries to reach outside itself.
    """
    contents = open_contents(Path(path))
    try:
        return Bundle(Path(path), contents, pinned=sha256, native=native)
    except BaseException:
        contents.close()
        raise


def is_bundle(path: str | Path) -> bool:
    """Whether `path` is meant as a bundle: a `.portolan` file, or a folder with a manifest. It may be a bad one."""
    path = Path(path)
    return (path / MANIFEST).is_file() if path.is_dir() else path.suffix == SUFFIX and path.is_file()


class Bundle:
    """An opened bundle. Use it as a context manager, or `close` it, to free the runtime and temporary files.

    Attributes:
        path: the folder or file.
        manifest: what it says about itself.
        code: its files that are programs. Loading them runs them with your rights.
    """

    def __init__(self, path: Path, contents: Contents, *, pinned: str | None, native: bool) -> None:
        self.path = path
        self._contents = contents
        self.manifest = _read_manifest(contents, path)
        _check_pin(pinned, self.manifest.sha256)
        self.code = _check_files(contents, self.manifest)
        self.options = _read_compiled(contents, self.manifest.recipe)
        _check_recipe(contents, self.manifest.recipe)
        self._inputs, self._outputs = _read_golden(contents, self.manifest)
        self._trusted = native or pinned is not None
        self._executable: Executable | None = None
        self._folder: Path | None = path.resolve() if path.is_dir() else None
        self._lock = threading.Lock()
        self._closed = False
        self._scratch: Scratch | None = None

    @property
    def sha256(self) -> str:
        """The hash of all of the bundle, the same for a folder and for a file."""
        return self.manifest.sha256

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        return sorted([MANIFEST, *(entry.path for entry in self.manifest.files)])

    @property
    def golden_inputs(self) -> Mapping[str, np.ndarray]:
        """The golden inputs, first axis the samples."""
        return self._inputs

    @property
    def golden_outputs(self) -> Mapping[str, np.ndarray]:
        """The golden outputs, joined along the first axis."""
        return self._outputs

    def read(self, name: str) -> bytes:
        """The checked contents of one small file (at most 256 MiB), such as `recipe.toml`."""
        entry = next((e for e in self.manifest.files if e.path == name), None)
        if entry is None:
            raise UsageError(f"the bundle has no file `{name}`", hint=f"its files are {', '.join(self.files)}")
        return _read(self._contents, name, golden.MOST_GOLDEN)

    def compiled(self) -> Path:
        """The folder that `Backend.load` reads, unpacked if need be; for a process of its own to load.

        Raises:
            UsageError: it holds compiled code that nobody allowed to run.
        """
        self._check_trust(self.backend())
        return self._unpacked() / "compiled"

    def extract(self, folder: Path) -> None:
        """Writes the compiled files below `folder`, each checked once more as it is written.

        Raises:
            UsageError: no room, or compiled code that nobody allowed to run.
            VerificationFailed: a file changed after the bundle was opened.
        """
        self._check_trust(self.backend())
        self._extract(folder)

    def feeds(self, row: int) -> dict[str, np.ndarray]:
        """The golden inputs of call number `row`."""
        return golden.feeds(self.manifest.signature, self._inputs, row)

    def backend(self) -> Backend:
        """The backend that runs it here.

        Raises:
            UnknownName: no backend of that name.
            NoBackend: it is not installed, with the command that installs it; or this machine cannot run the files.
        """
        manifest = self.manifest
        backend = registry.backend(manifest.recipe.backend, where=f"{MANIFEST}: $.backend.name")
        target = local_target()
        check_needs(manifest.needs, target)
        # Not `backend.probe`: that may ask for more, such as the compiler that made the files, and they are made.
        support = Backend.probe(backend, target)
        if not support.ready:
            raise NoBackend(
                f"the bundle runs on `{backend.name}`, which is not ready here: {support.reason}", hint=support.fix
            )
        return backend

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs the model once, in this process or where its runtime lives.

        Args:
            inputs: an array for each of the model's inputs.

        Raises:
            UsageError: inputs of other names, types or shapes; or compiled code that nobody allowed to run.
            NoBackend: the runtime is missing here.
        """
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        self.manifest.signature.check(arrays, where="inputs")
        return self._load().run(arrays)

    def verify(self) -> Verification:
        """Runs the golden inputs in this process and compares the outputs.

        Raises:
            VerificationFailed: an output is further from the golden one than the tolerance allows.
        """
        from portolan.bundle.verify import verify

        return verify(self)

    def close(self) -> None:
        """Frees the runtime and removes temporary files. A closed bundle can still be read about, not run."""
        with self._lock:
            self._closed = True
            if self._executable is not None:
                self._executable.close()
                self._executable = None
            if self._scratch is not None:
                self._scratch.close()
            self._contents.close()

    def export_chunks(self, name: str) -> Any:
        """The contents of one file in pieces, for writing the same bundle elsewhere."""
        return self._contents.chunks(name)

    def to_json(self) -> dict[str, Any]:
        """The bundle as plain data."""
        return {
            "bundle": str(self.path),
            "sha256": self.sha256,
            "files": self.files,
            "code": list(self.code),
            "manifest": self.manifest.to_json(),
        }

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Bundle({self.manifest.name!r}, {self.manifest.recipe.backend}, {_size(self)}, sha256={self.sha256[:12]})"
        )

    def _repr_html_(self) -> str:
        manifest = self.manifest
        rows = {
            "recipe": manifest.recipe,
            "backend": ", ".join([manifest.recipe.backend, *(f"{k} {v}" for k, v in manifest.versions.items())]),
            "size": _size(self),
            "inputs": ", ".join(map(str, manifest.signature.inputs)),
            "outputs": ", ".join(map(str, manifest.signature.outputs)),
            **{name: f"{metric} {metric.kind}" for name, metric in manifest.claims.items()},
            "sha256": self.sha256,
        }
        return html_table(f"Bundle {manifest.name}", rows)

    def _load(self) -> Executable:
        with self._lock:
            if self._closed:
                raise UsageError("the bundle is closed", hint="open it again with `portolan.open`")
            if self._executable is None:
                backend = self.backend()
                self._check_trust(backend)
                options = backend.schema.check(self.options, where=f"{COMPILED}: $.options")
                folder = self._unpacked() / "compiled"
                try:
                    self._executable = _elsewhere(backend.name, folder) or backend.load(folder, **options)
                except PortolanError:
                    raise
                except Exception as error:
                    raise VerificationFailed(
                        f"`{backend.name}` cannot load the bundle: {show(str(error) or type(error).__name__, 300)}",
                        hint=_install(self.manifest.versions) or "pack the model again on this machine",
                    ) from error
            return self._executable

    def _check_trust(self, backend: Backend) -> None:
        """Code runs only for who asked for this very bundle, or said that code may run."""
        what = f"code (`{self.code[0]}`)" if self.code else "code" if getattr(backend, "native_code", False) else None
        if what and not self._trusted:
            raise UsageError(
                f"the bundle holds compiled {what}, which would run with your rights",
                hint="give the sha256 you expect (`--sha256`, `sha256=`), or trust it (`--native`, `native=True`)",
            )

    def _unpacked(self) -> Path:
        """The bundle as a folder: itself, or its compiled files in a private temporary folder, checked once more."""
        if self._folder is None:
            self._scratch = Scratch("portolan-bundle-")
            self._extract(self._scratch.path)
            self._folder = self._scratch.path
        return self._folder

    def _extract(self, folder: Path) -> None:
        entries = [e for e in self.manifest.files if e.path.startswith("compiled/")]
        needed, free = sum(e.bytes for e in entries), shutil.disk_usage(folder).free
        if needed > free:
            raise UsageError(
                f"unpacking the bundle needs {needed >> 20:,} MiB, and `{folder.parent}` has {free >> 20:,} free",
                hint="set `TMPDIR` to a folder with room, or unpack the bundle yourself",
            )
        for entry in entries:
            place = folder / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            seen = hashlib.sha256()
            with place.open("xb") as out:
                for piece in self._contents.chunks(entry.path):
                    seen.update(piece)
                    out.write(piece)
            if seen.hexdigest() != entry.sha256:
                raise broken(f"`{entry.path}` changed after the bundle was opened")


def _elsewhere(name: str, folder: Path) -> Executable | None:
    """The compiled files, loaded by a worker where the backend lives; None if that is this interpreter."""
    python = python_for(name)
    if python is None:
        return None
    from portolan.worker.remote import Remote  # a machine for bundles alone has no workers

    return Remote(python, folder)


def _size(bundle: Bundle) -> str:
    value, unit = units.scale(bundle.manifest.size, "B")
    return f"{units.digits(value, None)} {unit}"


def _install(versions: Mapping[str, str]) -> str | None:
    """The command that installs the recorded runtime."""
    listed = " ".join(f"{name}=={version}" for name, version in versions.items())
    return f"install the runtime it was made with: `pip install {listed}`" if listed else None


def _read(contents: Contents, name: str, most: int) -> bytes:
    if contents.sizes.get(name, 0) > most:
        raise broken(f"`{name}` has more than {most:,} bytes")
    return b"".join(contents.chunks(name))


def _read_manifest(contents: Contents, path: Path) -> Manifest:
    if MANIFEST not in contents.sizes:
        raise UsageError(
            f"`{path}` is not a bundle: it has no `{MANIFEST}`", hint="give a bundle that `portolan pack` made"
        )
    return Manifest.decode(_read(contents, MANIFEST, MOST_MANIFEST))


def _check_pin(pinned: str | None, sha256: str) -> None:
    if pinned is not None and pinned.strip().lower() != sha256:
        raise broken(f"the bundle's sha256 is `{sha256}`, and `{show(pinned)}` was asked for")


def _check_files(contents: Contents, manifest: Manifest) -> tuple[str, ...]:
    """Compares every file with the manifest; the names of those that are programs."""
    listed = {entry.path: entry for entry in manifest.files}
    for name in sorted(contents.sizes.keys() - listed.keys() - {MANIFEST}):
        raise broken(f"`{name}` is not in the manifest")
    for name in sorted(listed.keys() - contents.sizes.keys()):
        raise broken(f"`{name}` is in the manifest and not in the bundle")
    for name, entry in listed.items():
        if contents.sizes[name] != entry.bytes:
            raise broken(f"`{name}` has {contents.sizes[name]:,} bytes, and the manifest says {entry.bytes:,}")
    return tuple(name for name, entry in listed.items() if _check_file(contents, name, entry.sha256))


def _check_file(contents: Contents, name: str, sha256: str) -> bool:
    """Checks the checksum; whether the file is a program."""
    seen, start = hashlib.sha256(), b""
    for piece in contents.chunks(name):
        seen.update(piece)
        start = start or piece[:4]
    if seen.hexdigest() != sha256:
        raise broken(f"the checksum of `{name}` does not match")
    return is_code(name, start)


def _read_compiled(contents: Contents, recipe: Recipe) -> dict[str, Any]:
    """The options the executable was compiled with."""
    root = fields.Node(fields.decode(_read(contents, COMPILED, _MOST_SMALL), COMPILED), COMPILED)
    if root["backend"].value != recipe.backend:
        raise root["backend"].wrong(f"the recipe's backend `{recipe.backend}`")
    return {name: node.plain() for name, node in root["options"].items()}


def _check_recipe(contents: Contents, recipe: Recipe) -> None:
    """recipe.toml is for people and for `--recipe`: it must say what the manifest says."""
    try:
        data = tomllib.loads(_read(contents, RECIPE, _MOST_SMALL).decode())
        same = Recipe.from_json(data, where=RECIPE).to_json() == without_none(recipe.to_json())
    except (ValueError, RecursionError, UsageError) as error:
        raise broken(f"`{RECIPE}` cannot be read: {show(str(error))}") from error
    if not same:
        raise broken(f"`{RECIPE}` is not the recipe of the manifest")


def without_none(data: Any) -> Any:
    """`data` less the keys whose value is None, which TOML cannot say."""
    if isinstance(data, Mapping):
        return {key: without_none(value) for key, value in data.items() if value is not None}
    return [without_none(item) for item in data] if isinstance(data, (list, tuple)) else data


def _read_golden(contents: Contents, manifest: Manifest) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    signature = manifest.signature
    inputs = golden.parse(_read(contents, INPUTS, golden.MOST_GOLDEN), INPUTS, signature.inputs)
    outputs = golden.parse(_read(contents, OUTPUTS, golden.MOST_GOLDEN), OUTPUTS, signature.outputs)
    try:
        rows = golden.count_rows(signature, inputs)
    except UsageError as error:
        raise broken(error.message, INPUTS) from error
    if inputs and rows != manifest.rows:
        raise broken(f"the golden inputs make {rows} calls, and the manifest says {manifest.rows}", INPUTS)
    return inputs, outputs
