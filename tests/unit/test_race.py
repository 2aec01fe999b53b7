from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from portolan.errors import Interrupted, ModelError, UnknownName, UsageError, WorkerCrashed, WorkerError
from portolan.measure.lock import lock_path
from portolan.measure.race import Arm, looks, race
from portolan.measure.result import UNDECIDED, Race, Samples
from portolan.measure.simulate import Conditions, Machine

QUIET = Conditions(drift=0, offset=0, noise=0.002, spikes=0)
EXACT = Conditions(drift=0, offset=0, noise=0, spikes=0)


def machine(seed=0, conditions=None, slowdown=None):
    return Machine(np.random.default_rng(seed), conditions, slowdown)


def run(m, arms, seed=0, **options):
    options = {"baseline": arms[0].name, "lock": lambda wait: nullcontext(), "clock": m.clock, **options}
    return race(arms, rng=np.random.default_rng([seed, 1]), **options)


def pair(m, effect, base=5.0):
    return [m.arm("base", base), m.arm("candidate", base * (1 - effect))]


def verdict(effect, seed, conditions=None, slowdown=None, **options):
    m = machine(seed, conditions, slowdown)
    return run(m, pair(m, effect), seed, **options).ratio("candidate", "base").verdict


def made(logs, again=None, looks=1, **fields):
    """A race whose block medians are exp of `logs`: arm name to [starts, blocks]; the baseline is `base` at 1 ms."""
    shape = np.shape(next(iter(logs.values())))

    def samples(table):
        return Samples([[np.array([np.exp(x)]) for x in row] for row in table], [[1.0] for _ in table])

    arms = {"base": samples(np.zeros(shape)), **{name: samples(table) for name, table in logs.items()}}
    return Race("base", arms, samples(np.zeros(shape) if again is None else again), looks=looks, **fields)


# What a race finds


def test_a_planted_gain_is_found_and_a_loss_too():
    assert [verdict(0.05, seed) for seed in range(12)].count("faster") >= 11
    assert [verdict(-0.05, seed) for seed in range(12)].count("slower") >= 11
    assert [verdict(0.03, seed, starts=20) for seed in range(12)].count("faster") >= 11


def test_equal_arms_and_half_a_percent_are_no_difference():
    assert [verdict(0.0, seed) for seed in range(25)].count(UNDECIDED) >= 24
    assert [verdict(0.005, seed, starts=8, blocks=5) for seed in range(25)].count(UNDECIDED) >= 24


def test_two_speeds_crown_nobody():
    two = Conditions(slow_mode=0.5)
    assert [verdict(0.0, seed, two) for seed in range(25)].count(UNDECIDED) >= 24


@pytest.mark.parametrize("effect", [0.06, 0.0, -0.06])
def test_a_slowdown_of_a_third_of_the_run_flips_no_verdict(effect):
    wanted = {0.06: "faster", 0.0: UNDECIDED, -0.06: "slower"}[effect]
    for seed in range(6):
        calm = machine(seed)
        run(calm, pair(calm, effect), seed)
        third = calm.now / 3

        def slow(now, third=third):
            return 1.3 if third < now < 2 * third else 1.0

        assert verdict(effect, seed) == wanted
        assert verdict(effect, seed, slowdown=slow) == wanted


def test_the_latencies_of_one_arm_alone():
    m = machine(0, EXACT)
    found = run(m, [m.arm("only", 4.0)])
    metrics = found.arms["only"].metrics()
    assert list(metrics) == ["latency_p50", "latency_p95", "latency_p99"]
    assert metrics["latency_p50"].value == pytest.approx(4.0)
    assert metrics["latency_p50"].n == 5 * 4 * 25
    assert found.ratios() == []
    assert found.noise.aa_ratio == pytest.approx(1.0)


def test_percentiles_need_their_readings():
    def names(readings):
        return list(Samples([[np.linspace(1, 2, readings)]]).metrics())

    assert names(19) == ["latency_p50"]
    assert names(20) == names(458) == ["latency_p50", "latency_p95"]
    assert names(459) == ["latency_p50", "latency_p95", "latency_p99"]


