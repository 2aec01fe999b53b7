"""Attempts to break a bundle through its zip file. Each one is made by hand, opened, and must be refused."""

from __future__ import annotations

import random
import stat
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portolan.bundle import open_bundle
from portolan.bundle.archive import Archive
from portolan.errors import PortolanError, VerificationFailed
from support.bundles import make_bundle, opened_or_refused, read_entries, zip_entries
from support.rawzip import Raw, raw_zip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("good"), "good.portolan")


@pytest.fixture(scope="module")
def entries(good: Path) -> list[Raw]:
    return [Raw(name.encode(), raw) for name, raw in read_entries(good)]


def refused(tmp_path: Path, raw: bytes, words: str) -> VerificationFailed:
    """Opens `raw` as a bundle, which must fail with these words and leave nothing behind."""
    before = set(tmp_path.parent.rglob("*"))
    path = tmp_path / "evil.portolan"
    path.write_bytes(raw)
    with pytest.raises(VerificationFailed, match=words) as caught:
        open_bundle(path)
    assert caught.value.exit_code == 6
    assert caught.value.hint
    assert set(tmp_path.parent.rglob("*")) == before | {path}
    return caught.value


def with_first(entries: list[Raw], **changes: object) -> list[Raw]:
    return [replace(entries[0], **changes), *entries[1:]]  # type: ignore[arg-type]


def test_the_handmade_zip_is_accepted_when_nothing_lies(tmp_path: Path, entries: list[Raw], good: Path) -> None:
    for made in (entries, [replace(entry, method=8) for entry in entries]):
        path = tmp_path / "same.portolan"
        path.write_bytes(raw_zip(made))
        with open_bundle(path) as bundle, open_bundle(good) as original:
            assert bundle.sha256 == original.sha256


def test_info_zips_times_and_owners_are_accepted(tmp_path: Path, entries: list[Raw]) -> None:
    extra = struct.pack("<2HBL", 0x5455, 5, 1, 0) + struct.pack("<2H3B", 0x7875, 3, 1, 0, 0)
    path = tmp_path / "times.portolan"
    path.write_bytes(raw_zip([replace(entry, extra=extra) for entry in entries]))
    with open_bundle(path) as bundle:
        assert bundle.manifest.name == "product"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "compiled/../../evil",
        "/etc/evil",
        "C:/evil",
        "C:evil",
        "..",
        ".",
        "compiled\\..\\evil",
        "\\\\host\\share",
        "compiled/./x",
        "compiled//x",
        "compiled/ x",
        "compiled/x.",
        "compiled/x ",
        "compiled/.hidden",
        "compiled/NUL",
        "compiled/com1.txt",
        "compiled/x:stream",
        "~/x",
        "compiled/\u202etxt.so",
        "compiled/a\u0301",
        "compiled/x\n",
        "a" * 300,
        "/".join("abcdefghij"),
        "compiled/$(id)",
        "compiled/-\x1b[31m",
    ],
)
def test_names_that_leave_the_folder_or_mean_two_things(tmp_path: Path, entries: list[Raw], name: str) -> None:
    flags = 0 if name.isascii() else 0x800
    error = refused(tmp_path, raw_zip([*entries, Raw(name.encode(), b"x", flags=flags)]), "the name `")
    assert error.message.isprintable()


def test_a_name_with_a_nul_hides_its_end(tmp_path: Path, entries: list[Raw]) -> None:
    refused(tmp_path, raw_zip([*entries, Raw(b"compiled/model.onnx\0.txt", b"x")]), "hides a part")


def test_a_name_twice(tmp_path: Path, entries: list[Raw]) -> None:
    refused(tmp_path, raw_zip([*entries, entries[-1]]), "one name twice")


@pytest.mark.parametrize("name", ["RECIPE.toml", "Compiled/weights.npz", "compiled/WEIGHTS.npz"])
def test_names_that_differ_only_in_case(tmp_path: Path, entries: list[Raw], name: str) -> None:
    refused(tmp_path, raw_zip([*entries, Raw(name.encode(), b"x")]), "only in case")


