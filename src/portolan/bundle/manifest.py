"""manifest.json: what a bundle says about itself. See docs/reference/bundle-format.md."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from portolan.bundle import fields
from portolan.bundle.fields import Node
from portolan.bundle.golden import Tolerance
from portolan.bundle.names import broken, check_names, show
from portolan.core.measurement import Measurement, Metrics
from portolan.core.recipe import Recipe
from portolan.core.serving import MOST_BATCH, QUANTILE, Profile
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import UsageError

FORMAT, VERSION = "portolan-bundle", 1
MANIFEST, RECIPE, COMPILED = "manifest.json", "recipe.toml", "compiled/compiled.json"
#: Ending of a bundle in one file; any other name is a folder.
SUFFIX = ".portolan"
INPUTS, OUTPUTS = "golden/inputs.npz", "golden/outputs.npz"
#: Bytes of manifest.json, number of files, and bytes of all files that this version reads.
MOST_MANIFEST, MOST_FILES, MOST_BYTES = 2**20, 10_000, 2**40

_DTYPES = (
    *(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")),
    *("bool", "float16", "float32", "float64", "complex64", "complex128", "string"),
)
_TARGET = ("fingerprint", "kind", "arch", "features", "cores", "ram", "caches", "accelerators", "display")


@dataclass(frozen=True)
class FileEntry:
    """One file: its name in the bundle, its size and its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Needs:
    """What the compiled files cannot run without; `arch` is None where they are portable."""

    arch: str | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The manifest as data.

    Attributes:
        name: what people call the bundle.
        created: when, in ISO 8601.
        portolan: the version of Portolan that made it.
        model: name of the original model.
        model_sha256: hash of the original model.
        signature: inputs and outputs of what is shipped.
        recipe: how it was made.
        versions: exact version of each distribution of the backend.
        target: the machine it was made for: fingerprint, kind, arch, features and sizes, without names or addresses.
        needs: what the compiled files cannot run without.
        rows: number of golden calls.
        tolerance: how far each output may be from the golden one.
        claims: metrics of this recipe, each measured, estimated or predicted.
        environment: what the claims were measured under.
        files: every file but the manifest, sorted by name.
        licence: a note on the licence of the model, if its owner gave one.
        profile: what a batch of each size takes, if that was measured.
    """

    name: str
    created: str
    portolan: str
    model: str
    model_sha256: str
    signature: Signature
    recipe: Recipe
    versions: Mapping[str, str]
    target: Mapping[str, Any]
    needs: Needs
    rows: int
    tolerance: Mapping[str, Tolerance]
    claims: Metrics
    files: tuple[FileEntry, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    profile: Profile | None = None

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "name": self.name,
            "created": self.created,
            "portolan": self.portolan,
            "model": {
                "name": self.model,
                "sha256": self.model_sha256,
                "inputs": [spec.to_json() for spec in self.signature.inputs],
                "outputs": [spec.to_json() for spec in self.signature.outputs],
            },
            "recipe": self.recipe.to_json(),
            "backend": {"name": self.recipe.backend, "versions": dict(self.versions)},
            "target": dict(self.target),
            "needs": {"arch": self.needs.arch, "features": list(self.needs.features)},
            "golden": {"rows": self.rows, "tolerance": {k: asdict(t) for k, t in self.tolerance.items()}},
            "claims": {k: m.to_json() for k, m in self.claims.items()},
            "environment": dict(self.environment),
            "files": [asdict(entry) for entry in self.files],
            "licence": self.licence,
            "profile": None if self.profile is None else self.profile.to_json(),
        }

    @property
    def sha256(self) -> str:
        """The bundle's hash: of the manifest less this value, and so of every file it lists."""
        return hashlib.sha256(fields.encode(self._body())).hexdigest()

    @property
    def size(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.bytes for entry in self.files)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain data."""
        return {**self._body(), "sha256": self.sha256}

    def encode(self) -> bytes:
        """The manifest as the bytes of manifest.json."""
        return fields.encode(self.to_json())

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Reads and checks the bytes of manifest.json.

        Raises:
            UsageError: not a bundle's manifest, or of a newer version.
            VerificationFailed: changed, or not as the format says, with the path of the fault.
        """
        if len(raw) > MOST_MANIFEST:
            raise broken(f"`{MANIFEST}` has more than {MOST_MANIFEST:,} bytes")
        data = fields.decode(raw, MANIFEST)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UsageError(
                f"`{MANIFEST}` is not the manifest of a bundle: its `format` is not `{FORMAT}`",
                hint="give a bundle that `portolan pack` made",
            )
        _check_version(Node(data, MANIFEST)["format_version"])
        stated = Node(data.pop("sha256", None), MANIFEST, "$.sha256").sha256()
        try:
            fits = hashlib.sha256(fields.encode(data)).hexdigest() == stated
            same = raw == fields.encode({**data, "sha256": stated})
        except (ValueError, RecursionError) as error:
            raise broken(f"`{MANIFEST}` cannot be read: {show(str(error))}") from error
        if not fits or not same:
            raise broken(f"`{MANIFEST}` was changed after it was written: it does not match its own sha256")
        return _manifest(Node(data, MANIFEST))


