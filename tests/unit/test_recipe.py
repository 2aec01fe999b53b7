"""Recipes: plain data that survives JSON and TOML, and whose hash depends on nothing but what it says."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from portolan.core.recipe import Recipe, Step, digest
from portolan.errors import UsageError

names = st.text(st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8)
scalars = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | names
options = st.dictionaries(names.filter(lambda n: n != "name"), scalars, max_size=4)
pairs = st.tuples(st.integers(0, 4), st.integers(4, 256)).map(list)
serving = st.fixed_dictionaries(
    {}, optional={"max_batch": st.integers(1, 4096), "replicas": pairs, "deadline": st.floats(1e-6, 3600.0)}
)
recipes = st.builds(
    Recipe,
    passes=st.lists(st.builds(Step, names, options), max_size=3).map(tuple),
    backend=names,
    options=options,
    target=names,
    serving=serving,
)


@given(recipes)
def test_json_comes_back(recipe: Recipe) -> None:
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.key == recipe.key


@given(recipes)
def test_toml_comes_back(recipe: Recipe) -> None:
    again = Recipe.from_json(tomllib.loads(tomli_w.dumps(recipe.to_json())))
    assert again == recipe
    assert again.key == recipe.key


@given(recipes, st.randoms(use_true_random=False))
def test_the_hash_does_not_depend_on_the_order_of_keys(recipe: Recipe, random: Any) -> None:
    def shuffled(data: Any) -> Any:
        if isinstance(data, dict):
            keys = list(data)
            random.shuffle(keys)
            return {key: shuffled(data[key]) for key in keys}
        return [shuffled(item) for item in data] if isinstance(data, list) else data

    assert Recipe.from_json(shuffled(recipe.to_json())).key == recipe.key


@given(recipes, recipes)
def test_recipes_that_differ_have_hashes_that_differ(a: Recipe, b: Recipe) -> None:
    assert (a.key == b.key) == (json.dumps(a.to_json(), sort_keys=True) == json.dumps(b.to_json(), sort_keys=True))


def test_the_hash_is_the_same_in_every_version() -> None:
    """Ledgers keep it: a change here makes every earlier study start anew."""
    recipe = Recipe((Step("quantize", {"bits": 8}),), "openvino", {"precision": "bf16"})
    assert recipe.key == "0b19ff85c95f7046"
    assert recipe.chain == "969352aca029b7bc"
    assert digest({}) == "44136fa355b3678a"


def test_the_chain_is_that_of_the_passes() -> None:
    a = Recipe((Step("simplify"),), "openvino", {"threads": 1})
    b = Recipe((Step("simplify"),), "onnxruntime")
    assert a.chain == b.chain
    assert a.key != b.key
    assert Recipe((Step("simplify", {"shapes": None}),)).chain != a.chain


def test_order_of_passes_matters() -> None:
    steps = (Step("simplify"), Step("quantize"))
    assert Recipe(steps).chain != Recipe(steps[::-1]).chain


def test_text() -> None:
    assert str(Recipe()) == "-"
    assert str(Recipe((Step("simplify"), Step("quantize", {"bits": 8})))) == "simplify + quantize(bits=8)"


def test_everything_has_a_default() -> None:
    assert Recipe.from_json({}) == Recipe() == Recipe((), "onnxruntime", {}, "local", {})


@pytest.mark.parametrize(
    ("data", "message", "where", "hint"),
    [
        ([], "a recipe must be a table", "recipe: $", None),
        ({"bakend": "x"}, "a recipe has no key `bakend`", None, "did you mean `backend`?"),
        (
            {"zzz": 1}, "a recipe has no key `zzz`", None,
            "known: backend, options, passes, serving, target",
        ),
        ({"passes": "x"}, "`passes` of a recipe must be a list of tables, got `'x'`", "recipe: $.passes", None),
        ({"backend": 3}, "`backend` of a recipe must be a name, got `3`", "recipe: $.backend", None),
        ({"options": []}, "`options` of a recipe must be a table, got `[]`", "recipe: $.options", None),
        ({"target": None}, "`target` of a recipe must be a name, got `None`", "recipe: $.target", None),
        ({"serving": "x"}, "`serving` of a recipe must be a table, got `'x'`", "recipe: $.serving", None),
        (
            {"serving": {"max_bach": 4}}, "`serving` of a recipe has no key `max_bach`", None,
            "did you mean `max_batch`?",
        ),
        (
            {"serving": {"max_batch": 0}},
            "`max_batch` of a recipe's serving must be a whole number from 1 to 4,096, got `0`",
            "recipe: $.serving.max_batch", None,
        ),
        (
            {"serving": {"replicas": [2, 1]}},
            "`replicas` of a recipe's serving must be a whole number, or the fewest and the most such as `[1, 2]`, "
            "got `[2, 1]`",
            "recipe: $.serving.replicas", None,
        ),
        (
            {"serving": {"deadline": "50ms"}},
            "`deadline` of a recipe's serving must be a number of seconds above 0 and up to 3,600, got `'50ms'`",
            "recipe: $.serving.deadline", None,
        ),
        (
            {"passes": [{"name": "simplify"}, {"bits": 8}]}, "a pass of a recipe needs a `name`", "recipe: $.passes[1]",
            'write for example `{ name = "quantize", mode = "dynamic" }`',
        ),
        (
            {"passes": ["simplify"]}, "a pass of a recipe needs a `name`", "recipe: $.passes[0]",
            'write for example `{ name = "quantize", mode = "dynamic" }`',
        ),
        (
            {"passes": [{"name": 3}]}, "a pass of a recipe needs a `name`", "recipe: $.passes[0]",
            'write for example `{ name = "quantize", mode = "dynamic" }`',
        ),
    ],
)  # fmt: skip
def test_what_is_no_recipe(data: Any, message: str, where: str | None, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_json(data)
    assert (caught.value.message, caught.value.where, caught.value.hint) == (message, where, hint)


def test_errors_name_the_file() -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_json({"options": 1}, where="fast.toml")
    assert caught.value.where == "fast.toml: $.options"
    with pytest.raises(UsageError) as caught:
        Recipe.from_json({"option": 1}, where="fast.toml")
    assert caught.value.where == "fast.toml"