def test_the_upper_end_of_p99_is_its_bound():
    ms = np.arange(1.0, 460.0)
    assert Samples([[ms]]).metrics()["latency_p99"].hi >= 459


# How it runs


def test_blocks_are_interleaved_in_random_order_and_all_recorded():
    m = machine(0, QUIET)
    found = run(m, [*pair(m, 0.0), m.arm("third", 5.0)], starts=5, blocks=6)
    assert len(found.order) == 5
    assert all(len(start) == 6 for start in found.order)
    everyone = sorted(["base", "base (again)", "candidate", "third"])
    assert all(sorted(block) == everyone for start in found.order for block in start)
    assert len({tuple(block) for start in found.order for block in start}) > 10
    assert all(len(s.blocks) == 5 and all(len(b) == 6 for b in s.blocks) for s in found.arms.values())


def test_each_start_is_a_process_of_its_own_and_ends_with_its_round():
    m = machine(0, QUIET)
    alive, started = [], []

    def counted(arm):
        def start():
            started.append(arm.name)
            session = arm.start()
            alive.append(m.open_sessions)
            return session

        return Arm(arm.name, start)

    run(m, [counted(arm) for arm in pair(m, 0.0)], starts=3)
    assert m.open_sessions == 0
    assert max(alive) == 3
    assert (started.count("base"), started.count("candidate")) == (6, 3)


def test_a_clear_difference_ends_the_race_at_the_first_look():
    m = machine(0, QUIET)
    found = run(m, pair(m, 0.3), starts=20)
    assert (found.stopped, found.starts, found.looks) == ("decided", 5, 3)


def test_equal_arms_end_it_when_the_interval_is_narrow():
    m = machine(0, QUIET)
    found = run(m, pair(m, 0.0), starts=20)
    assert (found.stopped, found.starts) == ("decided", 5)
    assert found.ratio("candidate", "base").verdict == UNDECIDED


def test_one_arm_alone_ends_when_its_noise_floor_is_narrow():
    m = machine(0, QUIET)
    found = run(m, [m.arm("only", 5.0)], starts=20)
    assert (found.stopped, found.starts) == ("decided", 5)


def test_looks_are_few_and_fixed():
    assert looks(4) == []
    assert looks(5) == [5]
    assert looks(8) == [5, 8]
    assert looks(20) == [5, 10, 20]
    assert looks(30) == [5, 10, 20, 30]


def test_a_clearly_beaten_arm_leaves_and_the_open_question_goes_on():
    m = machine(1, Conditions(offset=0.03))
    found = run(m, [m.arm("base", 5.0), m.arm("near", 4.9), m.arm("far", 9.0)], starts=10)
    assert found.eliminated == {"far": 5}
    assert len(found.arms["far"].blocks) == 5
    assert len(found.arms["near"].blocks) == len(found.arms["base"].blocks) == 10
    assert found.ratio("far", "base").verdict == "slower"
    assert found.ratio("far", "base").starts == 5
    assert "far" not in found.order[-1][0]


def test_the_baseline_is_never_eliminated():
    m = machine(1, Conditions(offset=0.03))
    found = run(m, [m.arm("base", 9.0), m.arm("one", 5.0), m.arm("two", 4.95)], starts=10)
    assert found.eliminated == {}
    assert found.starts == len(found.arms["base"].blocks) == 10
    assert found.ratio("one", "base").verdict == "faster"


def test_below_five_starts_there_are_readings_but_no_claims():
    m = machine(0, QUIET)
    found = run(m, pair(m, 0.5), starts=4)
    ratio = found.ratio("candidate", "base")
    assert ratio.hi < 0.6
    assert ratio.verdict == UNDECIDED


