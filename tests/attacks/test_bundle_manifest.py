"""Attempts to break a bundle through its manifest, by somebody who knows the format.

`reseal` makes every digest right again, so that what is refused here is refused for what it is, not for a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from portolan.bundle import open_bundle
from portolan.bundle.manifest import MOST_MANIFEST
from portolan.errors import UsageError
from support.bundles import refused, reseal

# The manifest


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe{\0}\0", "not valid JSON"),
        (b"{" * 10, "not valid JSON"),
        (b"[" * 200_000, "not valid JSON: too deep"),
        (b'{"a": 1, "a": 2}', "a key appears twice"),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b'{"format": -Infinity}', "is not JSON"),
        (b'{"x": ' + b"9" * 6000 + b"}", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b" " * (MOST_MANIFEST + 1), "has more than 1,048,576 bytes"),
    ],
)
def test_a_manifest_that_is_no_json(folder: Path, raw: bytes, words: str) -> None:
    (folder / "manifest.json").write_bytes(raw)
    assert refused(folder, words).message.isprintable()


@pytest.mark.parametrize("raw", [b"[]", b"null", b"{}", b'{"format": "zip"}', b'"portolan-bundle"'])
def test_a_manifest_of_something_else(folder: Path, raw: bytes) -> None:
    (folder / "manifest.json").write_bytes(raw)
    with pytest.raises(UsageError, match="is not the manifest of a bundle") as caught:
        open_bundle(folder)
    assert caught.value.exit_code == 2


def test_a_newer_format(folder: Path) -> None:
    with pytest.raises(UsageError, match="format version 2, and this Portolan reads up to 1") as caught:
        open_bundle(reseal(folder, lambda data: data.update(format_version=2, something_new={})))
    assert "pip install --upgrade portolan" in str(caught.value.hint)


def test_a_claim_made_better_without_the_seal(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"value": 6.9', '"value": 0.9'))
    refused(folder, "was changed after it was written")


def test_another_spelling_of_the_same_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    refused(folder, "was changed after it was written")


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the member at `path`, such as `golden.rows` or `files.0.bytes`."""

    def change(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = data
        for key in parents:
            place = place[int(key) if isinstance(place, list) else key]
        place[int(last) if isinstance(place, list) else last] = value

    return change


SECONDS = {"value": 0.1, "unit": "s", "lo": None, "hi": None, "n": 9, "kind": "measured"}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("name", "", "expected text of one line"),
        ("name", 7, "expected text of one line, got `7`"),
        ("name", "\x1b[2Jgone", "expected text"),
        ("name", "\ud800", "expected text"),
        ("name", "x" * 201, "expected text"),
        ("name", "\u202egnp.exe", "expected text"),
        ("created", "yesterday", "expected a time"),
        ("created", "2026-13-01T00:00:00Z", "expected a time"),
        ("portolan", "latest", "expected a version"),
        ("format_version", 0, "at least 1"),
        ("format_version", True, "at least 1"),
        ("format_version", "1", "at least 1"),
        ("format_version", 1.0, "at least 1"),
        ("model.sha256", "abc", "64 hexadecimal"),
        ("model.inputs", {}, "expected a list, got an object"),
        ("model.outputs", [], "at least one output"),
        ("model.inputs.0.dtype", "object", "expected `int8` or"),
        ("model.inputs.0.shape", [-1], "at least 0"),
        ("model.inputs.0.shape", "4", "expected a list"),
        ("model.outputs.1.name", "y", "two tensors have the same name"),
        ("model.extra", 1, "there is no key `extra`"),
        ("recipe.backend", "../evil", "the name of a backend"),
        ("recipe.backend", 7, "the name of a backend"),
        ("recipe.backend", "openvino", "the recipe's backend `openvino`"),
        ("recipe.passes", [{}], "the name of pass 0"),
        ("recipe.options", [], "expected an object"),
        ("recipe.extra", 1, "there is no key `extra`"),
        ("recipe.serving", [], "expected an object"),
        ("recipe.serving", {"max_bach": 1}, "no key `max_bach`"),
        ("recipe.serving", {"max_batch": 10**9}, "a whole number from 1 to 4,096"),
        ("recipe.serving", {"replicas": [0, 0]}, "the fewest and the most"),
        ("recipe.serving", {"replicas": [1, 10**9]}, "the fewest and the most"),
        ("recipe.serving", {"deadline": -1}, "a number of seconds above 0"),
        ("backend.versions", {"--index-url=evil": "1"}, "a distribution"),
        ("backend.versions", {"x": "1; rm -rf"}, "a version"),
        ("target.reach", ["ssh", "home"], "there is no key `reach`"),
        ("target.kind", "cloud", "expected `physical` or"),
        ("target.cores", -1, "at least 0"),
        ("needs.arch", "X 86", "an architecture"),
        ("needs.features", [1], "a processor feature"),
        ("golden.rows", 0, "at least 1"),
        ("golden.rows", 4, "make 5 calls, and the manifest says 4"),
        ("golden.rows", 10**30, "at least 1"),
        ("golden.tolerance", {}, "the key `y` is missing"),
        ("golden.tolerance.y.atol", -1, "a number of at least 0"),
        ("golden.tolerance.y.atol", 1e301, "a number of"),
        ("golden.tolerance.y.atol", True, "a number of"),
        ("claims.latency_p95.kind", "certain", "expected `measured` or"),
        ("claims", {"\x1b[31m": {}}, "expected text of one"),
        ("claims.latency_p95.value", "fast", "expected a number"),
        ("claims", {"Wow!": {}}, "the name of a metric"),
        ("environment", {"a": "\x07"}, "without control characters"),
        ("environment", {"\n": 1}, "text of one line"),
        ("environment", {"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}, "nested less deeply"),
        ("licence", 3, "text without control"),
        ("licence", "\x1b]0;evil\x07", "without control"),
        ("files.0.bytes", -1, "at least 0"),
        ("files.0.path", 3, "expected a file name"),
        ("files.0.sha256", "A" * 64, "64 hex"),
        ("files", [], "is missing"),
        ("files.0.path", "compiled/zzz", "is missing|not sorted"),
        ("surprise", 1, "no key `surprise`"),
        ("claims", {"latency_p99@qps": {}}, "the name of a metric"),
        ("profile", 3, "expected an object"),
        ("profile", {"quantile": 0.5, "unit": "s", "batches": {}}, "expected the quantile 0.95"),
        ("profile.unit", "ms", "expected `s`"),
        ("profile.batches", {}, "the batch of 1 is missing"),
        ("profile.batches.01", {}, "expected a batch size"),
        ("profile.batches.9999", SECONDS, "at most 4096"),
        ("profile.batches.1000000000000000000000000", SECONDS, "expected a batch size"),
        ("profile.batches.1.value", 0, "expected seconds above 0"),
        ("profile.batches.1.value", -1.0, "expected seconds above 0"),
        ("profile.batches.1.value", None, "expected a number"),
        ("profile.batches.1.unit", "h", "expected seconds above 0"),
        ("profile.batches.1.extra", 1, "no key `extra`"),
        ("profile.extra", 1, "no key `extra`"),
        ("needs", None, "expected an object, got null"),
        ("files.0", [], "expected an object, got a list"),
    ],
)
def test_a_sealed_manifest_that_says_nonsense(folder: Path, path: str, value: Any, words: str) -> None:
    error = refused(reseal(folder, put(path, value), rehash=False), words)
    assert error.message.isprintable()
    assert error.where is not None
    assert error.where.isprintable()


@pytest.mark.parametrize("key", ["name", "model", "golden", "files", "licence", "needs", "claims", "target", "profile"])
def test_a_sealed_manifest_that_lacks_a_key(folder: Path, key: str) -> None:
    refused(reseal(folder, lambda data: data.pop(key)), f"the key `{key}` is missing", "manifest.json: $")


def test_files_out_of_order_or_too_large(folder: Path) -> None:
    refused(reseal(folder, lambda data: data["files"].reverse()), "are not sorted")
    reseal(folder, lambda data: data["files"].reverse())
    refused(reseal(folder, put("files.0.bytes", 2**41), rehash=False), "more than 10,000 files or 1,024 GiB")


def test_a_misspelt_key_is_answered_with_the_real_one(folder: Path) -> None:
    error = refused(reseal(folder, put("model.input", [])), "there is no key `input`", "manifest.json: $.model")
    assert error.hint == "did you mean `inputs`?"
