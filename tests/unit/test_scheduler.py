"""The queue and its policy, with a fake clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Hashable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.serving.scheduler import MOST_IN_TURN, Cost, Growth, Queue, in_turn


@dataclass(eq=False)
class Item:
    deadline: float
    level: int = 2
    key: Hashable = ()
    rows: int = 1
    size: int = 1
    alone: bool = False
    gone: bool = True
    name: int = 0
    arrived: float = field(default=0.0)


def cost(profile: dict[int, float], cap: int) -> Cost:
    return Cost(profile, cap)


def names(items: list[Item]) -> list[int]:
    return [item.name for item in items]


def queue_of(*items: Item) -> Queue[Item]:
    queue: Queue[Item] = Queue()
    for i, item in enumerate(items):
        item.name = i
        queue.push(item)
    return queue


FLAT = Cost({1: 0.010, 16: 0.010}, 16)
STEEP = Cost({1: 0.010, 2: 0.020, 4: 0.040, 8: 0.080, 16: 0.160}, 16)


def test_the_earliest_deadline_goes_first_and_all_that_fit_go_along() -> None:
    queue = queue_of(Item(3.0), Item(1.0), Item(2.0))
    batch, refused = queue.pick(0.0, FLAT, 2)
    assert names(batch) == [1, 2]
    assert refused == []
    assert len(queue) == 1


def test_what_cannot_be_met_even_alone_is_refused_at_once() -> None:
    queue = queue_of(Item(0.005), Item(1.0))
    batch, refused = queue.pick(0.0, FLAT, 16)
    assert names(batch) == [1]
    assert names(refused) == [0]


def test_the_batch_is_no_larger_than_the_earliest_deadline_allows() -> None:
    queue = queue_of(*[Item(0.061) for _ in range(8)])
    batch, refused = queue.pick(0.0, STEEP, 16)
    assert len(batch) == 6
    assert refused == []


def test_a_head_that_forces_a_batch_far_too_small_is_given_up() -> None:
    queue = queue_of(Item(0.011), *[Item(1.0) for _ in range(7)])
    batch, refused = queue.pick(0.0, STEEP, 16)
    assert names(refused) == [0]
    assert len(batch) == 7


def test_a_batch_grows_while_every_turn_brings_calls() -> None:
    growth, queue = Growth(), queue_of(Item(1.0))
    assert growth.more(queue, FLAT, 16, 0.0)
    queue.push(Item(1.0))
    assert growth.more(queue, FLAT, 16, 0.001)
    assert not growth.more(queue, FLAT, 16, 0.002), "nothing came"


def test_a_batch_grows_for_half_the_time_that_it_will_take_and_the_next_one_anew() -> None:
    growth, queue = Growth(), queue_of(Item(1.0))
    waits = []
    for turn in range(8):
        waits.append(growth.more(queue, FLAT, 16, turn * 0.001))
        queue.push(Item(1.0))
    assert waits == [True] * 5 + [False] + [True] * 2


def test_a_batch_does_not_grow_beyond_the_rows_that_pay() -> None:
    full = queue_of(*[Item(1.0) for _ in range(4)])
    assert not Growth().more(full, FLAT, 4, 0.0)
    assert Growth().more(full, FLAT, 5, 0.0)
    flat_out = Cost({1: 0.036, 2: 0.067, 4: 0.134, 8: 0.273, 16: 0.640}, 16)
    assert not Growth().more(queue_of(*[Item(9.0) for _ in range(8)]), flat_out, 16, 0.0)


def test_a_batch_whose_deadline_is_near_leaves() -> None:
    assert not Growth().more(queue_of(Item(0.014), Item(1.0)), FLAT, 16, 0.0)
    assert Growth().more(queue_of(Item(0.016), Item(1.0)), FLAT, 16, 0.0)
    assert Queue[Item]().earliest() == float("inf")


def test_batches_stop_where_larger_ones_gain_nothing() -> None:
    flat_out = Cost({1: 0.036, 2: 0.067, 4: 0.134, 8: 0.273, 16: 0.640}, 16)
    assert flat_out.efficient == 8
    queue = queue_of(*(Item(100.0) for _ in range(16)))
    batch, refused = queue.pick(0.0, flat_out, 16)
    assert (len(batch), refused) == (8, [])
    for _ in range(50):
        flat_out.observe(8, 1.0)
    assert flat_out.efficient == 8, "what is observed of one size says nothing of the others' worth"
    assert FLAT.efficient == 16


def test_who_comes_last_knows_how_long_the_others_take() -> None:
    queue = queue_of(*[Item(1.0 + i) for i in range(96)])
    # Six full batches, half of them on each replica, and half as long again, since predictions may be wrong.
    assert queue.ahead(Item(200.0), FLAT, 16, 2) == pytest.approx(1.5 * 3 * 0.010)
    assert queue.ahead(Item(200.0), FLAT, 16, 1) == pytest.approx(1.5 * 6 * 0.010)
    assert queue.ahead(Item(200.0), FLAT, 8, 1) == pytest.approx(1.5 * 12 * 0.010)


def test_nobody_is_held_up_by_those_that_he_might_overtake_or_that_are_few() -> None:
    queue = queue_of(*[Item(1.0 + i) for i in range(96)])
    assert queue.ahead(Item(50.0), FLAT, 16, 1) == 0
    assert queue.ahead(Item(200.0, level=1), FLAT, 16, 1) == 0
    assert queue.ahead(Item(200.0, key="another"), FLAT, 16, 1) == 0
    assert queue.ahead(Item(200.0), FLAT, 16, 0) == 0
    assert queue.ahead(Item(200.0), FLAT, 16, 3) == 0, "two batches for each replica are no reserve"
    queue.push(Item(2.0, key="another"))
    assert queue.ahead(Item(200.0), FLAT, 16, 1) == 0
    queue.drain()
    queue.push(Item(3.0))
    assert queue.ahead(Item(2.0), FLAT, 1, 1) == 0, "who came long ago counts no more"


def test_who_runs_in_turn_is_not_given_up_for_those_behind_him() -> None:
    proportional = cost({1: 1.0}, 8)
    items = [Item(2.5), *(Item(50.0) for _ in range(7))]
    assert len(queue_of(*items).pick(0.0, proportional, 8)[1]) == 1
    batch, refused = queue_of(*items).pick(0.0, proportional, 8, batches=False)
    assert (len(batch), refused) == (2, [])
    assert batch[0] is items[0]


@given(st.floats(0.0, 10.0))
def test_as_many_run_in_turn_as_make_up_for_what_the_server_adds(seconds: float) -> None:
    count = in_turn(seconds)
    assert 1 <= count <= MOST_IN_TURN
    assert count == MOST_IN_TURN or count * seconds >= 5e-4 * (1 - 1e-9)
    assert count == 1 or (count - 1) * seconds < 5e-4


def test_levels_of_priority_go_before_deadlines() -> None:
    queue = queue_of(Item(1.0, level=3), Item(9.0, level=1), Item(2.0))
    order = [queue.pick(0.0, FLAT, 16)[0][0].name for _ in range(3)]
    assert order == [1, 2, 0]


def test_only_calls_of_one_key_share_a_batch() -> None:
    queue = queue_of(Item(1.0, key="a"), Item(2.0, key="b"), Item(3.0, key="a"))
    assert names(queue.pick(0.0, FLAT, 16)[0]) == [0, 2]
    assert names(queue.pick(0.0, FLAT, 16)[0]) == [1]


def test_rows_count_and_a_call_above_the_cap_runs_by_itself() -> None:
    queue = queue_of(Item(1.0, rows=40), Item(2.0, rows=10), Item(3.0, rows=10))
    assert names(queue.pick(0.0, FLAT, 16)[0]) == [0]
    assert names(queue.pick(0.0, FLAT, 16)[0]) == [1]
    assert names(queue.pick(0.0, FLAT, 16)[0]) == [2]


def test_what_must_be_alone_is() -> None:
    queue = queue_of(Item(2.0), Item(1.0, alone=True), Item(3.0))
    assert names(queue.pick(0.0, FLAT, 16)[0]) == [1]
    assert names(queue.pick(0.0, FLAT, 16)[0]) == [0, 2]


def test_who_left_never_runs() -> None:
    items = [Item(1.0 + i) for i in range(300)]
    queue = queue_of(*items)
    for item in items[::2]:
        assert queue.remove(item)
        assert not queue.remove(item)
    ran = []
    while len(queue):
        ran += names(queue.pick(0.0, FLAT, 16)[0])
    assert ran == list(range(1, 300, 2))
    assert (queue.length, queue.rows, queue.bytes) == (0, 0, 0)


@settings(max_examples=200)
@given(st.data())
def test_no_call_is_lost_or_leaves_twice(data: st.DataObject) -> None:
    queue: Queue[Item] = Queue()
    inside: set[int] = set()
    items: list[Item] = []
    now = 0.0
    left: list[int] = []
    for _ in range(data.draw(st.integers(1, 40))):
        act = data.draw(st.sampled_from(["push", "push", "push", "pick", "remove", "expire", "wait"]))
        if act == "push":
            item = Item(
                now + data.draw(st.floats(0, 0.3)), data.draw(st.integers(1, 3)), data.draw(st.sampled_from("ab")),
                data.draw(st.integers(1, 20)), data.draw(st.integers(0, 9)), data.draw(st.booleans()), name=len(items),
            )  # fmt: skip
            items.append(item)
            inside.add(item.name)
            queue.push(item)
        elif act == "pick":
            batch, refused = queue.pick(now, STEEP, 16)
            assert len({(i.key, i.level) for i in batch}) <= 1
            assert len(batch) == 1 or sum(i.rows for i in batch) <= 16
            left += names(batch) + names(refused)
        elif act == "remove" and items:
            item = data.draw(st.sampled_from(items))
            assert queue.remove(item) == (item.name in inside - set(left))
            left += [item.name] if item.name in inside - set(left) else []
        elif act == "expire":
            late = queue.expire(now)
            assert all(item.deadline < now for item in late)
            left += names(late)
        else:
            now += data.draw(st.floats(0, 0.1))
        assert len(left) == len(set(left))
        waiting = [items[name] for name in inside - set(left)]
        assert queue.length == len(waiting)
        assert queue.rows == sum(item.rows for item in waiting)
        assert queue.bytes == sum(item.size for item in waiting)
    left += names(queue.drain())
    assert sorted(left) == sorted(inside)


def simulate(
    profile: tuple[float, float], slo: float, load: float, *, bursty: bool, cap: int = 64, shed: bool = False
) -> float:
    """The share of Poisson arrivals answered within `slo` seconds by one server; 5 % jitter, as in the facts."""
    rng = random.Random(1)
    base, each = profile
    predicted = Cost({b: 1.1 * (base + each * b) for b in range(1, cap + 1)}, cap)
    peak = cap / (base + each * cap)
    now, arrivals, horizon = 0.0, [], 60.0 if peak > 1000 else 240.0
    while now < horizon:
        rate = load * peak
        if bursty:
            rate *= 2.5 if now % 0.2 < 0.05 else 0.5
        now += rng.expovariate(rate)
        arrivals.append(now)
    queue: Queue[Item] = Queue()
    busy, good, at = 0.0, 0, 0
    while at < len(arrivals) or len(queue):
        now = max(busy, arrivals[at]) if not len(queue) else busy
        while at < len(arrivals) and arrivals[at] <= now:
            item = Item(arrivals[at] + slo, arrived=arrivals[at])
            if not shed or item.deadline >= arrivals[at] + predicted(1) + queue.ahead(item, predicted, cap, 1):
                queue.push(item)
            at += 1
        batch, _ = queue.pick(now, predicted, cap)
        if not batch:
            busy = now
            continue
        busy = now + (base + each * len(batch)) * rng.uniform(0.95, 1.05)
        good += sum(busy <= item.deadline for item in batch)
    return 100 * good / len(arrivals)


GPU, CPU = (0.002, 0.00015), (0.005, 0.004)


@pytest.mark.parametrize(
    ("profile", "slo", "load", "bursty", "least"),
    [
        # the column "early drop" of the facts' table of policies, less three points for another generator and seed
        (GPU, 0.040, 1.2, False, 75.1),
        (GPU, 0.040, 0.7, True, 80.2),
        (GPU, 0.015, 0.9, False, 89.5),
        (GPU, 0.015, 0.7, True, 69.4),
        (GPU, 0.015, 1.2, False, 70.1),
        (CPU, 0.150, 0.9, False, 95.8),
        (CPU, 0.150, 0.7, True, 88.3),
        (CPU, 0.150, 1.2, False, 76.0),
        (GPU, 0.040, 0.7, False, 99.9),
        (CPU, 0.150, 0.3, False, 99.9),
    ],
)
def test_early_drop_keeps_promises_under_overload(
    profile: tuple[float, float], slo: float, load: float, bursty: bool, least: float
) -> None:
    assert simulate(profile, slo, load, bursty=bursty) >= least
    assert simulate(profile, slo, load, bursty=bursty, shed=True) >= least


def test_cost_between_and_beyond_the_measured_sizes() -> None:
    found = Cost({1: 0.010, 4: 0.016}, 16)
    assert found(2) == pytest.approx(0.012)
    assert found(16) == pytest.approx(0.064)
    assert found(32) == pytest.approx(0.128)
    assert found.largest(0.0161, 16) == 4
    assert found.largest(0.001, 16) == 1


def test_cost_follows_a_machine_that_became_slower_within_a_few_batches_and_forgets_slowly() -> None:
    found = Cost({1: 0.010, 8: 0.020}, 8)
    for _ in range(10):
        found.observe(8, 0.060)
    assert found(8) > 0.055
    assert found(1) == pytest.approx(0.010)
    for _ in range(5):
        found.observe(8, 0.020)
    assert 0.045 < found(8) < 0.070
    for _ in range(300):
        found.observe(8, 0.020)
    assert found(8) < 0.026


def test_a_call_far_above_the_cap_says_nothing_bad_of_batches() -> None:
    found = Cost({1: 0.010, 16: 0.160}, 16)
    found.observe(1600, 16.0)
    assert found(16) == pytest.approx(0.160, rel=0.05)


def test_cost_never_falls_with_rows() -> None:
    found = Cost({1: 0.010, 2: 0.010, 4: 0.010}, 4)
    for _ in range(20):
        found.observe(1, 0.050)
    assert found(1) <= found(2) <= found(3) <= found(4)


def test_the_heap_of_the_facts_gives_the_same_batches() -> None:
    """The policy as the facts write it, beside the queue, on random states."""
    rng = random.Random(3)
    for _ in range(300):
        deadlines = [rng.uniform(0.0, 0.3) for _ in range(rng.randrange(1, 30))]
        heap = [(deadline, i) for i, deadline in enumerate(deadlines)]
        heapq.heapify(heap)
        table = [0.0, *(STEEP(b) for b in range(1, 17))]
        expected = reference(heap, 0.0, table, 16)
        batch, refused = queue_of(*[Item(deadline) for deadline in deadlines]).pick(0.0, STEEP, 16)
        assert (names(batch), sorted(names(refused))) == (
            [i for _, i in expected[0]],
            sorted(i for _, i in expected[1]),
        )


def reference(
    queue: list[tuple[float, int]], now: float, cost: list[float], cap: int
) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    dropped = []
    while queue and now + cost[1] > queue[0][0]:
        dropped.append(heapq.heappop(queue))

    def fit() -> int:
        b = min(len(queue), cap)
        while b > 1 and now + cost[b] > queue[0][0]:
            b -= 1
        return b

    b = fit() if queue else 0
    if b < min(len(queue), cap) * 0.5:
        while len(queue) > 1 and fit() < min(len(queue), cap) * 0.75:
            dropped.append(heapq.heappop(queue))
        b = fit()
    return [heapq.heappop(queue) for _ in range(b)], dropped
