from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from searching import BACKENDS, EXACT, LOSSY, MODEL, PASSES, PLAIN, TARGET, Missing, Ort, space

from portolan.core.backend import Exploit, Support
from portolan.core.goal import parse_goals
from portolan.core.model import Model
from portolan.core.passes import Context, compression
from portolan.core.recipe import Recipe
from portolan.errors import NoBackend, UnknownName, UsageError
from portolan.search.space import Candidate, candidates, describe


def live(found: list[Candidate]) -> list[Candidate]:
    return [c for c in found if c.refused is None]


def refusals(found: list[Candidate]) -> dict[tuple[str, str], str]:
    """Reasons by what a table would show."""
    told = {(str(c.recipe), c.recipe.backend): c.refused for c in found if c.refused is not None}
    assert len(told) == sum(c.refused is not None for c in found), "a refusal was told twice"
    return {key: str(reason) for key, reason in told.items()}


def test_the_untouched_model_on_the_default_runtime_comes_first() -> None:
    options = {"graph_optimization": "all", "threads": 0, "spinning": True}
    for goals in (EXACT, LOSSY):
        assert space(goals)[0] == Candidate(Recipe((), "onnxruntime", options, "local"), True)


def test_exact_goals_keep_only_exact_recipes() -> None:
    found = live(space(EXACT))
    assert all(c.exact for c in found)
    assert {str(c.recipe) for c in found} == {"-", "simplify"}
    # ORT 3 levels x 2 thread counts and OpenVINO f32 2 x 2, each with and without simplify; torch 2 x 2 without.
    assert len(found) == 2 * (6 + 4) + 4


def test_lossy_goals_open_every_chain() -> None:
    found = live(space())
    chains = {str(c.recipe) for c in found}
    quantized = {"quantize(mode=dynamic)", "quantize(mode=static)"}
    assert chains == {"-", "simplify"} | quantized | {f"simplify + {q}" for q in quantized}
    assert len(found) == 6 * 6 + 4 * 8 + 4
    assert len({c.key for c in found}) == len(found)
    for c in found:
        changed = "quantize" in str(c.recipe) or c.recipe.options.get("precision") == "bf16"
        assert c.exact is not changed


def test_each_backend_starts_with_its_defaults_and_program_compilers_come_last() -> None:
    found = live(space())
    first: dict[str, Candidate] = {}
    for c in found:
        first.setdefault(c.recipe.backend, c)
    assert list(first) == ["onnxruntime", "openvino", "torch"]
    for name, c in first.items():
        assert c.recipe.passes == ()
        assert c.recipe.options == BACKENDS[name].schema.check({})


def test_changed_outputs_need_a_goal_that_allows_them() -> None:
    found = space(EXACT)
    reasons = refusals(found)
    why = "changes outputs, and no goal allows it: add -g 'cosine >= 0.99'"
    assert reasons["quantize", "*"] == why
    assert reasons["-", "openvino"] == why
    refused = next(c for c in found if c.refused and c.recipe.backend == "openvino" and not c.recipe.passes)
    assert refused.recipe.options == {"precision": "bf16"}
    assert not refused.exact


def test_a_backend_that_is_not_ready_is_refused_once_with_its_fix() -> None:
    reasons = refusals(space(backends={**BACKENDS, "missing": Missing()}))
    assert reasons["-", "missing"] == "the package `missing` is not installed: pip install missing"


def test_a_backend_without_a_fix_gives_its_reason_alone() -> None:
    class Broken(Missing):
        support = Support(False)

    assert refusals(space(backends={**BACKENDS, "missing": Broken()}))["-", "missing"] == (
        "`missing` cannot run on this target"
    )


def test_a_backend_that_wants_to_be_named_is_refused_where_nobody_named_it() -> None:
    class Shy(Ort):
        name = "shy"

        def unasked(self, model: Model) -> str | None:
            return f"it takes long for `{model.name}`"

    backends = {**BACKENDS, "shy": Shy()}
    assert refusals(space(backends=backends, named=False))["-", "shy"] == f"it takes long for `{MODEL.name}`"
    assert any(c.recipe.backend == "shy" for c in live(space(backends=backends)))


def test_a_plain_graph_has_no_program() -> None:
    reasons = refusals(space(model=replace(MODEL, program=None)))
    assert reasons["-", "torch"] == "`torch` starts from a torch program, and the model is a plain ONNX graph"
    assert not any(backend == "torch" and chain != "-" for chain, backend in reasons)


