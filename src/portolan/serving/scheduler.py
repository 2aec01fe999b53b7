"""Which calls run next and which are refused: a queue and a policy, without clocks, processes or sockets.

Earliest deadline first inside a level of priority, with early drop: what cannot be answered in time even alone is
refused at once, and a head that would force a batch far too small is given up for those behind it. The largest batch
that meets the earliest deadline runs as soon as an instance is free. Nothing waits for company, but where the front has
more calls before it than it has read, a batch may grow while it reads them (`Growth`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

#: A head is given up when it allows less than the first share of the possible batch, until the second is reached.
_TOO_SMALL, _ENOUGH = 0.5, 0.75
#: How fast corrections follow: up at once, since late answers are worth nothing, down slowly.
_UP, _DOWN = 0.3, 0.03
_LEAST, _MOST = 0.05, 100.0
_MARGIN: Final = 1.1
#: How much more than in the cheapest batch a row may cost.
_NEAR: Final = 1.05
#: How long a batch grows, as a share of the time that it will take.
_GROWS: Final = 0.5
#: Full batches for each replica that wait before a call is refused for those before it.
_DEEP: Final = 3
#: How much longer than predicted they may take: who is let wait had better be answered.
_RESERVE: Final = 1.5
#: Seconds that a batch costs the server besides the runtime: forming it, sending it, dividing its answer.
_EACH: Final = 1e-4
#: What this may be of the time that the runtime takes for calls that run one after another; and how many they may be.
_PART: Final = 0.2
MOST_IN_TURN: Final = 32


def in_turn(seconds: float) -> int:
    """How many calls a replica is given at once that cannot share a batch, and run one after another.

    As few as make what the server adds a fifth of what the runtime takes: who runs first waits for the answer to the
    last.

    Args:
        seconds: that one takes.
    """
    return min(math.ceil(_EACH / (_PART * max(seconds, 1e-6))), MOST_IN_TURN)


class Cost:
    """Seconds that a batch of so many rows takes: a profile, corrected by what is observed, per size bucket.

    Args:
        profile: seconds by rows, at least for one size; between sizes it is interpolated.
        cap: rows of the largest batch.

    Attributes:
        efficient: rows of the largest batch whose rows cost hardly more than in the cheapest one, with what the server
            adds to each batch. A model that gains nothing from larger batches only makes everybody wait for them.
    """

    def __init__(self, profile: Mapping[int, float], cap: int) -> None:
        self.cap = cap
        self._base = [0.0, *_interpolate(profile, cap)]
        self._factors = [1.0] * (cap.bit_length() + 1)
        self._applied = list(self._factors)
        self._table = list(self._base)
        # By the profile alone: a size that is not used any more is not observed either, so it could never come back.
        shares = [(seconds + _EACH) / rows for rows, seconds in enumerate(self._base) if rows]
        self.efficient = max(rows for rows, share in enumerate(shares, 1) if share <= _NEAR * min(shares))
        self._apply()

    def __call__(self, rows: int) -> float:
        """Predicted seconds; beyond the largest batch in proportion."""
        if rows <= self.cap:
            return self._table[rows]
        return self._table[self.cap] * rows / self.cap

    def largest(self, seconds: float, most: int) -> int:
        """Rows of the largest batch, at most `most`, that fits into `seconds`; at least 1."""
        low, high = 1, min(most, self.cap)
        while low < high:
            middle = (low + high + 1) // 2
            if self._table[middle] <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def observe(self, rows: int, seconds: float) -> None:
        """Corrects the bucket of `rows` by a batch that took `seconds`."""
        if rows > self.cap:  # one call of that many rows, which ran by itself
            rows, seconds = self.cap, seconds * self.cap / rows
        bucket = (rows - 1).bit_length()
        before = self._factors[bucket]
        ratio = min(max(seconds * _MARGIN / self._base[rows], _LEAST), _MOST)
        after = before + (_UP if ratio > before else _DOWN) * (ratio - before)
        self._factors[bucket] = after
        if abs(after - self._applied[bucket]) > 0.02 * after:
            self._apply()

    def profile(self) -> dict[int, float]:
        """The corrected seconds of the powers of two and of the largest batch."""
        sizes = sorted({min(1 << i, self.cap) for i in range(self.cap.bit_length() + 1)})
        return {rows: self._table[rows] for rows in sizes}

    def _apply(self) -> None:
        self._applied = list(self._factors)
        most, table, base = 0.0, self._table, self._base
        for bucket, factor in enumerate(self._factors):
            for rows in range((1 << bucket >> 1) + 1, min(1 << bucket, self.cap) + 1):
                value = base[rows] * factor
                if value > most:
                    most = value
                table[rows] = most


def _interpolate(profile: Mapping[int, float], cap: int) -> Iterator[float]:
    known = sorted((rows, max(seconds, 1e-6)) for rows, seconds in profile.items() if rows > 0)
    for rows in range(1, cap + 1):
        below = [item for item in known if item[0] <= rows]
        above = [item for item in known if item[0] > rows]
        if not below:
            yield above[0][1]
        elif not above:
            yield below[-1][1] * max(1.0, rows / below[-1][0])
        else:
            (a, s), (b, t) = below[-1], above[0]
            yield s + (t - s) * (rows - a) / (b - a)


class Waiting(Protocol):
    """What can wait in the queue.

    Attributes:
        deadline: when an answer is worth nothing any more.
        level: of priority; the lower goes first.
        key: calls of equal keys may share a batch.
        rows: how many rows it adds to a batch.
        size: bytes of its inputs.
        alone: whether it must not share a batch.
        gone: set by the queue when it has left.
    """

    deadline: float
    level: int
    key: Hashable
    rows: int
    size: int
    alone: bool
    gone: bool


T = TypeVar("T", bound=Waiting)


class _Lane:
    """The calls of one priority that may share a batch, by deadline; some may have left, but never the first.

    Attributes:
        place: level and key.
        heap: deadline, number and call.
        rows: of those that wait.
    """

    __slots__ = ("heap", "place", "rows")

    def __init__(self, place: tuple[int, Hashable]) -> None:
        self.place = place
        self.heap: list[tuple[float, int, Any]] = []
        self.rows = 0


class Queue(Generic[T]):
    """The calls that wait, by level of priority, key and deadline.

    Attributes:
        length, rows, bytes: of what waits.
        came: how many calls were ever let wait.
    """

    def __init__(self) -> None:
        self._latest = 0.0  # the last deadline of what came since nothing waited
        self._lanes: dict[tuple[int, Hashable], _Lane] = {}
        self.came = 0
        self._left_inside = 0
        self.length = 0
        self.bytes = 0
        self.rows = 0

    def __len__(self) -> int:
        return self.length

    def push(self, item: T) -> None:
        """Lets `item` wait."""
        place = (item.level, item.key)
        lane = self._lanes.get(place)
        if lane is None:
            lane = self._lanes[place] = _Lane(place)
        self._latest = max(self._latest, item.deadline) if self.length else item.deadline
        self.came += 1
        item.gone = False
        heapq.heappush(lane.heap, (item.deadline, self.came, item))
        rows = item.rows
        lane.rows += rows
        self.length += 1
        self.rows += rows
        self.bytes += item.size

    def ahead(self, item: T, cost: Cost, cap: int, replicas: int) -> float:
        """Seconds that what waits takes before `item`; 0 where it might overtake others, or where little waits.

        Who is refused as he comes costs the server half of what it costs to find out when it is his turn. But while
        replicas would idle if predictions are wrong, everybody is let wait.

        Args:
            item: what does not wait yet.
            cost: seconds of a batch by rows.
            cap: rows of the largest batch.
            replicas: that run batches side by side.
        """
        full = min(cap, cost.efficient) * replicas
        if not full or self.rows < _DEEP * full or item.deadline < self._latest:
            return 0.0
        if len(self._lanes) > 1 or (item.level, item.key) not in self._lanes:
            return 0.0
        return _RESERVE * cost(full // replicas) * self.rows / full

    def remove(self, item: T) -> bool:
        """Takes `item` out, wherever it waits; False if it has left already."""
        if item.gone:
            return False
        lane = self._lanes[item.level, item.key]
        self._leave(lane, item)
        self._left_inside += 1
        self._clean(lane)
        if self._left_inside > 64 and self._left_inside > self.length:
            self._compact()
        return True

    def pick(self, now: float, cost: Cost, cap: int, *, batches: bool = True) -> tuple[list[T], list[T]]:
        """The batch to run now, and the calls to refuse now. Call it when an instance is free.

        Args:
            now: the time, on the clock of the deadlines.
            cost: seconds of a batch by rows.
            cap: rows of the largest batch.
            batches: whether rows are cheaper in larger batches; else nobody is given up for those behind him.
        """
        refused = self.expire(now + cost(1))
        cap = min(cap, cost.efficient)
        lane = self._first()
        if lane is None:
            return [], refused
        if lane.heap[0][2].alone:
            return [self._pop(lane)], refused
        most = min(lane.rows, cap)
        fits = cost.largest(lane.heap[0][0] - now, most)
        if batches and fits < most * _TOO_SMALL:
            while len(lane.heap) > 1 and fits < _ENOUGH * most:
                refused.append(self._pop(lane))
                if not lane.heap:
                    return [], refused
                most = min(lane.rows, cap)
                fits = cost.largest(lane.heap[0][0] - now, most)
        return self._take(lane, fits), refused

    def earliest(self) -> float:
        """The deadline of the next batch's head; infinite if nothing waits."""
        lane = self._first()
        return float("inf") if lane is None else lane.heap[0][0]

    def expire(self, before: float) -> list[T]:
        """Takes out all whose deadline lies before `before`."""
        late: list[T] = []
        for lane in list(self._lanes.values()):
            while lane.heap and lane.heap[0][0] < before:
                late.append(self._pop(lane))
        return late

    def drain(self) -> list[T]:
        """Takes out all."""
        return self.expire(float("inf"))

    def _take(self, lane: _Lane, rows: int) -> list[T]:
        heap, pop = lane.heap, heapq.heappop
        first: T = pop(heap)[2]
        first.gone = True
        batch, left, size = [first], rows - first.rows, first.size
        while heap:
            item: T = heap[0][2]
            if item.gone:
                pop(heap)
                self._left_inside -= 1
                continue
            if item.rows > left or item.alone:
                break
            left -= item.rows
            size += item.size
            item.gone = True
            batch.append(pop(heap)[2])
        lane.rows -= rows - left
        self.length -= len(batch)
        self.rows -= rows - left
        self.bytes -= size
        self._clean(lane)
        return batch

    def _first(self) -> _Lane | None:
        lanes = self._lanes.values()
        if len(self._lanes) == 1:  # nearly always
            return next(iter(lanes))
        return min(lanes, key=lambda lane: (lane.place[0], lane.heap[0][0]), default=None)

    def _pop(self, lane: _Lane) -> T:
        item: T = heapq.heappop(lane.heap)[2]
        self._leave(lane, item)
        self._clean(lane)
        return item

    def _leave(self, lane: _Lane, item: T) -> None:
        item.gone = True
        lane.rows -= item.rows
        self.length -= 1
        self.rows -= item.rows
        self.bytes -= item.size

    def _clean(self, lane: _Lane) -> None:
        """Brings a call that still waits to the head; forgets the lane if there is none."""
        heap = lane.heap
        while heap and heap[0][2].gone:
            heapq.heappop(heap)
            self._left_inside -= 1
        if not heap:
            del self._lanes[lane.place]

    def _compact(self) -> None:
        for lane in list(self._lanes.values()):
            lane.heap[:] = [entry for entry in lane.heap if not entry[2].gone]
            heapq.heapify(lane.heap)
        self._left_inside = 0


class Growth:
    """Whether a batch that could leave had better take along what still comes: to be asked once per turn of the loop.

    Calls that come in every turn of a busy front wait in the kernel already. One batch that takes them along costs the
    processors less than two do, so all are answered sooner. A batch grows until a turn brings no call, it has as many
    rows as pay, half the time has passed that it will take, or its earliest deadline comes near.
    """

    def __init__(self) -> None:
        self._came = 0
        self._since = float("inf")

    def more(self, queue: Queue[Any], cost: Cost, cap: int, now: float) -> bool:
        """Whether to wait for another turn.

        Args:
            queue: what waits.
            cost: seconds of a batch by rows.
            cap: rows of the largest batch.
            now: seconds, on any clock.
        """
        came, self._came = queue.came - self._came, queue.came
        self._since = min(self._since, now)
        rows, seconds = queue.rows, cost(queue.rows)
        pays = came and rows < min(cap, cost.efficient) and now - self._since < _GROWS * seconds
        if pays and now + (1 + _GROWS) * seconds < queue.earliest():
            return True
        self._since = float("inf")
        return False
