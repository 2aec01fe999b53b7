from __future__ import annotations

import math

import numpy as np
import pytest
from searching import LOSSY, NETWORKS, TARGET, Machine, space

from portolan.core import registry
from portolan.search.space import Candidate
from portolan.search.surrogate import (
    Crashes,
    Features,
    Neighbours,
    Surrogate,
    expected,
    prior_column,
    rule_of_thumb,
    tokens,
)


def live() -> list[Candidate]:
    return [c for c in space(LOSSY) if c.refused is None]


def logs(name: str, seed: int = 0) -> np.ndarray:
    machine = Machine(NETWORKS[name], seed)
    return np.log([machine.truth(c)[0] for c in live()])


def ranks(x: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(x)).astype(float)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def surrogate(*columns: np.ndarray, slopes: tuple[float, ...] = ()) -> Surrogate:
    found = live()
    stacked = np.stack(columns, axis=1) if columns else np.zeros((len(found), 0))
    return Surrogate(Features(found), stacked, np.array(slopes or (1.0,) * len(columns)))


def pick(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).choice(len(live()), count, replace=False).tolist()


def test_words_of_a_recipe() -> None:
    found = next(
        c for c in live() if str(c.recipe) == "simplify + quantize(mode=static)" and c.recipe.options.get("hint")
    )
    words = tokens(found)
    assert {"pass simplify", "pass quantize", "quantize.mode=static", "backend openvino", "hint=latency"} <= set(words)


def test_it_interpolates_its_readings_and_is_sure_there() -> None:
    y, seen = logs("bert"), pick(12)
    got = surrogate().fit(seen, y[seen], np.random.default_rng(0))
    assert np.abs(got.mean[seen] - y[seen]).max() < 0.1
    unseen = [i for i in range(len(y)) if i not in seen]
    assert got.spread[seen].max() < got.spread[unseen].mean()


def test_more_readings_predict_better() -> None:
    y = logs("resnet")
    errors = []
    for count in (6, 20, 50):
        seen = pick(count)
        rest = [i for i in range(len(y)) if i not in seen]
        got = surrogate().fit(seen, y[seen], np.random.default_rng(0))
        errors.append(float(np.sqrt(np.mean((got.mean[rest] - y[rest]) ** 2))))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.25


def test_one_other_context_orders_recipes_before_anything_is_measured() -> None:
    here, there = logs("minilm", 1), logs("bert", 2)
    found = live()
    column = prior_column(Features(found), dict(enumerate(there)))
    got = surrogate(column).fit([], [], np.random.default_rng(0))
    assert correlation(got.mean, here) > 0.9


def test_holes_in_a_context_are_filled_from_its_choices() -> None:
    there = logs("bert")
    known = {i: there[i] for i in pick(30)}
    column = prior_column(Features(live()), known)
    holes = [i for i in range(len(there)) if i not in known]
    assert correlation(column[holes], there[holes]) > 0.8
    assert column.mean() == pytest.approx(0, abs=1e-9)


def test_a_misleading_context_is_unlearned() -> None:
    y = logs("bert")
    reversed_ = prior_column(Features(live()), dict(enumerate(-y)))
    seen = pick(12)
    rest = [i for i in range(len(y)) if i not in seen]
    before = surrogate(reversed_, slopes=(0.7,)).fit([], [], np.random.default_rng(0))
    after = surrogate(reversed_, slopes=(0.7,)).fit(seen, y[seen], np.random.default_rng(0))
    assert correlation(before.mean[rest], y[rest]) < -0.9
    assert correlation(after.mean[rest], y[rest]) > 0.5


def test_the_same_generator_gives_the_same_predictions() -> None:
    y, seen = logs("vit"), pick(8)
    a, b = (surrogate().fit(seen, y[seen], np.random.default_rng(3)).members for _ in range(2))
    assert np.array_equal(a, b)


