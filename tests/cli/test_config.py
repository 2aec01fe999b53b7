"""Configuration: which value wins, what lists and paths mean, and which line is blamed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Api, run

from portolan.cli.config import find_line, split


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def user(place: Path) -> Path:
    return write(place.parent / "home/.config/portolan/config.toml", "seed = 1\nbudget = '1s'\njobs = 9\n")


def seed(api: Api, *args: str) -> int:
    ran = run("optimize", "m.onnx", *args)
    assert ran.code == 0, ran.err
    return api.keywords["seed"]


def test_each_place_wins_over_the_next(api: Api, place: Path, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seed(api) == 1
    write(place / "portolan.toml", "seed = 2\n")
    assert seed(api) == 2
    write(place / "portolan.toml", "seed = 2\n[optimize]\nseed = 3\n")
    assert seed(api) == 3
    monkeypatch.setenv("PORTOLAN_SEED", "4")
    assert seed(api) == 4
    monkeypatch.setenv("PORTOLAN_OPTIMIZE_SEED", "5")
    assert seed(api) == 5
    assert seed(api, "--seed", "6") == 6
    assert api.keywords["jobs"] == 9
    assert api.keywords["budget"] == "1s"


def test_the_user_file_follows_xdg(api: Api, place: Path, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "xdg"))
    assert seed(api) == 0
    write(place / "xdg/portolan/config.toml", "seed = 8\n")
    assert seed(api) == 8


def test_pyproject_and_folders_above(api: Api, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place / "pyproject.toml", "[project]\nname = 'x'\n[tool.portolan]\nseed = 3\n")
    below = place / "a/b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert seed(api) == 3
    write(place / "a/pyproject.toml", "[project]\nname = 'nothing of ours'\n")
    assert seed(api) == 3
    write(place / "a/portolan.toml", "seed = 4\n")
    assert seed(api) == 4


def test_the_line_of_a_pyproject_is_named(api: Api, place: Path) -> None:
    write(
        place / "pyproject.toml",
        "[project]\nname = 'x'\nsede = 1\n[tool.portolan]\n[tool.portolan.optimize]\nsede = 3\n",
    )
    assert "at pyproject.toml:6" in run("optimize", "m.onnx").err


def test_the_config_flag_takes_the_place_of_the_project(api: Api, place: Path, user: Path) -> None:
    write(place / "portolan.toml", "seed = 2\n")
    write(place / "other.toml", "jobs = 3\n")
    assert seed(api, "--config", "other.toml") == 1
    assert api.keywords["jobs"] == 3


def test_a_list_is_a_range_and_one_value_stands_alone(api: Api, place: Path) -> None:
    write(
        place / "portolan.toml", "backend = ['openvino', 'torch']\n[optimize]\ngoal = 'min size'\npasses='quantize'\n"
    )
    seed(api)
    assert api.keywords["backend"] == ["openvino", "torch"]
    assert api.keywords["goals"] == ("min size",)
    assert api.keywords["passes"] == ["quantize"]


def test_a_general_list_says_nothing_to_a_flag_of_one_value(api: Api, place: Path) -> None:
    write(place / "portolan.toml", "backend = ['openvino', 'torch']\n")
    run("pack", "s")
    assert api.keywords["backend"] is None
    write(place / "portolan.toml", "backend = ['openvino']\n")
    run("pack", "s")
    assert api.keywords["backend"] == "openvino"


def test_lists_in_variables(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_GOAL", "latency_p95 < 8ms, min size")
    monkeypatch.setenv("PORTOLAN_BACKEND", "openvino,torch")
    seed(api)
    assert api.keywords["goals"] == ("latency_p95 < 8ms", "min size")
    assert api.keywords["backend"] == ["openvino", "torch"]


def test_paths_are_relative_to_their_file(api: Api, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place / "portolan.toml", "data = 'val'\n[optimize]\nmetric = 'm.py:top5'\nstudy = '/abs'\n")
    (place / "sub").mkdir()
    monkeypatch.chdir(place / "sub")
    seed(api)
    assert api.keywords["data"] == str(place / "val")
    assert api.keywords["metric"] == str(place / "m.py:top5")
    assert api.keywords["study"] == "/abs"


def test_switches_and_what_is_printed(api: Api, place: Path) -> None:
    write(place / "portolan.toml", "json = true\n")
    assert run("inspect", "m.onnx").json["name"] == "resnet50"
    write(place / "portolan.toml", "quiet = true\n")
    assert run("inspect", "m.onnx").err == ""


def test_an_error_after_the_file_was_read_is_json_too(api: Api, place: Path) -> None:
    write(place / "portolan.toml", "json = true\nseed = 'x'\n")
    assert run("optimize", "m.onnx").json["error"]["where"] == "portolan.toml:2"


def test_help_and_completion_work_beside_a_broken_file(api: Api, place: Path) -> None:
    write(place / "portolan.toml", "seed = [\n")
    assert run("optimize", "--help").code == 0
    assert run("--help").code == 0


def test_foreign_variables_are_left_alone(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_CACHE", "/tmp/x")
    assert seed(api) == 0


def test_the_doctor_takes_the_target(api: Api, place: Path) -> None:
    write(place / "portolan.toml", "target = 'far'\n")
    run("doctor")
    assert api.calls[-1][1] == ("far",)


def test_target_is_a_command_too(api: Api, place: Path) -> None:
    write(place / "portolan.toml", "[target]\nmirror = 'http://near'\n")
    run("target", "add", "arm", "--emulate", "aarch64")
    assert api.keywords["mirror"] == "http://near"


@pytest.mark.parametrize(
    ("text", "keys", "line"),
    [
        ("a = 1\nb = 2\n", ("b",), 2),
        ("[t]\na = 1\n[u]\na = 2\n", ("u", "a"), 4),
        ("t.a = 1\n", ("t", "a"), 1),
        ('"a" = 1\n', ("a",), 1),
        ("# a = 1\n a=2\n", ("a",), 2),
        ("[ t ]\n", ("t",), 1),
        ("b = 1\n", ("a",), None),
    ],
)
def test_find_line(text: str, keys: tuple[str, ...], line: int | None) -> None:
    assert find_line(text, keys) == line


def test_split() -> None:
    assert split("a, b(c=1, d=[2, 3]) ,, e") == ["a", "b(c=1, d=[2, 3])", "e"]


@given(st.lists(st.sampled_from(["a", "b(c=1)", "d(e=1, f=(2,3))", "x:1x3"]), max_size=6))
def test_split_undoes_join(items: list[str]) -> None:
    assert split(", ".join(items)) == items


def test_no_file_and_no_variable_lets_a_bundles_code_run(
    api: Api, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write(place / "portolan.toml", "[bench]\nnative = true\n")
    ran = run("bench", "b.portolan")
    assert (ran.code, "`bench` has no key `native`" in ran.err) == (2, True)
    settings.unlink()
    monkeypatch.setenv("PORTOLAN_NATIVE", "1")
    assert run("bench", "b.portolan").code == 0
    assert api.keywords["native"] is False