def test_a_file_that_is_also_a_folder(tmp_path: Path, entries: list[Raw]) -> None:
    refused(tmp_path, raw_zip([*entries, Raw(b"recipe.toml/x", b"x")]), "both a file and the folder")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (stat.S_IFLNK, "symbolic link"),
        (stat.S_IFCHR, "device"),
        (stat.S_IFBLK, "device"),
        (stat.S_IFIFO, "special"),
        (stat.S_IFSOCK, "special"),
        (stat.S_IFDIR, "is a folder"),
    ],
)
def test_entries_that_are_no_plain_files(tmp_path: Path, entries: list[Raw], kind: int, words: str) -> None:
    evil = Raw(b"compiled/evil", b"/etc/passwd", attributes=(kind | 0o777) << 16)
    refused(tmp_path, raw_zip([*entries, evil]), words)


@pytest.mark.parametrize(("dos", "words"), [(0x10, "folder"), (0x400, "symbolic"), (0x40, "device"), (0x08, "device")])
def test_dos_attributes_that_are_no_plain_files(tmp_path: Path, entries: list[Raw], dos: int, words: str) -> None:
    refused(tmp_path, raw_zip([*entries, Raw(b"compiled/evil", b"x", attributes=dos)]), words)


def test_a_folder_entry(tmp_path: Path, entries: list[Raw]) -> None:
    refused(tmp_path, raw_zip([*entries, Raw(b"compiled/", b"")]), "is a folder")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flags": 0x1}, "encrypted"),
        ({"flags": 0x8}, "feature of zip"),
        ({"flags": 0x20}, "feature of zip"),
        ({"flags": 0x40}, "feature of zip"),
        ({"flags": 0x2000}, "feature of zip"),
        ({"comment": b"hello"}, "feature of zip"),
        ({"method": 12}, "neither stored nor deflated"),
        ({"method": 14}, "neither stored nor deflated"),
        ({"method": 99}, "neither stored nor deflated"),
        ({"extra": struct.pack("<2HBL", 0x7075, 9, 1, 0) + b"evil"}, "rename or link"),
        ({"extra": struct.pack("<2H", 0x000D, 4) + b"link"}, "rename or link"),
        ({"extra": b"\1\2\3"}, "rename or link"),
    ],
)
def test_features_that_readers_disagree_about(
    tmp_path: Path, entries: list[Raw], changes: dict[str, object], words: str
) -> None:
    refused(tmp_path, raw_zip(with_first(entries, **changes)), words)


@pytest.mark.parametrize(
    "local",
    [
        {"name": b"manifest.jsom"},
        {"crc": 1},
        {"size": 5},
        {"packed": 5},
        {"method": 8},
        {"flags": 0x800},
        {"name": b"x"},
    ],
)
def test_local_headers_that_contradict_the_directory(
    tmp_path: Path, entries: list[Raw], local: dict[str, object]
) -> None:
    refused(tmp_path, raw_zip(with_first(entries, local=local)), "two headers, which disagree|no header of its own")


def test_overlapping_entries(tmp_path: Path, entries: list[Raw]) -> None:
    """The trick of bombs that need no ratio: many directory records share one run of compressed bytes."""
    again = [Raw(b"compiled/%d" % i, entries[0].data, at=0, body=b"", packed=len(entries[0].data)) for i in range(50)]
    refused(tmp_path, raw_zip([*entries, *again]), "overlaps another entry")


def test_an_entry_that_swallows_the_next_header(tmp_path: Path, entries: list[Raw]) -> None:
    first = entries[0]
    size = len(first.data) + 40
    made = [replace(first, size=size, packed=size), *entries[1:]]
    refused(tmp_path, raw_zip(made), "overlaps another entry")