def test_noise_is_estimated_from_many_readings() -> None:
    y = logs("vit")
    noisy = y + np.random.default_rng(0).normal(0, 0.4, len(y))
    quiet = surrogate().fit(range(len(y)), y, np.random.default_rng(0))
    loud = surrogate().fit(range(len(y)), noisy, np.random.default_rng(0))
    assert np.abs(quiet.mean - y).mean() < 0.06
    assert np.abs(loud.mean - noisy).mean() > 0.1  # it does not chase noise


def test_rules_of_thumb_point_the_right_way() -> None:
    found = live()
    defaults = {c.recipe.backend: dict(c.recipe.options) for c in reversed(found) if not c.recipe.passes}

    def thumb(**wanted: object) -> dict[str, float]:
        chain = wanted.pop("chain", "-")
        c = next(
            c for c in found if str(c.recipe) == chain and all(c.recipe.options.get(k) == v for k, v in wanted.items())
        )
        return rule_of_thumb(c, defaults[c.recipe.backend], 2)

    usual = thumb(graph_optimization="all", threads=0)
    assert thumb(precision="bf16", threads=0)["time"] < usual["time"]
    assert thumb(threads=1)["time"] > usual["time"]
    assert thumb(chain="quantize(mode=dynamic)")["size"] < usual["size"]
    assert thumb(threads=1)["rate"] < usual["rate"]


def test_two_crashes_of_a_chain_on_a_backend_condemn_it_and_not_others() -> None:
    found = live()
    on = [i for i, c in enumerate(found) if c.recipe.backend == "openvino" and not c.recipe.passes]
    fine = [i for i, c in enumerate(found) if c.recipe.backend == "openvino" and str(c.recipe) == "simplify"][:3]
    chance = Crashes(found).chance([*on[:2], *fine], [False, False, True, True, True])
    assert chance[on].max() < 0.2
    assert chance[[i for i, c in enumerate(found) if c.recipe.backend != "openvino"]].min() > 0.9
    assert chance[fine].min() > 0.2


def test_an_option_that_crashes_everywhere_is_doubted_everywhere() -> None:
    found = live()
    off = [i for i, c in enumerate(found) if c.recipe.options.get("graph_optimization") == "disabled"]
    on = [i for i, c in enumerate(found) if c.recipe.options.get("graph_optimization") == "all"]
    tried = off[::3][:4] + on[::2][:4]
    chance = Crashes(found).chance(tried, [i in on for i in tried])
    assert chance[off].max() < 0.2
    assert chance[on].min() > 0.3


def test_before_anything_is_tried_nearly_all_run() -> None:
    assert Crashes(live()).chance([], []).tolist() == pytest.approx([Crashes.RUNS] * len(live()))


def test_costs_of_neighbours() -> None:
    found = live()
    near = Neighbours(found)
    slow = next(i for i, c in enumerate(found) if c.recipe.backend == "torch")
    seconds = np.exp(near.vote([0, slow], [math.log(1.5), math.log(20.0)], math.log(3.0), 0.05))
    assert seconds[[i for i, c in enumerate(found) if c.recipe.backend == "torch"]].min() > 10
    assert seconds[[i for i, c in enumerate(found) if c.recipe.backend == "onnxruntime"]].max() < 4


def test_what_passes_produce_is_expected_by_the_kind_of_feature() -> None:
    time, size, holds = expected("weights:int4")
    assert time == pytest.approx(0.0, abs=0.2)
    assert expected("weights:int2")[1] < size < expected("weights:int8")[1] < expected("float16")[1] < 0
    assert expected("weights:int2")[2] < holds < expected("weights:int8")[2] <= 1
    assert expected("shape:lowrank") == expected("shape:pruned")
    assert expected("shape:lowrank")[0] < 0
    assert expected("sparsity:2:4")[0] == 0, "zeros save no time unless somebody multiplies less"
    assert expected("something new") == (0.0, 0.0, 0.5)


def test_every_feature_that_a_built_in_pass_produces_has_a_rule_of_thumb() -> None:
    for name in registry.PASSES.names():
        item = registry.pass_(name)
        for options in item.schema.space(TARGET):
            for feature in item.produces(options):
                assert expected(feature) != expected("something new"), feature
