from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import EXACT, LOSSY, NETWORKS, Machine, space

from portolan.core.goal import Goals, parse_goals
from portolan.core.measurement import Measurement, Metrics
from portolan.core.recipe import Recipe
from portolan.search.searcher import Proposal, Searcher
from portolan.search.space import Candidate

TWO = parse_goals(["cosine >= 0.99", "min latency_p50", "min size"])
LIMITED = parse_goals(["cosine >= 0.99", "latency_p50 < 5ms", "min size"])


def run(searcher: Searcher, machine: Machine, trials: int = 1000, seconds: float = math.inf) -> list[Proposal]:
    """Lets the machine answer until the searcher ends, or the trials or seconds do."""
    proposals, spent = [], 0.0
    for _ in range(trials):
        proposal = searcher.ask()
        if proposal is None:
            break
        metrics, cost, failure = machine.trial(proposal.candidate, proposal.level, proposal.judge)
        spent += cost
        if spent > seconds:
            break
        proposals.append(proposal)
        searcher.tell(proposal.candidate, proposal.level, metrics, cost, failure)
    return proposals


def asked(proposals: list[Proposal]) -> list[tuple[str, int]]:
    return [(p.candidate.key, p.level) for p in proposals]


def live(goals: Goals = LOSSY) -> list[Candidate]:
    return space(goals, refused_too=False)


def bests(name: str, goals: Goals = LOSSY, machine: Machine | None = None) -> tuple[Candidate, float]:
    """The true best and its milliseconds."""
    machine = machine or Machine(NETWORKS[name])
    fine = [c for c in live(goals) if machine.truth(c)[2] >= 0.99 and not machine.crash(c.recipe)]
    best = min(fine, key=lambda c: machine.truth(c)[0])
    return best, machine.truth(best)[0]


def everything(machine: Machine, goals: Goals = LOSSY) -> float:
    return sum(machine.seconds(c, 0) + 3.0 for c in live(goals))


def reading(ms: float, half: float = 0.02, **others: float) -> Metrics:
    metrics = {"latency_p50": Measurement.of("latency_p50", ms, ms * (1 - half), ms * (1 + half), 50)}
    metrics["cosine"] = Measurement.of("cosine", others.pop("cosine", 1.0))
    metrics["max_rel_error"] = Measurement.of("max_rel_error", others.pop("max_rel_error", 1e-6))
    return metrics | {name: Measurement.of(name, value) for name, value in others.items()}


# --- the order


def test_the_baseline_is_first_and_light_defaults_follow() -> None:
    found = live()
    proposals = run(Searcher(found, LOSSY), Machine(NETWORKS["bert"]), trials=2)
    assert proposals[0].candidate == found[0]
    assert (proposals[0].level, proposals[0].judge) == (0, True)
    assert proposals[1].candidate.recipe.backend == "openvino"
    assert proposals[1].candidate.recipe.options["precision"] == "f32"


def test_native_code_is_compiled_after_a_usable_answer_but_it_is_compiled() -> None:
    proposals = run(Searcher(live(EXACT), EXACT), Machine(NETWORKS["bert"]), trials=14)
    first = next(i for i, p in enumerate(proposals) if p.candidate.recipe.backend == "torch")
    assert first >= 4
    assert proposals[first].candidate == next(c for c in live(EXACT) if c.heavy)
    assert proposals[first].why == "the defaults of a backend"


def test_every_backend_is_introduced_once_its_defaults_were_asked_for() -> None:
    searcher = Searcher(live(EXACT), EXACT)
    seen: set[str] = set()
    backends = {c.recipe.backend for c in live(EXACT)}
    while not searcher.introduced:
        proposal = searcher.ask()
        assert proposal is not None
        seen.add(proposal.candidate.recipe.backend)
        searcher.tell(proposal.candidate, proposal.level, None, 1.0, "it failed")
    assert seen == backends