def test_one_start_without_an_aa_arm_screens():
    m = machine(0, QUIET)
    found = run(m, pair(m, 0.5), starts=1, aa=False)
    assert found.again is None
    assert found.noise.to_json() == {"aa_ratio": None, "lo": None, "hi": None, "ok": False}
    assert found.arms["candidate"].metrics()["latency_p50"].value == pytest.approx(2.5, rel=0.01)
    assert found.ratio("candidate", "base").verdict == UNDECIDED


def test_without_an_aa_arm_more_starts_still_end_when_resolved():
    m = machine(0, QUIET)
    found = run(m, pair(m, 0.3), starts=20, aa=False)
    assert (found.stopped, found.starts) == ("decided", 5)
    assert found.ratio("candidate", "base").verdict == UNDECIDED


def test_warm_up_goes_on_until_three_blocks_agree_and_is_kept_apart():
    m = machine(0, EXACT)
    script = iter([9.0, 7.0, 5.0, 4.0, 4.0, 4.0, *[3.0] * 4])
    arm = m.arm("only", 4.0, scripted=lambda: np.full(5, next(script)))
    found = run(m, [arm], starts=1, aa=False)
    assert found.arms["only"].warm_up == [[9.0, 7.0, 5.0, 4.0, 4.0, 4.0]]
    assert found.arms["only"].medians.tolist() == [[3.0] * 4]


def test_warm_up_that_never_settles_is_bounded():
    m = machine(0, EXACT)
    values = iter(np.tile([4.0, 8.0], 500))

    def block():
        m.pause(0.1)
        return np.full(5, next(values))

    found = run(m, [m.arm("only", 4.0, scripted=block)], starts=1, aa=False, warm_up=1.0)
    assert len(found.arms["only"].warm_up[0]) == pytest.approx(10, abs=1)


def test_progress_is_told_once_per_start():
    m, lines = machine(0, QUIET), []
    run(m, pair(m, 0.0), starts=3, progress=lines.append)
    assert lines == [f"start {i} of at most 3, 3 processes" for i in (1, 2, 3)]


def test_the_lock_is_held_while_anything_is_timed():
    m, held = machine(0, QUIET), []

    @contextmanager
    def lock(wait):
        held.append(wait)
        yield
        held.append(None)

    inside = []

    def watched():
        inside.append(len(held) % 2 == 1)
        return np.full(5, 4.0)

    run(m, [m.arm("only", 4.0, scripted=watched)], starts=2, lock=lock)
    assert inside
    assert all(inside)
    assert {wait for wait in held if wait is not None} == {60.0}


def test_on_a_real_machine_it_takes_the_users_lock_and_the_real_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    m = machine(0, EXACT)
    found = race([m.arm("only", 4.0)], baseline="only", starts=2, rng=np.random.default_rng(0))
    assert found.starts == 2
    assert lock_path().parent == tmp_path
    assert lock_path().exists()


def test_equal_seeds_give_equal_races():
    one, other = machine(3), machine(3)
    assert run(one, pair(one, 0.02), 5).order == run(other, pair(other, 0.02), 5).order
    assert one.now == other.now


# Time


def test_no_round_begins_that_would_pass_the_deadline():
    free = machine(0, QUIET)
    run(free, pair(free, 0.0), starts=1)
    m = machine(0, QUIET)
    found = run(m, pair(m, 0.0), starts=20, deadline=3.5 * free.now)
    assert found.stopped == "deadline"
    assert found.starts == 3
    assert m.now <= 3.5 * free.now


def test_a_deadline_that_is_over_still_gives_one_block_of_each():
    m = machine(0, QUIET)
    m.pause(10.0)
    waits = []

    def lock(wait):
        waits.append(wait)
        return nullcontext()

    found = run(m, pair(m, 0.0), starts=20, deadline=1.0, lock=lock)
    assert found.stopped == "deadline"
    assert [len(s.blocks[0]) for s in found.arms.values()] == [1, 1]
    assert [len(s.warm_up[0]) for s in found.arms.values()] == [1, 1]
    assert set(waits) == {0.0}


