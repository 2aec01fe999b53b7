"""The ledger: append-only, shared by processes, and plain about files that are none."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.core.ledger import Ledger
from portolan.errors import UsageError

_WRITE = """
import sys
from pathlib import Path
from portolan.core.ledger import Ledger
who, path = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(Path(path))
for i in range(50):
    ledger.append("event", who, {"i": i})
    ledger.number("trial", f"{i}", {"by": who})
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.sqlite")
    yield found
    found.close()


def test_the_latest_event_speaks(ledger: Ledger) -> None:
    assert ledger.latest("trial", "a") is None
    first = ledger.append("trial", "a", {"v": 1})
    second = ledger.append("trial", "a", {"v": 2})
    ledger.append("trial", "b", {"v": 3})
    ledger.append("other", "a", {"v": 4})
    assert first < second
    assert ledger.latest("trial", "a") == {"v": 2}


def test_all_events_come_oldest_first(ledger: Ledger) -> None:
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        ledger.append("trial", key, {"v": value})
    ledger.append("other", "a", {})
    assert ledger.all("trial") == [("a", {"v": 1}), ("b", {"v": 2}), ("a", {"v": 3})]
    assert ledger.all("trial", "a") == [("a", {"v": 1}), ("a", {"v": 3})]
    assert ledger.all("none") == []


def test_numbers_are_places_and_stay(ledger: Ledger) -> None:
    assert [ledger.number("n", key, {"key": key}) for key in "abacb"] == [0, 1, 0, 2, 1]
    assert ledger.all("n") == [("a", {"key": "a"}), ("b", {"key": "b"}), ("c", {"key": "c"})]
    assert ledger.number("m", "c", {}) == 0


def test_a_number_that_fails_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(TypeError):
        ledger.number("n", "a", {"no json": object()})
    assert ledger.all("n") == []
    assert ledger.number("n", "b", {}) == 0


@pytest.mark.parametrize("statement", ["UPDATE events SET data = '{}'", "DELETE FROM events"])
def test_nothing_is_changed_or_deleted(ledger: Ledger, statement: str) -> None:
    ledger.append("trial", "a", {"v": 1})
    with sqlite3.connect(ledger.path) as other, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        other.execute(statement)
    other.close()
    assert ledger.all("trial") == [("a", {"v": 1})]


def test_what_is_written_is_there_for_the_next(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "l.sqlite")
    first.append("trial", "a", {"text": "Grüße ≤ 8 ms", "nested": [{"x": None}]})
    second = Ledger(tmp_path / "l.sqlite", writable=False)
    assert second.latest("trial", "a") == {"text": "Grüße ≤ 8 ms", "nested": [{"x": None}]}
    first.close()
    second.close()


def test_values_that_are_not_finite_come_back(ledger: Ledger) -> None:
    ledger.append("trial", "a", {"inf": math.inf, "nan": math.nan})
    found = ledger.latest("trial", "a")
    assert found is not None
    assert found["inf"] == math.inf
    assert math.isnan(found["nan"])


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["a", "b", "c'--", ""])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(keys, keys, st.dictionaries(st.text(max_size=4), plain, max_size=3)), max_size=8))
def test_it_holds_what_a_list_would(tmp_path_factory: pytest.TempPathFactory, events: list) -> None:  # type: ignore[type-arg]
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "l.sqlite")
    for kind, key, data in events:
        ledger.append(kind, key, data)
    for kind, key, _ in events:
        mine = [(k, d) for n, k, d in events if n == kind]
        assert ledger.all(kind) == mine
        assert ledger.latest(kind, key) == [d for k, d in mine if k == key][-1]
    ledger.close()


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    """Nothing is lost, and both agree on the numbers, even as both make the file."""
    path = tmp_path / "l.sqlite"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITE, who, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for who in ("left", "right")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    ledger = Ledger(path, writable=False)
    for who in ("left", "right"):
        assert [data["i"] for _, data in ledger.all("event", who)] == list(range(50))
    assert sorted(int(key) for key, _ in ledger.all("trial")) == list(range(50))
    ledger.close()


@pytest.mark.parametrize("writable", [True, False])
def test_another_file_is_no_ledger(tmp_path: Path, writable: bool) -> None:
    path = tmp_path / "l.sqlite"
    path.write_bytes(b"this is a text, and a long one at that\n" * 100)
    with pytest.raises(UsageError) as caught:
        Ledger(path, writable=writable).all("trial")
    assert caught.value.message == f"`{path}` is not a ledger"
    assert caught.value.hint == "name another folder: --study DIR"


def test_a_damaged_ledger_is_said(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path)
    for i in range(200):
        ledger.append("trial", str(i), {"text": "x" * 200})
    ledger.close()
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(1) * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is not a ledger"):
        Ledger(path).all("trial")


def test_a_newer_ledger_is_said(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    for writable in (True, False):
        with pytest.raises(UsageError) as caught:
            Ledger(path, writable=writable)
        assert caught.value.message == f"`{path}` was written by a newer Portolan"
        assert caught.value.hint == "pip install -U portolan"


def test_reading_does_not_make_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Ledger(tmp_path / "l.sqlite", writable=False)
    assert caught.value.message == f"there is no study in `{tmp_path}`"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    Ledger(path).close()
    reader = Ledger(path, writable=False)
    with pytest.raises(UsageError) as caught:
        reader.append("trial", "a", {})
    assert caught.value.message == f"`{path}` cannot be written"
    assert caught.value.hint == "name a folder that can be written: --study DIR"
    reader.close()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        Ledger(tmp_path / "nowhere" / "l.sqlite")