def test_passes_do_not_reach_a_torch_program_which_is_said_once() -> None:
    why = "`torch` starts from the torch program, and passes change only the ONNX graph"
    reasons = {key: why_ for key, why_ in refusals(space()).items() if key[1] == "torch"}
    assert reasons == {("simplify", "torch"): why}


def test_a_feature_that_one_backend_does_not_exploit_is_refused_there_only() -> None:
    found = space()
    assert refusals(found)["quantize(mode=dynamic)", "openvino"] == "int8:dynamic is not exploited by `openvino`"
    assert any("dynamic" in str(c.recipe) and c.recipe.backend == "onnxruntime" for c in live(found))


def test_a_feature_that_no_backend_exploits_is_refused_once() -> None:
    found = space(target=PLAIN)
    reasons = refusals(found)
    assert reasons["quantize(mode=dynamic)", "*"] == "int8:dynamic is exploited by no backend on this target"
    assert reasons["quantize(mode=static)", "*"] == "int8:static is exploited by no backend on this target"
    assert not any("quantize" in str(c.recipe) for c in live(found))
    assert sum("quantize" in chain for chain, _ in reasons) == 2


def test_features_that_no_backend_exploits_together_give_each_reason() -> None:
    @compression(produces=lambda p: ("int8:dynamic", "int8:static"), lossy=lambda p: True)
    def both(model: Model, context: Context) -> Model:
        """Does both."""
        return model

    class Dynamic(Ort):
        exploits = (Ort.exploits[0],)

    class Static(Ort):
        name = "other"
        exploits = (Ort.exploits[1],)

    reasons = refusals(space(passes={"both": both}, backends={"onnxruntime": Dynamic(), "other": Static()}))
    assert reasons["both", "*"] == (
        "int8:static is not exploited by `onnxruntime`; int8:dynamic is not exploited by `other`"
    )


def test_precision_that_the_target_lacks_is_said() -> None:
    found = space(target=PLAIN)
    assert refusals(found)["-", "openvino"] == "needs one of avx512_bf16, which this target lacks"
    assert not any(c.recipe.options.get("precision") == "bf16" for c in live(found))


def test_calibration_needs_data() -> None:
    found = space(has_calibration=False)
    assert refusals(found)["quantize(mode=static)", "*"] == "needs calibration data: give --data"
    assert any("dynamic" in str(c.recipe) for c in live(found))


def test_training_is_not_done_by_a_search() -> None:
    @compression(needs=lambda p: "training", lossy=lambda p: True)
    def distil(model: Model, context: Context) -> Model:
        """Trains a student."""
        return model

    reasons = refusals(space(passes={"distil": distil}))
    assert "only when asked" in reasons["distil", "*"]


def test_a_pass_may_refuse() -> None:
    @compression(refuse=lambda m, p, t: "nothing to simplify", lossy=lambda p: False)
    def simplify(model: Model, context: Context, *, depth: Literal["a", "b"] = "a") -> Model:
        """Folds."""
        return model

    found = space(passes={"simplify": simplify, "quantize": PASSES["quantize"]})
    assert refusals(found)["simplify", "*"] == "nothing to simplify"
    assert not any("simplify" in str(c.recipe) for c in live(found))


def test_refusals_can_be_left_out() -> None:
    assert all(c.refused is None for c in space(EXACT, refused_too=False))
    assert len(space(EXACT, refused_too=False)) == len(live(space(EXACT)))


def test_pinned_options_and_ranges() -> None:
    found = live(space(fixed={"backend": "openvino", "options": {"precision": "bf16", "threads": [0, 1]}}))
    assert found[0].recipe.backend == "openvino"
    searched = [c.recipe.options for c in found[1:]]
    assert all(o["precision"] == "bf16" and o["threads"] in (0, 1) for o in searched)
    assert {o["hint"] for o in searched} == {"latency", "throughput"}


def test_a_pinned_chain_is_the_only_one_besides_the_baseline() -> None:
    fixed = {"passes": [{"name": "quantize", "mode": "dynamic"}], "backend": ["onnxruntime", "openvino"]}
    found = live(space(fixed=fixed))
    assert [str(c.recipe) for c in found] == ["-"] + ["quantize(mode=dynamic)"] * 6


def test_a_pinned_range_of_a_pass() -> None:
    fixed = {"passes": [{"name": "simplify"}, {"name": "quantize", "mode": ["dynamic", "static"]}]}
    chains = {str(c.recipe) for c in live(space(fixed=fixed))}
    assert chains == {"-", "simplify + quantize(mode=dynamic)", "simplify + quantize(mode=static)"}