def test_a_later_round_that_the_deadline_cuts_short_is_dropped():
    m = machine(0, EXACT)
    count = [0]

    def slower():
        count[0] += 1
        m.pause(0.1 if count[0] <= 7 else 0.6)  # three warm-up blocks and four timed ones in the first round
        return np.full(5, 4.0)

    found = run(m, [m.arm("only", 4.0, scripted=slower)], starts=5, aa=False, deadline=2.9)
    assert found.starts == 1
    assert found.stopped == "deadline"


# Faults


def test_an_arm_that_crashes_is_dropped_with_its_reason_and_the_race_goes_on():
    m = machine(0, QUIET)
    found = run(m, [*pair(m, 0.3), m.arm("fragile", 5.0, fails_at=10)])
    assert found.failures == {"fragile": "`fragile` ended with signal 11"}
    assert sorted(found.arms) == ["base", "candidate"]
    assert found.starts == 5
    assert found.ratio("candidate", "base").verdict == "faster"
    assert m.open_sessions == 0
    with pytest.raises(UnknownName):
        found.ratio("fragile", "base")


def struck(m, name, ms, blocks):
    """An arm whose process is killed from outside at each of these blocks, counted over all its processes."""
    count, sound = [0], m.arm(name, ms)

    def start():
        session = sound.start()
        block = session.block

        def killed(seconds):
            count[0] += 1
            if count[0] in blocks:
                raise WorkerCrashed(f"`{name}` crashed with SIGKILL", killed=True)
            return block(seconds)

        session.block = killed
        return session

    return Arm(name, start)


@pytest.mark.parametrize("victim", ["base", "candidate"])
@pytest.mark.parametrize("block", [1, 4, 30])
def test_a_process_killed_from_outside_costs_its_round_only(victim, block):
    m = machine(0, QUIET)
    arms = [struck(m, name, ms, [block] if name == victim else []) for name, ms in (("base", 5.0), ("candidate", 3.5))]
    found = run(m, arms)
    assert found.failures == {}
    assert found.starts == len(found.arms["candidate"].blocks) == len(found.order) == 5
    assert all(len(start) == 4 for samples in found.arms.values() for start in samples.blocks)
    assert found.ratio("candidate", "base").verdict == "faster"
    assert m.open_sessions == 0


def test_a_process_that_is_killed_again_and_again_is_dropped():
    m = machine(0, QUIET)
    found = run(m, [*pair(m, 0.3), struck(m, "hungry", 5.0, range(3, 999))])
    assert found.failures == {"hungry": "`hungry` crashed with SIGKILL"}
    assert found.ratio("candidate", "base").verdict == "faster"
    with pytest.raises(WorkerCrashed):
        run(m, [struck(m, "base", 5.0, range(3, 999)), m.arm("candidate", 3.5)])
    assert m.open_sessions == 0


def test_an_arm_that_does_not_start_is_dropped():
    m = machine(0, QUIET)

    def refuse():
        raise ModelError("`x.onnx` cannot be read")

    found = run(m, [*pair(m, 0.0), Arm("broken", refuse)])
    assert found.failures == {"broken": "`x.onnx` cannot be read"}


@pytest.mark.parametrize(
    ("readings", "reason"),
    [([], "no readings"), ([1.0, np.nan], "above zero"), ([0.0], "above zero"), ([-1], "above zero")],
)
def test_impossible_readings_drop_the_arm(readings, reason):
    m = machine(0, QUIET)
    found = run(m, [*pair(m, 0.0), m.arm("liar", 5.0, scripted=lambda: np.array(readings))])
    assert reason in found.failures["liar"]


def test_the_race_ends_when_no_candidate_is_left():
    m = machine(0, QUIET)
    found = run(m, [m.arm("base", 5.0), m.arm("fragile", 5.0, fails_at=1)], starts=20)
    assert (found.stopped, found.starts) == ("no candidates", 1)
    assert list(found.arms) == ["base"]


