"""The signature is the schema: what a function's annotated keywords accept, refuse, and give the search to try."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portolan.core.schema import Knob, Schema, cores
from portolan.core.target import Target
from portolan.errors import UnknownName, UsageError

PLAIN = Target("local", "vm", "x86_64", ("avx2",), cores=8, ram=2**33)
NEW = Target("new", "vm", "x86_64", ("amx_bf16", "avx2"), cores=8, ram=2**33)


def compile(
    model: str,
    *positional: Any,
    precision: Annotated[
        Literal["f32", "bf16", "f16"],
        Knob(needs={"bf16": ("amx_bf16", "avx512_bf16"), "f16": ("avx512_fp16",)}, help="arithmetic"),
    ] = "f32",
    threads: Annotated[int, "not a knob", Knob(values=cores)] = 0,
    fuse: bool = True,
    bits: Annotated[Literal[4, 8], Knob(values=(8, 4))] = 8,
    ratio: Annotated[float, Knob(values=(0.5, 0.25, 0.5))] = 0.5,
    limit: int | None = None,
    mixed: Optional[Literal["a", "B"]] = None,  # noqa: UP045 - the form that typing gives back
    level: Literal["auto"] | int = "auto",
    either: int | float | str = 0,
    note: Annotated[str | None, Knob(search=False, values=("x", "y"))] = None,
    **rest: Any,
) -> None:
    """A function with every kind of keyword."""


SCHEMA = Schema.of(compile, "demo")


def test_only_keywords_are_options() -> None:
    assert list(SCHEMA.parameters) == [
        "precision", "threads", "fuse", "bits", "ratio", "limit", "mixed", "level", "either", "note",
    ]  # fmt: skip
    assert SCHEMA.parameters["precision"].knob.help == "arithmetic"
    assert SCHEMA.parameters["fuse"].knob == Knob()


def test_it_is_read_once() -> None:
    assert Schema.of(compile, "demo") is SCHEMA


def test_defaults_fill_what_is_not_given() -> None:
    assert SCHEMA.check({}) == {
        "precision": "f32", "threads": 0, "fuse": True, "bits": 8, "ratio": 0.5, "limit": None, "mixed": None,
        "level": "auto", "either": 0, "note": None,
    }  # fmt: skip
    assert SCHEMA.check({"threads": 2})["threads"] == 2


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("precision", "bf16", "bf16"),
        ("precision", "BF16", "bf16"),
        ("threads", 4, 4),
        ("threads", "4", 4),
        ("fuse", False, False),
        ("fuse", "true", True),
        ("fuse", "False", False),
        ("bits", 4, 4),
        ("bits", "4", 4),
        ("ratio", 0.25, 0.25),
        ("ratio", 1, 1.0),
        ("ratio", "0.25", 0.25),
        ("ratio", "1e-3", 0.001),
        ("limit", None, None),
        ("limit", 3, 3),
        ("limit", "3", 3),
        ("limit", "none", None),
        ("mixed", "a", "a"),
        ("mixed", "b", "B"),
        ("mixed", None, None),
        ("level", "auto", "auto"),
        ("level", "AUTO", "auto"),
        ("level", 3, 3),
        ("level", "3", 3),
        ("either", 1, 1),
        ("either", 1.5, 1.5),
        ("either", "1", "1"),
        ("note", "none", "none"),
        ("note", "3", "3"),
        ("note", None, None),
    ],
)
def test_what_fits(name: str, given: Any, value: Any) -> None:
    found = SCHEMA.check({name: given})[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message", "hint"),
    [
        ("precision", "int8", "`precision` of `demo` cannot be `int8`", "use `f32`, `bf16`, `f16`"),
        ("precision", None, "`precision` of `demo` cannot be `None`", "use `f32`, `bf16`, `f16`"),
        ("precision", ["f32"], "`precision` of `demo` cannot be `['f32']`", "use `f32`, `bf16`, `f16`"),
        ("fuse", 1, "`fuse` of `demo` cannot be `1`", "use `false`, `true`"),
        ("fuse", "yes", "`fuse` of `demo` cannot be `yes`", "use `false`, `true`"),
        ("bits", True, "`bits` of `demo` cannot be `True`", "use `4`, `8`"),
        ("bits", 8.0, "`bits` of `demo` cannot be `8.0`", "use `4`, `8`"),
        ("mixed", "c", "`mixed` of `demo` cannot be `c`", "use `a`, `B`, `none`"),
        ("threads", "many", "`threads` of `demo` expects int, got `'many'`", None),
        ("threads", 1.0, "`threads` of `demo` expects int, got `1.0`", None),
        ("threads", True, "`threads` of `demo` expects int, got `True`", None),
        ("threads", None, "`threads` of `demo` expects int, got `None`", None),
        ("ratio", "half", "`ratio` of `demo` expects float, got `'half'`", None),
        ("ratio", True, "`ratio` of `demo` expects float, got `True`", None),
        ("ratio", math.nan, "`ratio` of `demo` expects float, got `nan`", None),
        ("ratio", "inf", "`ratio` of `demo` expects float, got `'inf'`", None),
        ("limit", "few", "`limit` of `demo` expects int or `none`, got `'few'`", None),
        ("level", "high", "`level` of `demo` expects `auto` or int, got `'high'`", None),
        ("note", 3, "`note` of `demo` expects str or `none`, got `3`", None),
    ],
)
def test_what_does_not_fit(name: str, given: Any, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        SCHEMA.check({name: given}, where="r.toml")
    assert (caught.value.message, caught.value.hint, caught.value.where) == (message, hint, "r.toml")


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        SCHEMA.check({"thread": 2}, where="r.toml")
    assert caught.value.message == "no option of `demo` named `thread`"
    assert caught.value.hint == "did you mean `threads`?"
    assert caught.value.where == "r.toml"


@pytest.mark.parametrize(
    ("name", "target", "values"),
    [
        ("precision", PLAIN, ("f32",)),
        ("precision", NEW, ("f32", "bf16")),
        ("threads", PLAIN, (0, 4, 1)),
        ("fuse", PLAIN, (True, False)),
        ("bits", PLAIN, (8, 4)),
        ("ratio", PLAIN, (0.5, 0.25)),
        ("limit", PLAIN, (None,)),
        ("mixed", PLAIN, (None, "a", "B")),
        ("level", PLAIN, ("auto",)),
        ("note", PLAIN, (None,)),
    ],
)
def test_what_the_search_tries_begins_with_the_default(name: str, target: Target, values: tuple[Any, ...]) -> None:
    assert SCHEMA.parameters[name].values(target) == values


@pytest.mark.parametrize(("count", "values"), [(1, (0,)), (2, (0, 1)), (3, (0, 1)), (4, (0, 2, 1)), (64, (0, 32, 1))])
def test_thread_counts_worth_trying(count: int, values: tuple[int, ...]) -> None:
    assert cores(Target("x", "vm", "x86_64", (), cores=count, ram=0)) == values


def small(*, a: bool = True, b: Annotated[int, Knob(values=(1, 2, 3))] = 1) -> None:
    """Two keywords."""


SMALL = Schema.of(small, "small")


def test_the_space_begins_with_all_defaults_and_holds_every_combination_once() -> None:
    space = list(SMALL.space(PLAIN))
    assert space[0] == SMALL.check({})
    assert len(space) == 6 == len({tuple(options.items()) for options in space})


@pytest.mark.parametrize(
    ("fixed", "space"),
    [
        ({"b": 7}, [(True, 7), (False, 7)]),
        ({"a": "false", "b": "2"}, [(False, 2)]),
        ({"a": False, "b": [3, 1]}, [(False, 3), (False, 1)]),
        ({"a": [False], "b": (3, "3")}, [(False, 3)]),
    ],
)
def test_what_is_fixed_is_a_value_or_a_range(fixed: dict[str, Any], space: list[tuple[Any, ...]]) -> None:
    assert [tuple(options.values()) for options in SMALL.space(PLAIN, fixed)] == space


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"c": 1}, "no option of `small` named `c`"),
        ({"b": []}, "the range of `b` of `small` is empty"),
        ({"b": [1, "x"]}, "`b` of `small` expects int, got `'x'`"),
        ({"a": "maybe"}, "`a` of `small` cannot be `maybe`"),
    ],
)
def test_what_cannot_be_fixed(fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(SMALL.space(PLAIN, fixed))
    assert caught.value.message == message


def test_a_function_without_keywords_has_one_point() -> None:
    assert list(Schema.of(lambda model: None, "none").space(PLAIN)) == [{}]


@given(st.dictionaries(st.sampled_from(sorted(SCHEMA.parameters)), st.none() | st.booleans() | st.text() | st.floats()))
def test_what_passed_once_passes_again_unchanged(given: dict[str, Any]) -> None:
    try:
        checked = SCHEMA.check(given)
    except UsageError:
        return
    assert SCHEMA.check(checked) == checked


def reduced(
    *,
    mode: Annotated[Literal["dynamic", "weights"], Knob(help="how")] = "dynamic",
    bits: Annotated[Literal[8, 4], Knob(when={"mode": ("weights",)}, help="how many")] = 8,
    group: Annotated[int, Knob(search=False, help="how large")] = 128,
) -> None:
    """A function whose `bits` mean something in one mode only."""


def test_a_keyword_is_varied_only_where_it_means_something() -> None:
    schema = Schema.of(reduced, "reduced")
    assert list(schema.space(PLAIN)) == [
        {"mode": "dynamic", "bits": 8, "group": 128},
        {"mode": "weights", "bits": 8, "group": 128},
        {"mode": "weights", "bits": 4, "group": 128},
    ]
    asked = list(schema.space(PLAIN, {"mode": "dynamic", "bits": 4}))
    assert asked == [{"mode": "dynamic", "bits": 4, "group": 128}], "whoever asks for it gets the pass's own answer"


def test_what_was_chosen_is_told_from_what_nobody_thought_of() -> None:
    schema = Schema.of(reduced, "reduced")
    assert schema.chosen({"mode": "dynamic", "bits": 8, "group": 128}, PLAIN) == {"mode"}
    assert schema.chosen({"mode": "weights", "bits": 8, "group": 128}, PLAIN) == {"mode", "bits"}
    assert schema.chosen({"mode": "dynamic", "bits": 8, "group": 64}, PLAIN) == {"mode", "group"}