def test_an_empty_pinned_chain_is_the_untouched_model() -> None:
    assert {str(c.recipe) for c in live(space(fixed={"passes": []}))} == {"-"}


def test_a_pinned_value_that_the_target_lacks_is_refused() -> None:
    found = space(target=PLAIN, fixed={"backend": "openvino", "options": {"precision": "bf16"}})
    assert len(live(found)) == 1
    assert refusals(found)["-", "openvino"] == "needs one of avx512_bf16, which this target lacks"


def test_serving_is_carried() -> None:
    found = live(space(fixed={"serving": {"max_batch": 4}}))
    assert found[0].recipe.serving == {}
    assert all(c.recipe.serving == {"max_batch": 4} for c in found[1:])


@pytest.mark.parametrize(
    ("fixed", "error", "text"),
    [
        ({"backnd": "openvino"}, UnknownName, "key of a recipe named `backnd`"),
        ({"backend": "opnvino"}, UnknownName, "backend named `opnvino`"),
        ({"passes": [{"name": "quantise"}]}, UnknownName, "pass named `quantise`"),
        ({"passes": [{"mode": "static"}]}, UsageError, "a pass of a recipe needs a `name`"),
        ({"passes": ["simplify"]}, UsageError, "a pass of a recipe needs a `name`"),
        ({"options": {"thraeds": 1}}, UnknownName, "option of the backends named `thraeds`"),
        ({"options": {"threads": "many"}}, UsageError, "`threads` of `onnxruntime` expects int"),
        ({"passes": [{"name": "quantize", "mod": "static"}]}, UnknownName, "option of `quantize` named `mod`"),
    ],
)
def test_what_cannot_be_pinned(fixed: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        space(fixed=fixed)
    assert text in str(caught.value)


def test_without_the_default_runtime_the_first_usable_backend_is_the_baseline() -> None:
    only = {"openvino": BACKENDS["openvino"]}
    assert space(backends=only)[0].recipe.backend == "openvino"


def test_no_backend_at_all() -> None:
    with pytest.raises(NoBackend) as caught:
        space(backends={"missing": Missing()})
    assert "`missing`: the package `missing` is not installed: pip install missing" in str(caught.value)
    assert "doctor" in str(caught.value.hint)


def test_names_are_looked_up_in_the_registry() -> None:
    with pytest.raises(UnknownName):
        candidates(MODEL, TARGET, EXACT, passes=["nosuchpass"], backends=BACKENDS)
    with pytest.raises(UnknownName):
        candidates(MODEL, TARGET, EXACT, passes=PASSES, backends=["nosuchbackend"])


def test_candidates_of_the_same_arithmetic_share_a_judgement() -> None:
    found = live(space())
    groups = {c.numerics for c in found}
    # ORT: 6 chains; OpenVINO: 4 chains in two precisions; torch: one.
    assert len(groups) == 6 + 8 + 1


def test_describe_says_size_and_dimensions() -> None:
    found = space()
    told = describe(found)
    assert told["candidates"] == len(live(found)) == sum(told["chains"].values())
    assert told["exact"] == 24
    assert told["backends"]["openvino"]["options"]["precision"] == ["f32", "bf16"]
    assert sum(b["recipes"] for b in told["backends"].values()) == told["candidates"]
    assert told["refused"] == len(told["refusals"]) > 0
    assert {"passes", "backend", "options", "reason"} == set(told["refusals"][0])


def kinds() -> dict[str, Any]:
    """A pass of each kind that changes outputs, beside the fakes."""

    @compression(lossy=lambda p: True, stage=lambda p: "structure", produces=lambda p: ("shape:pruned",))
    def thin(model: Model, context: Context) -> Model:
        """Takes channels out."""
        return model

    @compression(lossy=lambda p: True, stage=lambda p: "sparsity", produces=lambda p: ("sparsity:unstructured",))
    def zeros(model: Model, context: Context) -> Model:
        """Makes zeros."""
        return model

    @compression(lossy=lambda p: True, stage=lambda p: "precision", produces=lambda p: ("int8:dynamic",))
    def fewer(model: Model, context: Context) -> Model:
        """Takes bits."""
        return model

    @compression(stage=lambda p: "kernels", refuse=lambda m, p, t: "its chains are codes" if m.features else None)
    def blend(model: Model, context: Context) -> Model:
        """Puts kernels in."""
        return model

    return {"thin": thin, "zeros": zeros, "fewer": fewer, "blend": blend}


SMALL = parse_goals(["cosine >= 0.9", "min size"])


def test_two_passes_that_change_outputs_are_combined_in_the_order_of_their_kinds() -> None:
    chains = {str(c.recipe) for c in live(space(SMALL, passes=kinds()))}
    changed = {"thin", "zeros", "fewer", "thin + zeros", "thin + fewer", "zeros + fewer"}
    assert chains == {"-", "blend", *changed}, "a chain that one of its passes refuses is not tried"


def test_what_keeps_the_outputs_stands_where_its_kind_does() -> None:
    @compression(stage=lambda p: "kernels")
    def blend(model: Model, context: Context) -> Model:
        """Puts kernels in."""
        return model

    @compression()
    def clear(model: Model, context: Context) -> Model:
        """Simplifies."""
        return model

    passes = {"blend": blend, "clear": clear, "fewer": kinds()["fewer"]}
    pairs = {"blend", "clear", "fewer", "clear + blend", "fewer + blend", "clear + fewer"}
    assert {str(c.recipe) for c in live(space(SMALL, passes=passes))} == {"-", *pairs, "clear + fewer + blend"}


def test_nothing_is_simplified_twice() -> None:
    """A pass that only folds is left out before one that folds too, and stays before one that does not."""

    @compression(folds=lambda p: True)
    def clear(model: Model, context: Context) -> Model:
        """Simplifies."""
        return model

    @compression(stage=lambda p: "length", produces=lambda p: ("shape:short",), folds=lambda p: True)
    def short(model: Model, context: Context) -> Model:
        """Simplifies and cuts."""
        return model

    passes = {"clear": clear, "short": short, "fewer": kinds()["fewer"]}
    chains = {str(c.recipe) for c in live(space(SMALL, passes=passes))}
    assert chains == {"-", "clear", "short", "fewer", "short + fewer", "clear + fewer"}


def test_passes_that_compile_are_as_heavy_as_backends_that_do() -> None:
    @compression(stage=lambda p: "kernels", produces=lambda p: ("kernels",))
    def weave(model: Model, context: Context) -> Model:
        """Compiles."""
        return model

    class Woven(Ort):
        exploits = (Exploit("kernels"),)

    found = live(space(EXACT, passes={"weave": weave}, backends={"onnxruntime": Woven()}))
    assert {(str(c.recipe), c.heavy) for c in found} == {("-", False), ("weave", True)}


def test_a_feature_is_tried_only_with_the_options_that_it_needs() -> None:
    @compression(produces=lambda p: ("woven",))
    def weave(model: Model, context: Context) -> Model:
        """Weaves."""
        return model

    class Woven(Ort):
        exploits = (Exploit("woven", options={"threads": (1,)}),)

    def threads(**more: Any) -> set[tuple[str, int]]:
        found = live(space(EXACT, passes={"weave": weave}, backends={"onnxruntime": Woven()}, **more))
        return {(str(c.recipe), c.recipe.options["threads"]) for c in found}

    assert ("-", 0) in threads()
    assert {count for name, count in threads() if name == "weave"} == {1}
    assert ("weave", 4) in threads(fixed={"options": {"threads": 4}}), "what is named is tried"


def test_a_recipe_in_a_bad_order_is_refused_with_its_reason() -> None:
    for names, why in (
        (("fewer", "zeros"), "`zeros` after `fewer`: weights of reduced precision are on a grid"),
        (("zeros", "thin"), "`thin` after `zeros`: its smaller matrices mix the zeros with the rest"),
        (("fewer", "fewer"), "`fewer` after `fewer`: the weights have a reduced precision already"),
    ):
        found = space(SMALL, passes=kinds(), fixed={"passes": [{"name": name} for name in names]})
        assert refusals(found)[" + ".join(names), "*"].startswith(why)
        assert {str(c.recipe) for c in live(found)} == {"-"}


def test_what_saves_only_bytes_needs_a_goal_about_bytes() -> None:
    reasons = refusals(space(LOSSY, passes=kinds()))
    assert "saves bytes but no time" in reasons["zeros", "*"]
    assert "zeros" in {str(c.recipe) for c in live(space(SMALL, passes=kinds()))}
    assert "thin" in {str(c.recipe) for c in live(space(LOSSY, passes=kinds()))}, "smaller shapes are faster everywhere"