@pytest.mark.parametrize("fails_at", [1, 5, 40])
def test_a_baseline_that_fails_ends_the_race_and_leaves_no_process(fails_at):
    m = machine(0, QUIET)
    with pytest.raises(WorkerCrashed, match="signal 11"):
        run(m, [m.arm("base", 5.0, fails_at=fails_at), m.arm("candidate", 5.0)])
    assert m.open_sessions == 0


def test_ctrl_c_of_a_worker_is_not_a_failed_arm():
    m = machine(0, QUIET)

    def stop():
        raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        run(m, [m.arm("base", 5.0), m.arm("candidate", 5.0, scripted=stop)])
    assert m.open_sessions == 0


def test_a_process_that_dies_on_closing_costs_nothing():
    m = machine(0, QUIET)
    arm = m.arm("base", 5.0)

    class Stubborn:
        def __init__(self):
            self.inner = arm.start()

        def block(self, seconds):
            return self.inner.block(seconds)

        def close(self):
            self.inner.close()
            raise WorkerError("already gone")

    found = run(m, [Arm("base", Stubborn), m.arm("candidate", 5.0)], starts=2)
    assert found.starts == 2
    assert m.open_sessions == 0


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {"baseline": "a"}, "no arm to measure"),
        (["a", "a"], {}, "`a` is there twice"),
        (["a"], {"baseline": "b"}, "no arm named `b`"),
        (["a"], {"starts": 0}, "`starts` is 0"),
        (["a"], {"blocks": -1}, "`blocks` is -1"),
        (["a"], {"block_seconds": 0.0}, "`block_seconds` is 0.0"),
        (["a"], {"precision": float("nan")}, "`precision` is nan"),
    ],
)
def test_what_cannot_be_raced_is_refused(names, options, message):
    m = machine()
    with pytest.raises(UsageError) as caught:
        race([m.arm(name, 5.0) for name in names], rng=np.random.default_rng(0), **{"baseline": "a", **options})
    assert message in caught.value.message
    assert caught.value.hint


# Verdicts


def test_a_noisy_run_makes_no_claims():
    rng = np.random.default_rng(0)
    clear = rng.normal(-0.3, 0.005, (5, 4))
    calm = made({"fast": clear}, rng.normal(0, 0.005, (5, 4)))
    assert calm.noise.ok
    assert calm.ratio("fast", "base").verdict == "faster"
    noisy = made({"fast": clear}, rng.normal(0.05, 0.005, (5, 4)))
    assert noisy.noise.ok is False
    assert noisy.ratio("fast", "base").hi < 0.8
    assert noisy.ratio("fast", "base").verdict == UNDECIDED


def test_a_noisy_run_is_not_ended_early():
    m = machine(0, QUIET)
    drifting = iter(range(1, 10_000))
    base = m.arm("base", 5.0)
    started = []

    class Aging:
        """The baseline's second process of each round is slower, by how many were started before it."""

        def __init__(self):
            self.inner = base.start()
            started.append(next(drifting))
            self.factor = 1.2 if len(started) % 2 == 0 else 1.0

        def block(self, seconds):
            return self.inner.block(seconds) * self.factor

        def close(self):
            self.inner.close()

    found = race(
        [Arm("base", Aging)],
        baseline="base",
        starts=10,
        rng=_InOrder(),
        clock=m.clock,
        lock=lambda wait: nullcontext(),
    )
    assert found.noise.ok is False
    assert (found.stopped, found.starts) == ("starts", 10)


class _InOrder:
    """An order of arms that is not random, so that a test knows which process is the A/A arm's."""

    def permutation(self, n):
        return np.arange(n)


def test_a_difference_inside_the_aa_interval_is_none():
    rng = np.random.default_rng(1)
    wobbly = rng.normal(0, 0.1, (5, 1)) + np.zeros((5, 4))
    found = made({"fast": np.full((5, 4), -0.05) + rng.normal(0, 0.001, (5, 4))}, wobbly)
    ratio = found.ratio("fast", "base")
    assert found.noise.ok
    assert found.noise.lo < ratio.ratio
    assert ratio.hi < 1
    assert ratio.verdict == UNDECIDED