def test_bytes_before_between_and_behind(tmp_path: Path, entries: list[Raw]) -> None:
    script = b"#!/bin/sh\necho evil\n"
    second = [entries[0], replace(entries[1], before=script), *entries[2:]]
    refused(tmp_path, raw_zip(entries, gap=script), "belong to no entry")
    refused(tmp_path, raw_zip(second), "hidden bytes")
    refused(tmp_path, raw_zip(entries, tail=script), "does not end as a zip file does")
    refused(tmp_path, raw_zip(entries, comment=script), "does not end as a zip file does|comment")
    refused(tmp_path, raw_zip([replace(entries[0], before=b"PK\3\4" + script), *entries[1:]]), "hidden bytes")


def test_two_zips_one_after_the_other(tmp_path: Path, entries: list[Raw]) -> None:
    """Readers that search from the front and from the end see different files."""
    evil = raw_zip([Raw(b"manifest.json", b"{}")])
    refused(tmp_path, evil + raw_zip(entries), "belong to no entry|hidden|disagree")


@pytest.mark.parametrize("count", [0, 1, 7, 60_000])
def test_a_directory_that_counts_wrongly(tmp_path: Path, entries: list[Raw], count: int) -> None:
    refused(tmp_path, raw_zip(entries, count=count), "two directories|more than a bundle may have")


def test_a_zip64_end_that_disagrees(tmp_path: Path, entries: list[Raw]) -> None:
    """With a zip64 record in front of the end, the standard library would follow that one."""
    raw = raw_zip(entries)
    evil_directory = raw_zip([Raw(b"evil", b"x")])
    start = raw.rindex(b"PK\5\6")
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 50, len(evil_directory))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start, 1)
    refused(tmp_path, raw[:start] + record + locator + raw[start:], "belong to no entry|disagree|not a readable")
    forced = raw[start : start + 8] + b"\xff\xff\xff\xff" + raw[start + 12 :]
    refused(tmp_path, raw[:start] + forced, "zip64")


def test_the_standard_librarys_zip64_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.zip"
    with zipfile.ZipFile(path, "w") as out:
        for i in range(3):
            with out.open(zipfile.ZipInfo(f"f{i}"), "w", force_zip64=True) as entry:
                entry.write(b"abc")
    with path.open("rb") as file:
        archive = Archive(file, "big.zip")
        assert {name: b"".join(archive.chunks(name)) for name in archive.sizes} == {f"f{i}": b"abc" for i in range(3)}


def test_a_bomb(tmp_path: Path, entries: list[Raw]) -> None:
    zeros = bytes(2**26)
    refused(tmp_path, raw_zip([*entries, Raw(b"compiled/zeros", zeros, method=8)]), "zip bomb")


def test_a_bomb_that_declares_little(tmp_path: Path, entries: list[Raw]) -> None:
    """The declared size passes every limit; what comes out of the stream is more, and is cut there."""
    packed = Raw(b"recipe.toml", bytes(2**24), method=8)
    body = packed.stored()
    index = next(i for i, entry in enumerate(entries) if entry.name == b"recipe.toml")
    lying = Raw(b"recipe.toml", entries[index].data, method=8, body=body)
    made = [*entries[:index], lying, *entries[index + 1 :]]
    refused(tmp_path, raw_zip(made), "is damaged|checksum")


def test_a_stream_that_ends_early(tmp_path: Path, entries: list[Raw]) -> None:
    index = next(i for i, entry in enumerate(entries) if entry.name == b"recipe.toml")
    entry = entries[index]
    for length in (0, 3, 20):
        lying = replace(entry, method=8, body=replace(entry, method=8).stored()[:length] or b"\3\0")
        made = [*entries[:index], lying, *entries[index + 1 :]]
        refused(tmp_path, raw_zip(made), "is damaged|does not have the size|grows")


def test_sizes_that_differ_from_the_manifest(tmp_path: Path, entries: list[Raw]) -> None:
    made = [replace(e, data=e.data + b"#") if e.name == b"recipe.toml" else e for e in entries]
    refused(tmp_path, raw_zip(made), "bytes, and the manifest says")


