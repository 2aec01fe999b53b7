"""Fetching for targets, with scripted tools in the place of apt, dpkg and qemu: nothing comes from the network."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from portolan import emulation
from portolan.emulation import commands, debian, fill, kinds, qemu, wheels
from portolan.emulation.kinds import KINDS, Kind, Pin
from portolan.emulation.make import Wish, add
from portolan.errors import DiskFull, NoBackend, PortolanError, UnknownName, UsageError, VerificationFailed
from portolan.targets import _added, _cpuid
from portolan.targets.local import local


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(_added.VARIABLE, str(tmp_path / "targets"))
    return tmp_path / "targets"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH, to which scripted programs are added."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(0o755)


def archive(folder: Path, contents: dict[str, str], log: Path) -> None:
    """An apt that has these packages, each a file with a few letters, and writes down what was asked for."""
    cases = "".join(
        f"  {name}=*|{name}) printf %s {shlex.quote(text)} > {name}_1%3a2.0_arm64.deb;;\n"
        for name, text in contents.items()
    )
    missing = '  *) echo "E: Version of $word was not found" >&2; exit 100;;'
    program(
        folder,
        "apt-get",
        f'echo "$@" >> {shlex.quote(str(log))}\n'
        'while [ $# -gt 0 ]; do case "$1" in -o) shift 2;; -q) shift;; *) break;; esac; done\n'
        '[ "$1" = update ] && exit 0\nshift\n'
        f'for word in "$@"; do case "$word" in\n{cases}{missing}\nesac; done',
    )


def pin(name: str, text: str, version: str = "1:2.0") -> Pin:
    return Pin(name, version, hashlib.sha256(text.encode()).hexdigest(), len(text))


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.gpg"
    path.write_text("")
    monkeypatch.setattr(debian, "_KEYRING", path)


def made(tmp_path: Path, *, latest: bool = False) -> debian.Debian:
    return debian.Debian(tmp_path / "fetched", "arm64", "http://mirror", latest=latest, say=lambda line: None)


# --- Debian's packages


@pytest.mark.usefixtures("keys")
def test_what_was_fetched_is_not_fetched_again(tools: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    archive(tools, {"a": "AA", "b": "BB"}, log)
    first, second = pin("a", "AA"), pin("b", "BB")
    (path,) = made(tmp_path).fetch([first])
    assert path.read_text() == "AA"
    files = made(tmp_path).fetch([first, second])
    assert [f.read_text() for f in files] == ["AA", "BB"]
    asked = [line.split("download ")[1] for line in log.read_text().splitlines() if "download" in line]
    assert asked == ["a=1:2.0", "b=1:2.0"]
    assert made(tmp_path).versions([first, second]) == {"a": "1:2.0", "b": "1:2.0"}


@pytest.mark.usefixtures("keys")
def test_a_file_that_was_cut_short_is_fetched_again(tools: Path, tmp_path: Path) -> None:
    archive(tools, {"a": "AAAA"}, tmp_path / "log")
    (path,) = made(tmp_path).fetch([pin("a", "AAAA")])
    path.write_text("AA")
    (path,) = made(tmp_path).fetch([pin("a", "AAAA")])
    assert path.read_text() == "AAAA"


@pytest.mark.usefixtures("keys")
def test_another_file_under_the_pinned_name_is_refused(tools: Path, tmp_path: Path) -> None:
    archive(tools, {"a": "something else"}, tmp_path / "log")
    with pytest.raises(NoBackend, match="another hash"):
        made(tmp_path).fetch([pin("a", "AA")])


@pytest.mark.usefixtures("keys")
def test_an_archive_that_has_moved_on(tools: Path, tmp_path: Path) -> None:
    archive(tools, {"b": "BB"}, tmp_path / "log")
    with pytest.raises(NoBackend, match="moved on") as found:
        made(tmp_path).fetch([pin("a", "AA")])
    assert found.value.hint == "--latest takes the versions that it has now"
    log = tmp_path / "log"
    archive(tools, {"a": "newer"}, log)
    (path,) = made(tmp_path, latest=True).fetch([pin("a", "AA")])
    assert path.read_text() == "newer"
    assert log.read_text().splitlines()[-1].endswith("download a")


@pytest.mark.usefixtures("keys")
def test_no_network(tools: Path, tmp_path: Path) -> None:
    program(tools, "apt-get", "echo 'E: Could not resolve mirror' >&2; exit 100")
    with pytest.raises(NoBackend, match="E: Could not resolve mirror") as found:
        made(tmp_path).fetch([pin("a", "AA")])
    assert "what was fetched is kept" in (found.value.hint or "")


def test_no_apt_and_no_keys(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_KEYRING", tmp_path / "nowhere")
    with pytest.raises(NoBackend, match="keys are missing") as keyless:
        made(tmp_path).fetch([pin("a", "AA")])
    assert keyless.value.hint == "apt-get install debian-archive-keyring"
    (tmp_path / "nowhere").write_text("")
    with pytest.raises(NoBackend, match="`apt-get` is not installed"):
        made(tmp_path).fetch([pin("a", "AA")])


@pytest.mark.parametrize(
    ("argv", "kind", "said"),
    [
        (["/nowhere/tool"], NoBackend, "fetching failed: No such file or directory: `/nowhere/tool`"),
        (["/bin/sh", "-c", "exec sleep 60"], NoBackend, "fetching took longer than 0.2 s"),
        (["/bin/sh", "-c", "echo No space left on device; exit 1"], DiskFull, "the disk is full: fetching failed"),
        (
            ["/bin/sh", "-c", "echo begin; echo 'E: not here'; echo end; exit 2"],
            NoBackend,
            "fetching failed: E: not here",
        ),
        (["/bin/sh", "-c", "exit 3"], NoBackend, "fetching failed: exit code 3"),
    ],
)
def test_tools_that_fail(argv: list[str], kind: type[PortolanError], said: str, tmp_path: Path) -> None:
    with pytest.raises(kind) as caught:
        commands.run(argv, doing="fetching", folder=tmp_path, hint="mend it", seconds=0.2)
    assert caught.value.message == said
    assert caught.value.hint == ("mend it" if kind is NoBackend else DiskFull("x").hint)


def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoBackend, match="pip is not installed beside Portolan") as caught:
        wheels.install("none.txt", "aarch64", tmp_path, tmp_path, print)
    assert caught.value.hint == f"{sys.executable} -m ensurepip"


def test_every_pin_is_read_and_none_is_given_twice() -> None:
    for file in sorted(kinds.PINS.glob("*.txt")):
        if file.stem.endswith("wheels"):
            lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
            assert all(re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
            continue
        found = kinds.pins(file.name)
        assert len({pin.name for pin in found}) == len(found) > 0
        assert all(re.fullmatch("[0-9a-f]{64}", pin.sha256) for pin in found)


def test_a_line_that_pins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text("# a file\na 1 abc 7\nb 2\n")
    monkeypatch.setattr(kinds, "PINS", tmp_path)
    with pytest.raises(PortolanError) as found:
        kinds.pins("x.txt")
    assert found.value.where == "x.txt:3"


# --- the emulator

OLD = "echo qemu-aarch64 version 7.2.22; exit 0"


def test_an_emulator_on_the_path_is_used_where_it_is_new_enough(tools: Path, tmp_path: Path) -> None:
    program(tools, "qemu-aarch64", "echo 'qemu-aarch64 version 10.1.0 (Debian)'")
    found = qemu.emulator(KINDS["aarch64"], tmp_path, lambda arch: pytest.fail("nothing is to be fetched"))
    assert found == (str(tools / "qemu-aarch64"), "10.1")


@pytest.mark.parametrize(("script", "said"), [(OLD, "is version 7.2"), (None, "is not installed")])
def test_no_emulator_and_no_way_to_fetch_one(script: str | None, said: str, tools: Path, tmp_path: Path) -> None:
    if script:
        program(tools, "qemu-aarch64", script)
    with pytest.raises(NoBackend, match=said) as found:
        qemu.emulator(KINDS["aarch64"], tmp_path, lambda arch: pytest.fail("there is no apt"))
    assert found.value.message.endswith("needs 10.0 or newer")
    assert found.value.hint == "install `qemu-user` with your system's package manager"


def test_a_kind_that_needs_this_machines_interpreter(tools: Path, tmp_path: Path) -> None:
    order = fill.Order(Kind("pdp", "", "pdp11", emulator="qemu-pdp11"), "x", tmp_path, "", False, print)
    with pytest.raises(NoBackend, match="and not pdp11"):
        fill.fill(order, tmp_path)


# --- the verb


@pytest.mark.parametrize(
    ("wish", "kind", "said"),
    [
        (Wish("arm", None), UsageError, "does not say what to emulate"),
        (Wish("arm", "aarch46"), UnknownName, "no kind of target named `aarch46`"),
        (Wish("arm", "aarch64", "cortex-a7"), UnknownName, "no processor of `aarch64` named `cortex-a7`"),
        (Wish("web", "wasm", "v8"), UsageError, "has no choice of processors"),
        (Wish("local", "aarch64"), UsageError, "`local` is a target already"),
        (Wish("a/b", "aarch64"), UsageError, "no name for a target"),
    ],
)
def test_what_cannot_be_made(wish: Wish, kind: type[PortolanError], said: str, root: Path) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        add(wish, print)
    assert not root.exists()


def test_a_target_that_exists_is_not_made_again(root: Path) -> None:
    (root / "arm").mkdir(parents=True)
    with pytest.raises(UsageError) as found:
        add(Wish("arm", "aarch64"), print)
    assert "--force" in (found.value.hint or "")


@pytest.mark.usefixtures("tools")
def test_a_dry_run_writes_nothing_and_asks_nobody(root: Path) -> None:
    found = emulation.act("add", "arm", Wish("arm", "aarch64"), print, dry_run=True)["targets"][0]
    assert found["cpu"] == "neoverse-v1"
    assert [line.split(",")[0] for line in found["fetches"]] == [
        "qemu-user", "26 packages of Debian for aarch64", "Python packages for aarch64",
    ]  # fmt: skip
    assert not root.exists()


def test_actions_and_names(root: Path) -> None:
    with pytest.raises(UnknownName, match="no action of `portolan target` named `ad`"):
        emulation.act("ad", "x", Wish("x", None), print)
    with pytest.raises(UsageError, match="needs a name"):
        emulation.act("add", None, Wish("", "wasm"), print)
    assert emulation.act("list", None, Wish("", None), print) == {"action": "list", "targets": []}


def ours(tools: Path, monkeypatch: pytest.MonkeyPatch, emulator: str) -> Wish:
    """A kind of target that is this machine behind a scripted emulator."""
    here = local.detect().arch
    monkeypatch.setitem(KINDS, "mine", Kind("mine", "", here, ("x",), "qemu-mine", (1, 0)))  # type: ignore[index]
    program(tools, "qemu-mine", f'[ "$1" = --version ] && {{ echo version 1.0; exit; }}\n{emulator}')
    return Wish("me", "mine")


def test_a_target_whose_emulator_crashes_is_not_made(root: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = ours(tools, monkeypatch, "kill -SEGV $$")
    with pytest.raises(NoBackend, match=r"nothing answers under `qemu-mine`: crashed with SIGSEGV"):
        add(wish, lambda line: None)
    assert _added.names() == []
    assert [p.name for p in root.iterdir()] == [".lock"]


def test_a_target_that_answers_wrongly_is_not_made(root: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = ours(tools, monkeypatch, 'shift 2; exec "$@"')
    monkeypatch.setattr("portolan.emulation.check._TOLERANCE", -1.0)
    with pytest.raises(VerificationFailed, match="wrongly"):
        add(wish, lambda line: None)
    assert _added.names() == []


def test_a_target_is_made_removed_and_made_anew(root: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = ours(tools, monkeypatch, 'shift 2; exec "$@"')
    made = add(wish, lambda line: None)
    assert made["target"]["kind"] == "emulated"
    assert made["target"]["reach"] == [str(tools / "qemu-mine"), "-cpu", "x", sys.executable]
    assert made["packages"]["qemu-user"] == "1.0"
    assert "onnxruntime" in made["packages"]
    before = _added.read("me").made
    again = add(Wish("me", "mine", force=True), lambda line: None)
    assert again["name"] == "me"
    assert _added.read("me").made >= before
    assert sorted(p.name for p in root.iterdir()) == [".lock", "me"]
    emulation.act("remove", "me", wish, print)
    assert _added.names() == []


@pytest.mark.skipif(local.detect().arch != "x86_64", reason="CPUID is x86's")
def test_cpuid_says_what_the_kernel_says() -> None:
    found, kernel = set(_cpuid.features()), set(local.detect().features)
    assert "sse2" in found
    for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "fma", "popcnt"):
        assert (name in found) == (name in kernel), name