def test_a_difference_inside_two_percent_is_none_however_sure():
    rng = np.random.default_rng(2)
    found = made({"a": rng.normal(-0.012, 0.001, (20, 4)), "b": rng.normal(-0.03, 0.001, (20, 4))})
    assert found.ratio("a", "base").hi < 1
    assert found.ratio("a", "base").verdict == UNDECIDED
    assert found.ratio("b", "base").verdict == "faster"


def test_several_claims_are_corrected_by_holm():
    rng = np.random.default_rng(3)
    logs = {f"none{i}": rng.normal(0, 0.02, (5, 4)) for i in range(6)}
    logs["clear"] = rng.normal(-0.3, 0.005, (5, 4))
    found = {r.a: r for r in made(logs).ratios()}
    assert found["clear"].verdict == "faster"
    assert found["clear"].conf == pytest.approx(1 - 0.05 / 7)
    assert all(r.conf == pytest.approx(1 - 0.05 / 6) for name, r in found.items() if name != "clear")
    assert all(r.verdict == UNDECIDED for name, r in found.items() if name != "clear")


def test_the_level_is_shared_by_the_looks():
    logs = {"a": np.random.default_rng(4).normal(-0.05, 0.02, (5, 4))}
    one, three = made(logs).ratio("a", "base"), made(logs, looks=3).ratio("a", "base")
    assert three.conf == pytest.approx(1 - 0.05 / 3)
    assert three.hi > one.hi


def test_many_equal_arms_have_no_winner():
    calls = 0
    for seed in range(15):
        m = machine(seed)
        found = run(m, [m.arm(name, 5.0) for name in ("base", "a", "b", "c", "d", "e")], seed)
        calls += any(r.verdict != UNDECIDED for r in found.ratios())
    assert calls <= 1


def test_ratios_against_any_arm():
    rng = np.random.default_rng(5)
    found = made({"a": rng.normal(-0.3, 0.005, (5, 4)), "b": rng.normal(-0.1, 0.005, (5, 4))})
    assert found.ratio("a", "b").verdict == "faster"
    assert found.ratio("b", "a").verdict == "slower"
    assert found.ratio("b", "a").ratio == pytest.approx(1 / found.ratio("a", "b").ratio)
    assert [r.a for r in found.ratios("a")] == ["base", "b"]
    itself = found.ratio("a", "a")
    assert (itself.ratio, itself.verdict) == (1.0, UNDECIDED)
    with pytest.raises(UnknownName, match="no arm named `c`"):
        found.ratio("c", "base")
    with pytest.raises(UnknownName, match="no arm named `c`"):
        found.ratios("c")


def test_everything_can_be_recomputed_from_the_record():
    m = machine(9)
    found = run(m, [*pair(m, 0.04), m.arm("fragile", 5.0, fails_at=3)], starts=8)
    record = json.loads(json.dumps(found.to_json()))
    again = Race.from_json(record)
    assert again.to_json() == found.to_json()
    assert again.noise == found.noise
    assert again.ratios() == found.ratios()
    assert record["failures"] == {"fragile": "`fragile` ended with signal 11"}
    assert set(record["ratios"][0]) >= {"a", "b", "metric", "ratio", "lo", "hi", "verdict"}
    assert set(record["noise"]) == {"aa_ratio", "lo", "hi", "ok"}
    assert record["environment"]["versions"]["python"]


def test_the_simulated_machine_drifts_as_it_says():
    m = machine(0, Conditions(drift=0.06, drift_seconds=0.2, offset=0, noise=0, spikes=0))
    logs = np.log(m.read(1.0, 0.0, 40_000))
    assert logs.std() == pytest.approx(0.06, rel=0.15)
    steps = np.corrcoef(logs[:-200], logs[200:])[0, 1]
    assert steps == pytest.approx(np.exp(-1), abs=0.1)