def test_chains_that_may_pay_are_tried_early() -> None:
    proposals = run(Searcher(live(), LOSSY), Machine(NETWORKS["resnet"]), trials=12)
    last = {str(p.candidate.recipe.passes[-1]) for p in proposals if p.candidate.recipe.passes}
    assert last >= {"quantize(mode=dynamic)", "quantize(mode=static)"}
    plain = [p for p in proposals if p.why == "a chain not tried yet"]
    assert len({p.candidate.recipe.chain for p in plain}) == len(plain) > 1
    usual = {c.recipe.backend: c.recipe.options for c in reversed(live()) if not c.recipe.passes}
    for p in plain:  # with its backend's default options
        chosen = p.candidate.recipe
        assert {**chosen.options, "precision": 0} == {**usual[chosen.backend], "precision": 0}


def test_wide_spaces_get_far_off_points() -> None:
    found = live()
    many = found + [
        Candidate(Recipe(c.recipe.passes, c.recipe.backend, {**c.recipe.options, "stripe": i}), c.exact)
        for c in found[1:]
        for i in range(2)
        if not c.heavy
    ]
    assert len(many) > 160
    proposals = run(Searcher(many, LOSSY), Machine(NETWORKS["bert"]), trials=20)
    assert len(many) // 80 <= sum(p.why == "unlike what was tried" for p in proposals) <= 5


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_it_finds_a_recipe_close_to_the_best_with_a_fifth_of_the_cost(name: str) -> None:
    machine = Machine(NETWORKS[name])
    _, best = bests(name)
    regrets = []
    for seed in range(3):
        searcher = Searcher(live(), LOSSY, seed=seed)
        run(searcher, machine, seconds=0.2 * everything(machine))
        found = searcher.best()
        assert found is not None
        regrets.append(machine.truth(found)[0] / best - 1)
    assert np.median(regrets) < 0.04


# --- determinism and resuming