def describe(target: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle tells of a target (`Target.to_json()`): nothing that names or reaches the machine."""
    return {key: target[key] for key in _TARGET}


def _check_version(node: Node) -> None:
    version = node.whole(1)
    if version > VERSION:
        raise UsageError(
            f"the bundle has format version {version}, and this Portolan reads up to {VERSION}",
            hint="update Portolan: `pip install --upgrade portolan`",
            where=node.where,
        )


def _manifest(root: Node) -> Manifest:
    root.keys(
        *("format", "format_version", "name", "created", "portolan", "model", "recipe", "backend", "target", "needs"),
        *("golden", "claims", "environment", "files", "licence", "profile"),
    )
    signature = _signature(root["model"])
    recipe = _recipe(root["recipe"])
    rows, tolerance = _golden(root["golden"], signature)
    return Manifest(
        name=root["name"].text(longest=200),
        created=_time(root["created"]),
        portolan=root["portolan"].text(r"[0-9][0-9A-Za-z.+!-]*", "a version"),
        model=root["model"]["name"].text(),
        model_sha256=root["model"]["sha256"].sha256(),
        signature=signature,
        recipe=recipe,
        versions=_backend(root["backend"], recipe),
        target=_target(root["target"]),
        needs=_needs(root["needs"]),
        rows=rows,
        tolerance=tolerance,
        claims={_word(node, key): _claim(node) for key, node in root["claims"].items()},
        environment={key: node.plain() for key, node in root["environment"].items()},
        files=_files(root["files"]),
        licence=None if root["licence"].value is None else root["licence"].prose(),
        profile=None if root["profile"].value is None else _profile(root["profile"]),
    )


def _word(node: Node, key: str) -> str:
    return Node(key, node.file, node.path).text(r"[a-z][a-z0-9_]*(@[0-9.e+-]+qps)?", "the name of a metric")


def _time(node: Node) -> str:
    text = node.text(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)", "a time such as `2026-11-20T12:00:00Z`")
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise node.wrong("a time such as `2026-11-20T12:00:00Z`") from error
    return text


def _signature(node: Node) -> Signature:
    node.keys("name", "sha256", "inputs", "outputs")
    sides = {side: tuple(_spec(item) for item in node[side].list()) for side in ("inputs", "outputs")}
    for side, specs in sides.items():
        if len({spec.name for spec in specs}) != len(specs):
            raise broken("two tensors have the same name", node[side].where)
    if not sides["outputs"]:
        raise node["outputs"].wrong("at least one output")
    return Signature(**sides)


def _spec(node: Node) -> TensorSpec:
    node.keys("name", "dtype", "shape")
    shape = tuple(d.text() if isinstance(d.value, str) else d.whole() for d in node["shape"].list())
    return TensorSpec(node["name"].text(), node["dtype"].choice(*_DTYPES), shape)


def _recipe(node: Node) -> Recipe:
    node.keys("passes", "backend", "options", "target", "serving")
    node.plain()
    node["backend"].text(r"[A-Za-z][A-Za-z0-9_.-]*", "the name of a backend", 60)
    node["target"].text()
    for i, item in enumerate(node["passes"].list()):
        item["name"].text(r"[A-Za-z][A-Za-z0-9_.-]*", f"the name of pass {i}", 60)
    for key in ("options", "serving"):
        list(node[key].items())
    try:
        return Recipe.from_json(node.value, where=node.file)
    except UsageError as error:
        raise broken(error.message, node.where) from error


def _backend(node: Node, recipe: Recipe) -> dict[str, str]:
    node.keys("name", "versions")
    if node["name"].value != recipe.backend:
        raise node["name"].wrong(f"the recipe's backend `{recipe.backend}`")
    return {_dist(item, key): item.text(r"[0-9A-Za-z.+!_-]+", "a version") for key, item in node["versions"].items()}


def _dist(node: Node, key: str) -> str:
    return Node(key, node.file, node.path).text(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", "a distribution", 100)


def _target(node: Node) -> dict[str, Any]:
    node.keys(*_TARGET)
    for key in ("fingerprint", "arch"):
        node[key].text()
    node["kind"].choice("physical", "vm", "emulated", "simulated")
    for key in ("cores", "ram"):
        node[key].whole()
    for key in ("features", "accelerators"):
        for item in node[key].list():
            item.text()
    for _, item in node["caches"].items():
        item.whole()
    node["display"].prose()
    return dict(node.value)


def _needs(node: Node) -> Needs:
    node.keys("arch", "features")
    arch = None if node["arch"].value is None else node["arch"].text(r"[a-z0-9_]+", "an architecture, or null")
    return Needs(arch, tuple(item.text(r"[a-z0-9_.]+", "a processor feature") for item in node["features"].list()))


def _golden(node: Node, signature: Signature) -> tuple[int, dict[str, Tolerance]]:
    node.keys("rows", "tolerance")
    node["tolerance"].keys(*(spec.name for spec in signature.outputs))
    tolerance = {}
    for name, item in node["tolerance"].items():
        item.keys("rtol", "atol")
        tolerance[name] = Tolerance(item["rtol"].number(0), item["atol"].number(0))
    return node["rows"].whole(1), tolerance


def _claim(node: Node) -> Measurement:
    node.keys("value", "unit", "lo", "hi", "n", "kind")
    ends = {key: None if node[key].value is None else node[key].number() for key in ("lo", "hi")}
    return Measurement(
        value=node["value"].number(),
        unit=node["unit"].text(r".*", "a unit", 40),
        n=None if node["n"].value is None else node["n"].whole(),
        kind=node["kind"].choice("measured", "estimated", "predicted"),  # type: ignore[arg-type]
        **ends,
    )


def _profile(node: Node) -> Profile:
    node.keys("quantile", "unit", "batches")
    if node["quantile"].value != QUANTILE:
        raise node["quantile"].wrong(f"the quantile {QUANTILE}")
    node["unit"].choice("s")
    batches = {_size(item, key): _claim(item) for key, item in node["batches"].items()}
    if 1 not in batches:
        raise broken("the batch of 1 is missing", node["batches"].where)
    for size, found in batches.items():
        if found.value <= 0 or found.unit != "s":
            raise node["batches"][str(size)].wrong("seconds above 0")
    return Profile(batches)


def _size(node: Node, key: str) -> int:
    size = int(Node(key, node.file, node.path).text(r"[1-9][0-9]{0,3}", "a batch size"))
    if size > MOST_BATCH:
        raise node.wrong(f"a batch size of at most {MOST_BATCH}")
    return size


def _files(node: Node) -> tuple[FileEntry, ...]:
    files = []
    for item in node.list():
        item.keys("path", "bytes", "sha256")
        if not isinstance(item["path"].value, str):
            raise item["path"].wrong("a file name")
        files.append(FileEntry(item["path"].value, item["bytes"].whole(), item["sha256"].sha256()))
    paths = [entry.path for entry in files]
    check_names(paths, node.where)
    fixed = (RECIPE, INPUTS, OUTPUTS, COMPILED)
    for path in fixed:
        if path not in paths:
            raise broken(f"the file `{path}` is missing", node.where)
    for path in paths:
        if path not in fixed and not path.startswith("compiled/"):
            raise broken(f"the file `{path}` has no place in a bundle", node.where)
    if paths != sorted(paths):
        raise broken("the files are not sorted by name", node.where)
    if len(files) > MOST_FILES or sum(entry.bytes for entry in files) > MOST_BYTES:
        raise broken(f"more than {MOST_FILES:,} files or {MOST_BYTES >> 30:,} GiB", node.where)
    return tuple(files)