@pytest.mark.parametrize("name", ["compiled/weights.npz", "golden/inputs.npz", "recipe.toml"])
def test_a_file_that_is_missing(tmp_path: Path, entries: list[Raw], name: str) -> None:
    refused(tmp_path, raw_zip([e for e in entries if e.name != name.encode()]), "not in the bundle")


@pytest.mark.parametrize("name", ["extra.txt", "compiled/extra.so", "golden/x.npy", "sitecustomize.py"])
def test_a_file_too_many(tmp_path: Path, entries: list[Raw], name: str) -> None:
    refused(tmp_path, raw_zip([*entries, Raw(name.encode(), b"x")]), "is not in the manifest")


def test_too_many_entries(tmp_path: Path, entries: list[Raw]) -> None:
    many = [Raw(b"compiled/%d" % i, b"") for i in range(25_000)]
    refused(tmp_path, raw_zip([*entries, *many]), "more than a bundle may have")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_anywhere(tmp_path: Path, good: Path, share: float) -> None:
    raw = good.read_bytes()
    path = tmp_path / "cut.portolan"
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(PortolanError) as caught:
        open_bundle(path)
    assert caught.value.exit_code in (2, 6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), bits=st.integers(1, 255))
def test_any_byte_of_the_zip_flipped(tmp_path: Path, good: Path, data: st.DataObject, bits: int) -> None:
    """Refused, or, in a byte that carries nothing such as a time stamp, exactly the same bundle."""
    raw = bytearray(good.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= bits
    path = tmp_path / "flipped.portolan"
    path.write_bytes(raw)
    opened = opened_or_refused(path)
    if opened is None:
        return
    with opened, open_bundle(good) as original:
        assert opened.sha256 == original.sha256
        for entry in original.manifest.files:
            assert opened.read(entry.path) == original.read(entry.path)


def test_many_bytes_of_the_zip_overwritten(tmp_path: Path, good: Path) -> None:
    """Beyond single flips: whole fields of the headers replaced, the values that break parsers."""
    raw, rng = good.read_bytes(), random.Random(5)
    path = tmp_path / "fuzzed.portolan"
    marks = [i for i in range(len(raw) - 4) if raw[i : i + 2] == b"PK"]
    for _ in range(400):
        at = rng.choice(marks) + rng.randrange(4, 46)
        width = rng.choice((2, 4, 8))
        value = rng.choice((b"\xff" * width, b"\0" * width, rng.randbytes(width)))
        path.write_bytes((raw[:at] + value + raw[at + width :])[: len(raw)])
        if bundle := opened_or_refused(path):
            assert bundle.manifest.name == "product"
            bundle.close()


def test_it_changes_between_the_check_and_the_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "blob").write_bytes(b"good" * 2**18)  # more than any buffer holds
    path = make_bundle(tmp_path, "swap.portolan")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with open_bundle(path) as bundle:
        swapped = path.read_bytes().replace(b"goodgoodgoodgood", b"evilevilevilevil")
        with path.open("r+b") as file:
            file.write(swapped)
        with pytest.raises(VerificationFailed, match=r"is damaged|changed after"):
            bundle._unpacked()
    assert not list(tmp_path.glob("portolan-bundle-*"))


def test_unpacking_is_private_and_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    path = make_bundle(tmp_path, "tidy.portolan")
    with open_bundle(path) as bundle:
        assert not list(tmp_path.glob("portolan-bundle-*")), "opening writes nothing"
        folder = bundle._unpacked()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert sorted(path.name for path in (folder / "compiled").iterdir()) == ["compiled.json", "weights.npz"]
    assert not folder.exists()


def test_a_zip_of_another_kind(tmp_path: Path) -> None:
    path = zip_entries(tmp_path / "other.portolan", [("readme.txt", b"hello")])
    with pytest.raises(PortolanError, match=r"is not a bundle: it has no `manifest\.json`") as caught:
        open_bundle(path)
    assert caught.value.exit_code == 2