def test_the_same_seed_gives_the_same_proposals() -> None:
    runs = [asked(run(Searcher(live(), LOSSY, seed=s), Machine(NETWORKS["vit"]), trials=25)) for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("stop", [1, 5, 12, 20])
def test_it_goes_on_where_it_was(stop: int) -> None:
    machine = Machine(NETWORKS["minilm"])
    whole = asked(run(Searcher(live(), LOSSY, seed=4), machine, trials=24))
    first = Searcher(live(), LOSSY, seed=4)
    begun = run(first, machine, trials=stop)
    again = Searcher(live(), LOSSY, seed=4)
    for p in begun:
        metrics, cost, failure = machine.trial(p.candidate, p.level, p.judge)
        again.tell(p.candidate, p.level, metrics, cost, failure)
    rest = run(again, machine, trials=len(whole) - stop)
    assert asked(begun) + asked(rest) == whole


# --- anytime


@given(
    st.integers(0, 40),
    st.integers(0, 3),
    st.sampled_from(sorted(NETWORKS)),
    st.sampled_from([EXACT, LOSSY, TWO, LIMITED]),
)
@settings(max_examples=25, deadline=None)
def test_stopped_at_any_time_the_answer_is_valid(trials: int, seed: int, name: str, goals: Goals) -> None:
    machine = Machine(NETWORKS[name], crash=lambda r: r.options.get("hint") == "throughput")
    searcher = Searcher(live(goals), goals, seed=seed)
    proposals = run(searcher, machine, trials=trials)
    assert len(set(asked(proposals))) == len(proposals), "the same trial was asked for twice"
    tried = {p.candidate.key for p in proposals}
    best, closest, finalists = searcher.best(), searcher.closest(), searcher.finalists(5)
    assert (closest is None) == (not proposals)
    if best is not None:
        assert best.key in tried
        assert goals.unmet(searcher.metrics(best)) == []
        assert best in finalists
        assert closest is not None
        assert goals.unmet(searcher.metrics(closest)) == []
    else:
        assert finalists == []
    for c in finalists:
        assert c.key in tried
        assert goals.unmet(searcher.metrics(c)) == []
    assert len(finalists) <= 5
    if proposals and goals is not LIMITED:
        assert best is not None, "the untouched model is always an answer"


@pytest.mark.parametrize("goals", [EXACT, LOSSY, TWO, LIMITED])
def test_it_ends_and_says_why(goals: Goals) -> None:
    searcher = Searcher(live(goals), goals)
    proposals = run(searcher, Machine(NETWORKS["bert"]))
    assert searcher.ask() is None
    assert searcher.stopped is not None
    assert len({p.candidate.key for p in proposals}) <= len(live(goals))
    assert any(p.level == 1 for p in proposals) == (goals is not LIMITED)  # which nothing here can meet


def test_when_no_limit_can_be_met_it_looks_for_the_closest() -> None:
    machine = Machine(NETWORKS["bert"])
    searcher = Searcher(live(LIMITED), LIMITED)
    run(searcher, machine, trials=25)
    closest = searcher.closest()
    assert searcher.best() is None
    assert closest is not None
    assert machine.truth(closest)[0] < 1.15 * bests("bert")[1]


def test_it_stops_when_nothing_is_gained() -> None:
    searcher = Searcher(live(), LOSSY)
    proposals = run(searcher, Machine(NETWORKS["bert"]))
    assert len({p.candidate.key for p in proposals}) < 0.7 * len(live())
    assert searcher.stopped is not None
    assert searcher.stopped.startswith("the last 3 batches of 4 gained less than 1%")


def test_when_the_budget_ends_only_contenders_are_measured_longer() -> None:
    searcher = Searcher(live(), LOSSY)
    machine = Machine(NETWORKS["bert"])
    run(searcher, machine, trials=12)
    tried = set()
    for _ in range(30):
        p = searcher.ask(closing=True)
        if p is None:
            break
        assert p.level == 1
        tried.add(p.candidate.key)
        metrics, cost, failure = machine.trial(p.candidate, p.level, p.judge)
        searcher.tell(p.candidate, p.level, metrics, cost, failure)
    assert searcher.stopped == "the budget is nearly spent"
    best = searcher.best()
    assert best is not None
    assert tried
    assert searcher.ask() is not None, "more budget, more trials"


def test_an_empty_space() -> None:
    searcher = Searcher([c for c in space() if c.refused], LOSSY)
    assert searcher.ask() is None
    assert searcher.stopped == "every candidate was tried"
    assert (searcher.best(), searcher.closest(), searcher.finalists(3)) == (None, None, [])


def test_refused_candidates_are_never_proposed() -> None:
    found = space()
    refused = {c.key for c in found if c.refused}
    assert refused
    assert refused.isdisjoint(key for key, _ in asked(run(Searcher(found, LOSSY), Machine(NETWORKS["vit"]))))


def test_several_can_be_asked_for_before_any_is_told() -> None:
    searcher = Searcher(live(), LOSSY)
    proposals = [searcher.ask() for _ in range(6)]
    keys = [p.candidate.key for p in proposals if p is not None]
    assert len(set(keys)) == 6


def test_while_all_are_pending_there_is_nothing_to_ask_and_no_end() -> None:
    found = live()[:2]
    searcher = Searcher(found, LOSSY)
    assert searcher.ask() is not None
    assert searcher.ask() is not None
    assert searcher.ask() is None
    assert searcher.stopped is None


def test_a_candidate_outside_the_space_is_ignored() -> None:
    searcher = Searcher(live(), LOSSY)
    foreign = Candidate(Recipe(backend="elsewhere"))
    searcher.tell(foreign, 0, reading(0.001), 1.0)
    assert searcher.closest() is None
    assert searcher.metrics(foreign) == {}


# --- quality


def test_quality_is_judged_once_for_each_arithmetic() -> None:
    proposals = run(Searcher(live(), LOSSY), Machine(NETWORKS["bert"]))
    judged = [p.candidate.numerics for p in proposals if p.judge]
    assert len(set(judged)) == len(judged)
    assert {p.candidate.numerics for p in proposals} == set(judged)


def test_what_fails_quality_is_not_timed_again() -> None:
    machine = Machine(NETWORKS["vit"])  # static quantization has cosine 0.97 here
    searcher = Searcher(live(), LOSSY)
    proposals = run(searcher, machine)
    bad = [p for p in proposals if machine.truth(p.candidate)[2] < 0.99]
    assert bad
    assert len({p.candidate.numerics for p in bad}) == len(bad)
    assert all(p.level == 0 for p in bad)
    skipped = searcher.skipped()
    assert skipped
    assert {c.numerics for c in skipped} <= {p.candidate.numerics for p in bad}
    assert all(c.refused == "cosine is 0.97 with the same arithmetic, and the goal is cosine >= 0.99" for c in skipped)


def test_changes_that_failed_elsewhere_are_expected_to_fail() -> None:
    machine = Machine(NETWORKS["vit"])
    searcher = Searcher(live(), LOSSY)
    proposals = run(searcher, machine)
    static = [p for p in proposals if "static" in str(p.candidate.recipe)]
    assert len(static) <= 4  # of 28, in 6 arithmetics


def test_quality_alone_may_be_told() -> None:
    searcher = Searcher(live(), LOSSY)
    proposal = searcher.ask()
    assert proposal is not None
    searcher.tell(proposal.candidate, 0, {"cosine": Measurement.of("cosine", 0.5)}, 1.0)
    assert searcher.best() is None
    assert searcher.closest() == proposal.candidate
    following = searcher.ask()
    assert following is not None
    assert following.candidate.numerics != proposal.candidate.numerics


def test_quality_that_was_not_shown_is_judged_again_on_more_samples() -> None:
    searcher = Searcher(live()[:1], LOSSY)
    proposal = searcher.ask()
    assert proposal is not None
    few = {**reading(5.0), "cosine": Measurement.of("cosine", 0.992, 0.985, 0.999, 8)}
    searcher.tell(proposal.candidate, 0, few, 1.0)
    assert searcher.best() is None
    longer = searcher.ask()
    assert longer is not None
    assert (longer.level, longer.judge) == (1, True)
    many = {**reading(5.0), "cosine": Measurement.of("cosine", 0.992, 0.991, 0.993, 512)}
    searcher.tell(longer.candidate, 1, many, 1.0)
    assert searcher.best() == proposal.candidate


# --- limits and missing readings


def test_a_missing_metric_is_not_met() -> None:
    goals = parse_goals(["throughput >= 10/s", "cosine >= 0.9"])
    searcher = Searcher(live(), goals)
    run(searcher, Machine(NETWORKS["bert"]), trials=5)
    assert searcher.best() is None
    assert searcher.finalists(3) == []
    assert searcher.closest() is not None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_never_the_best(value: float) -> None:
    found = live()
    searcher = Searcher(found, LOSSY)
    searcher.tell(found[0], 0, reading(10.0), 1.0)
    searcher.tell(found[1], 1, {**reading(1.0), "latency_p50": Measurement.of("latency_p50", value)}, 1.0)
    assert searcher.best() == found[0]
    assert searcher.ask() is not None


def test_a_limit_is_met_by_the_whole_interval() -> None:
    goals = parse_goals(["latency_p50 < 10ms", "cosine >= 0.9"])
    found = live()
    searcher = Searcher(found, goals)
    searcher.tell(found[0], 0, reading(9.9, 0.05), 1.0)
    assert searcher.best() is None
    assert searcher.closest() == found[0]
    searcher.tell(found[0], 1, reading(9.8, 0.01), 1.0)
    assert searcher.best() == found[0]


def test_what_is_read_only_in_long_runs_is_still_reached() -> None:
    goals = parse_goals(["max throughput", "cosine >= 0.99"])
    machine = Machine(NETWORKS["bert"])
    searcher = Searcher(live(goals), goals)
    for _ in range(60):
        p = searcher.ask()
        if p is None:
            break
        metrics, cost, failure = machine.trial(p.candidate, p.level, p.judge)
        assert metrics is not None
        if p.level == 1:
            metrics["throughput"] = Measurement.of("throughput", 1000 / metrics["latency_p50"].value)
        searcher.tell(p.candidate, p.level, metrics, cost, failure)
    best = searcher.best()
    assert best is not None
    assert machine.truth(best)[0] < 1.1 * bests("bert")[1]


def test_closest_misses_by_the_least() -> None:
    goals = parse_goals(["latency_p50 < 1ms", "cosine >= 0.9"])
    found = live()
    searcher = Searcher(found, goals)
    for place, ms in enumerate((9.0, 4.0, 6.0)):
        searcher.tell(found[place], 0, reading(ms), 1.0)
    searcher.tell(found[3], 0, {"cosine": Measurement.of("cosine", 1.0)}, 1.0)  # nothing read: infinitely far
    assert searcher.closest() == found[1]


# --- picking


def test_a_short_lucky_reading_does_not_beat_a_long_one() -> None:
    found = live()
    searcher = Searcher(found, LOSSY)
    searcher.tell(found[0], 1, reading(10.0, 0.01), 1.0)
    searcher.tell(found[1], 0, reading(9.8, 0.08), 1.0)
    assert searcher.best() == found[0]
    assert searcher.finalists(4) == [found[0], found[1]]


def test_the_first_objective_ranks_and_the_next_breaks_ties() -> None:
    found = live()
    searcher = Searcher(found, TWO)
    searcher.tell(found[0], 1, reading(10.0, 0.01, size=100.0), 1.0)
    searcher.tell(found[1], 1, reading(5.00, 0.01, size=90.0), 1.0)
    searcher.tell(found[2], 1, reading(5.05, 0.01, size=20.0), 1.0)
    searcher.tell(found[3], 1, reading(8.0, 0.01, size=10.0), 1.0)
    assert searcher.best() == found[2]
    finalists = searcher.finalists(4)
    assert found[3] in finalists  # the small end of the front
    assert found[0] in finalists  # the best of the defaults, although it is dominated


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_no_more_finalists_than_asked_for(most: int) -> None:
    found = live()
    searcher = Searcher(found, LOSSY)
    for place in range(4):
        searcher.tell(found[place], 1, reading(10.0 - place / 100, 0.05), 1.0)
    assert len(searcher.finalists(most)) == most


# --- faults


def regions() -> Mapping[str, Callable[[Recipe], bool]]:
    return {
        "a backend": lambda r: r.backend == "openvino",
        "a chain": lambda r: any(s.options.get("mode") == "static" for s in r.passes),
        "an option": lambda r: r.options.get("graph_optimization") == "disabled",
    }


@pytest.mark.parametrize("region", sorted(regions()))
def test_a_region_that_crashes_costs_little(region: str) -> None:
    machine = Machine(NETWORKS["resnet"], crash=regions()[region])
    searcher = Searcher(live(), LOSSY)
    proposals = run(searcher, machine)
    crashed = [p for p in proposals if machine.crash(p.candidate.recipe)]
    inside = [c for c in live() if machine.crash(c.recipe)]
    assert len(crashed) <= max(4, 0.25 * len(inside))
    assert sum(machine.seconds(p.candidate, 0) for p in crashed) <= 0.05 * everything(machine)
    best = searcher.best()
    assert best is not None
    assert machine.truth(best)[0] < 1.05 * bests("resnet", machine=machine)[1]
    assert best not in [p.candidate for p in crashed]


def test_when_everything_crashes_there_is_no_answer_but_an_end() -> None:
    searcher = Searcher(live(), LOSSY)
    run(searcher, Machine(NETWORKS["vit"], crash=lambda r: True))
    assert searcher.ask() is None
    assert searcher.stopped == "every candidate was tried"
    assert (searcher.best(), searcher.closest(), searcher.finalists(2)) == (None, None, [])


def test_a_failure_after_a_good_screening_takes_it_out() -> None:
    found = live()
    searcher = Searcher(found, LOSSY)
    searcher.tell(found[0], 0, reading(10.0), 1.0)
    searcher.tell(found[1], 0, reading(1.0), 1.0)
    assert searcher.best() == found[1]
    searcher.tell(found[1], 1, None, 1.0, "outputs are not finite")
    assert searcher.best() == found[0]


def test_no_metrics_and_no_reason_is_a_failure() -> None:
    found = live()
    searcher = Searcher(found, LOSSY)
    searcher.tell(found[0], 0, None, 1.0)
    assert searcher.closest() is None


# --- the ledger


def prior(name: str, sign: float = 1.0, seed: int = 5) -> dict[str, dict[str, Any]]:
    machine = Machine(NETWORKS[name], seed)
    return {
        c.key: {
            "latency_p50": math.exp(sign * math.log(machine.truth(c)[0])),
            "cosine": machine.truth(c)[2],
            "seconds": machine.seconds(c, 0),
        }
        for c in live()
    }


def test_a_ledger_of_another_model_leads_straight_to_the_best() -> None:
    machine = Machine(NETWORKS["resnet"])
    searcher = Searcher(live(), LOSSY, prior=[prior("mobilenet"), prior("resnet")])
    proposals = run(searcher, machine, trials=8)
    assert any(p.why == "best elsewhere" for p in proposals)
    best = searcher.best()
    assert best is not None
    assert machine.truth(best)[0] < 1.1 * bests("resnet")[1]


def test_a_misleading_ledger_costs_at_most_as_much_again() -> None:
    machine = Machine(NETWORKS["bert"])
    regrets = []
    for seed in range(3):
        searcher = Searcher(live(), LOSSY, seed=seed, prior=prior("bert", sign=-1.0))
        run(searcher, machine, seconds=0.4 * everything(machine))
        best = searcher.best()
        assert best is not None
        regrets.append(machine.truth(best)[0] / bests("bert")[1] - 1)
    assert np.median(regrets) < 0.05


def test_a_ledger_that_knows_none_of_the_recipes_changes_nothing() -> None:
    machine = Machine(NETWORKS["vit"])
    without = asked(run(Searcher(live(), LOSSY), machine, trials=12))
    other = asked(run(Searcher(live(), LOSSY, prior={"0123": {"latency_p50": 1.0}}), machine, trials=12))
    assert other == without


def test_a_space_of_thousands_is_searched() -> None:
    found = live()
    many = found + [
        Candidate(Recipe(c.recipe.passes, c.recipe.backend, {**c.recipe.options, "stripe": i}), c.exact)
        for c in found[1:]
        for i in range(40)
        if not c.heavy
    ]
    assert len(many) > 2500
    machine = Machine(NETWORKS["resnet"])
    searcher = Searcher(many, LOSSY)
    run(searcher, machine, trials=40)
    best = searcher.best()
    assert best is not None
    assert machine.truth(best)[0] < 1.1 * bests("resnet")[1]


def test_a_chain_that_cannot_be_built_rules_out_every_chain_that_starts_with_it() -> None:
    searcher, candidates = Searcher(live(), LOSSY), live()
    chain = next(c.recipe.passes for c in candidates if len(c.recipe.passes) > 1)
    searcher.rule_out(chain[:1], "nothing to change")
    asked = run(searcher, Machine(NETWORKS["bert"]))
    assert any(c.recipe.passes[:1] == chain[:1] for c in candidates)
    assert not any(p.candidate.recipe.passes[:1] == chain[:1] for p in asked)
    assert any(p.candidate.recipe.passes for p in asked)
    assert {c.refused for c in searcher.skipped() if c.recipe.passes[:1] == chain[:1]} == {
        f"{chain[0]}: nothing to change"
    }
