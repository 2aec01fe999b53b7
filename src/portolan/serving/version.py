"""One version of a model at work: its queue, its policy, its replicas and its counters. All on the front's loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

from portolan.errors import ModelError
from portolan.serving import wire
from portolan.serving.arena import Arena
from portolan.serving.batches import Division, Divisions, Packer
from portolan.serving.calls import Answer, Call, Refusal
from portolan.serving.checks import Checker
from portolan.serving.cores import Cores
from portolan.serving.counters import Counters
from portolan.serving.instance import Instance
from portolan.serving.pool import Pool
from portolan.serving.scheduler import MOST_IN_TURN, Cost, Growth, Queue, in_turn
from portolan.serving.source import Source
from portolan.serving.ticket import Batch, Done, Ticket
from portolan.serving.turns import Looks, Turns

_LONGEST_TIMEOUT: Final = 3600.0
#: Seconds that calls wait for company at most, where there is no core to run them on.
_SHORT: Final = 0.01
_REMEMBERED: Final = 64


class Observer(Protocol):
    """Whoever wants to know what happens to calls and replicas; told on the loop, so it must be quick."""

    def ended(self, version: Version, ticket: Ticket, result: Answer | Refusal, now: float) -> None:
        """A call that was let wait got its answer or its refusal; `now` is on the loop's clock."""

    def event(self, name: str, **fields: Any) -> None:
        """Something that whoever runs the server wants to know."""


class Version:
    """One version of a model.

    Args:
        source: what is served.
        number: the version, as clients write it.
        arena: memory shared with the replicas.
        observer: told of every call that ended and of replicas that come and go; for logs and traces.
        cores: what the front leaves to replicas; None: all of them.

    Attributes:
        signature: as clients see it.
        state: loading until a replica is warm; draining when it takes no more calls; gone.
        counters: what happened.
    """

    def __init__(
        self, source: Source, number: str, arena: Arena, observer: Observer | None = None, cores: Cores | None = None
    ) -> None:
        self._observer = observer
        self._cores = cores or Cores()
        self.source = source
        self.signature = source.signature
        self.number = number
        self.state: Literal["loading", "ready", "draining", "gone"] = "loading"
        self.counters = Counters()
        self.queue: Queue[Ticket] = Queue()
        self.pool = Pool(source, arena, self, self._backlog)
        self.cost = Cost(source.profile or {1: 0.001}, source.limits.max_batch)
        self.checker: Checker | None = None
        self.cap = 1
        self._arena = arena
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._shared = False
        self._packer = Packer(source.signature, arena, batches=False)
        self._divisions = Divisions(source.signature)
        self._kicked = False
        self._looks = Looks()
        self._told_late: dict[int, Refusal] = {}
        self._growth = Growth()
        self._turns = Turns(self._loop.call_soon)
        self._running = 0
        self._first: asyncio.Future[None] = self._loop.create_future()
        self._empty: asyncio.Future[None] | None = None

    @property
    def _full(self) -> int:
        """Rows of a batch that does not gain by growing."""
        return min(self.cap, self.cost.efficient)

    @property
    def _brisk(self) -> bool:
        """Whether turns are shorter than batches: what is read in this turn may well join the next batch."""
        return self._turns.lag < self.cost(self._full)

    async def load(self) -> None:
        """Starts the first replica and waits until it is warm.

        Raises:
            ModelError: it cannot be loaded; says why.
        """
        self.pool.start(max(1, self.source.limits.replicas[0]))
        try:
            await self._first
        except ModelError:
            self.close()
            raise

    def submit(self, call: Call, done: Done) -> Ticket:
        """Checks `call` and lets it wait; `done` is told of its answer or refusal: later, or before this returns where
        room or time is wanting. Then nothing is raised: a server refuses most calls when it has least time for them.

        Raises:
            Refusal: invalid, or not ready.
        """
        checker = self.checker
        if checker is None or self.state != "ready":
            raise Refusal("not_ready", f"the model `{self.source.name}` is not ready", 1.0)
        now = self._loop.time()
        waited = self._turns.waited(now)
        if self._looks.due(now, waited):
            for instance in list(self.pool.instances):
                instance.hear()
        came = now - waited
        timeout = call.timeout
        try:
            layout = checker.check(call)
        except Refusal:
            self.counters.request_failure["OTHER"] += 1
            raise
        deadline = came + (self._patience() if timeout is None else min(timeout, _LONGEST_TIMEOUT))
        ticket = Ticket(call, done, layout, came, deadline)
        hopeless = self._hopeless(ticket, now)
        if hopeless is not None:
            self.counters.request_failure["REJECTED"] += 1
            ticket.done = None
            done(hopeless)
            return ticket
        self._last = now
        if self.queue.rows >= self._full and self.pool.free() is not None:
            self._dispatch()  # a turn that reads many calls is long: full batches leave in the middle of it
        self.queue.push(ticket)
        self._kick()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants the answer any more: a call that waits leaves, one that runs is not answered."""
        if ticket.done is None:
            return
        ticket.done = None
        self.counters.request_failure["CANCELED"] += 1
        if self.queue.remove(ticket):
            ticket.let_go()
        self._check_empty()

    def tick(self) -> None:
        """Several times a second: refuses what is late, finds replicas that hang, scales."""
        if self.state == "gone":
            return
        self._told_late.clear()
        for ticket in self.queue.expire(self._loop.time()):
            self._refuse(ticket, self._late(ticket.deadline - ticket.arrived), "REJECTED")
        self.pool.tick(lambda batch: self.cost(batch.rows))
        if not self._shared:
            self.cap = in_turn(self.cost(self.cap) / self.cap)
        self._kick()
        self._check_empty()

    async def drain(self) -> None:
        """Takes no more calls; returns when those that came are answered. The replicas end then."""
        if self.state in ("loading", "ready"):
            self.state = "draining"
        if self.queue.length or self._running:
            self._empty = self._empty or self._loop.create_future()
            await asyncio.shield(self._empty)
        self.close()

    def close(self, why: str = "the server is stopping") -> None:
        """Ends the replicas; calls that are still here are refused."""
        if self.state == "gone":
            return
        self.state = "gone"
        for ticket in self.queue.drain():
            self._refuse(ticket, Refusal("overloaded", why, 1.0), "OTHER")
        self.pool.close()

    def on_ready(self, instance: Instance, told: dict[str, Any]) -> None:
        """A replica is warm; the first one also tells how batches behave."""
        self.pool.loaded(instance, told)
        self._note("replica_ready", pid=instance.pid, seconds=round(self.pool.start_seconds, 3))
        if self.checker is None:
            try:
                self._learn(told)
            except ValueError as error:
                return self._fail(str(error))
            if self.state == "loading":
                self.state = "ready"
        if not self._first.done():
            self._first.set_result(None)
        return self._kick()

    def _learn(self, told: dict[str, Any]) -> None:
        """How batches behave. A model that runs with a fixed number of rows alone takes any number up to it."""
        limit, fixed = self.source.limits.max_batch, int(told["fixed"])
        self._shared = bool(told["batches"])
        profile = self.source.profile or {int(rows): s for rows, s in told["profile"].items()}
        if not self._shared:
            alone = Cost(profile, 1)(1)
            self.cap, self.cost = in_turn(alone), Cost({1: alone}, MOST_IN_TURN)
            self._divisions = Divisions(self.signature, batches=False)
        elif fixed:
            self.cap, self.signature = min(limit, fixed), self.signature.freed
            self.cost = Cost({int(rows): s for rows, s in told["profile"].items()}, max(limit, fixed))
        else:
            self.cap, self.cost = limit, Cost(profile, limit)
        self.checker = Checker(self.signature, batches=self._shared, fixed=fixed)
        self._packer = Packer(self.signature, self._arena, batches=self._shared)

    def on_done(self, instance: Instance, batch: Batch, frame: wire.Frame) -> None:
        """A batch has run: the next one leaves before its answers do, so that the replica never waits for them."""
        now = self._loop.time()
        if instance.batches:
            instance.batches[0].begun = now
        # How late the front looks is counted beside the cost wherever it is used, and would be counted twice.
        self.cost.observe(batch.rows, max(frame.seconds, now - batch.begun - self._looks.unseen))
        try:
            division = self._divisions.of(frame.header, batch.rows)
            blob = self._packer.outputs(batch, frame, division.size)
        except (ValueError, KeyError) as error:
            self._running -= 1
            return self._failed(batch, f"the model's outputs are not as its signature says: {error}")
        if 0 < self.queue.rows < self._full and self._brisk:
            self._kick()  # more calls may be read in this turn of the loop, and the batch can do with them
            self._loop.call_soon(self._answer, batch, division, blob, now, frame.seconds)
            return None
        if self.queue.length:
            self._dispatch()
        return self._answer(batch, division, blob, now, frame.seconds)

    def _answer(self, batch: Batch, division: Division, blob: memoryview, now: float, seconds: float) -> None:
        """Tells every call of a batch its share of the outputs."""
        self._running -= 1
        arrived = [ticket.arrived for ticket in batch.tickets if ticket.done is not None]
        rows, times = (batch.rows, 1) if self._shared else (1, batch.rows)
        self.counters.ran(arrived, rows, batch.started, now, seconds, times)
        first = 0
        for ticket in batch.tickets:
            if ticket.done is not None:
                call = ticket.call
                share = division.share(ticket.rows, call.outputs)
                answer = Answer(self.source.name, self.number, share.tensors(blob, first), call.id, share.form)
                self._tell(ticket, answer, now)
            first += ticket.rows
        self._let_go(batch)

    def on_failed(self, instance: Instance, batch: Batch | None, kind: str, message: str) -> None:
        """A batch raised: each of its calls is tried alone, for one bad call must not cost the others their answer."""
        if batch is None:
            instance.kill(message)
            return
        self._running -= 1
        if len(batch.tickets) > 1:
            if not self._shared:  # till the next tick: outputs that differ in shape would fail again and again
                self.cap = 1
            for ticket in batch.tickets:
                self._again(ticket)
            self._give(batch)
        else:
            said = "the model ran out of memory" if kind == "memory" else "the model failed"
            self._failed(batch, f"{said}: {message}")
        self._kick()
        self._check_empty()

    def on_gone(self, instance: Instance, batches: list[Batch], reason: str) -> None:
        """A replica crashed, hung or was stopped: its calls run once more, alone, on another one."""
        self.pool.lost(instance, reason)
        if self.state == "loading":
            return self._fail(reason)
        if reason != "stopped":
            self.counters.replicas_lost += 1
            self._note("replica_lost", pid=instance.pid, reason=reason)
        for i, batch in enumerate(batches):
            self._running -= 1
            for ticket in batch.tickets:
                self._retry(ticket, reason, suspect=i == 0)
            self._give(batch)
        if self.state != "gone":
            self.tick()
        return None

    def _retry(self, ticket: Ticket, reason: str, *, suspect: bool) -> None:
        """Lets a call wait again whose replica is gone; `suspect` if it was running, and may be what ended it."""
        ticket.tries += suspect
        if ticket.tries > 1 or self.state == "gone":
            said = f"the replica that ran this call ended, and so did the one it was tried on again: {reason}"
            self._refuse(ticket, Refusal("failed", said), "BACKEND")
        else:
            self.counters.retried += ticket.done is not None
            self._again(ticket)

    def wait_seconds(self) -> float:
        """Seconds that what waits will take on the replicas there are."""
        if not self.queue.length:
            return 0.0
        return self._backlog()[0] / max(self.pool.running, 1)

    def _backlog(self) -> tuple[float, float]:
        rows = self.queue.rows
        wait = self.cost(min(rows, self.cap)) * math.ceil(rows / self.cap) if rows else 0.0
        return wait, self._loop.time() - self._last

    def _patience(self) -> float:
        """The model's own deadline; longer while a replica has to be started first."""
        limit = self.source.limits.deadline
        return limit if self.pool.up() else limit + 1.0 + 2.0 * self.pool.start_seconds

    def _hopeless(self, ticket: Ticket, now: float) -> Refusal | None:
        """Why `ticket` need not be let wait: there is no room, or it would be refused when it is its turn."""
        limits, queue = self.source.limits, self.queue
        if queue.length >= limits.queue or (queue.length and queue.bytes + ticket.size > limits.queue_bytes):
            return Refusal("overloaded", f"{queue.length:,} calls wait already", max(self.wait_seconds(), 0.1))
        running = self.pool.running
        # Replicas that are being started may still help.
        ahead = queue.ahead(ticket, self.cost, self.cap, running) if running == len(self.pool.instances) else 0.0
        if ticket.deadline < now + self._looks.unseen + self.cost(1) + ahead:
            return self._late(ticket.deadline - ticket.arrived)
        return None

    def _kick(self) -> None:
        """Forms a batch at the end of this turn of the loop, so that calls that arrive together run together."""
        if not self._kicked and self.queue.length:
            self._kicked = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._kicked = False
        while self.queue.length:
            now = self._loop.time()
            instance, start = self._place(now)
            if instance is None:
                return
            if self._cores.crowded and self._brisk and self._growth.more(self.queue, self.cost, self.cap, now):
                self._kick()
                return
            # The answer is seen some time after it has come.
            cap, shared = self._most(), self._shared
            chosen, refused = self.queue.pick(start + self._looks.unseen, self.cost, cap, batches=shared)
            if chosen:
                self._run(instance, chosen, now)
            for ticket in refused:
                self._refuse(ticket, self._late(ticket.deadline - ticket.arrived), "REJECTED")

    def _most(self) -> int:
        """Rows of the next batch at most. Where calls run one after another, each replica gets its share of them."""
        if self._shared:
            return self.cap
        return min(self.cap, math.ceil(self.queue.rows / max(self.pool.running, 1)))

    def _place(self, now: float) -> tuple[Instance | None, float]:
        """Which replica takes the next batch, and when it will start. One that is busy gets a second batch only if that
        could not grow by waiting: then nothing is lost, and the replica does not sleep in between.
        """
        free = self.pool.free()
        if free is not None and not self._better_joined(now):
            return free, now
        if self.queue.rows < self._full:
            return None, now
        for busy in self.pool.instances:
            if busy.state == "busy" and len(busy.batches) == 1:
                first: Batch = busy.batches[0]
                return busy, max(now, first.begun + self.cost(first.rows))
        return free, now

    def _better_joined(self, now: float) -> bool:
        """Whether the next batch had better run after one that runs, although another replica is free: there is no core
        for it, and it is not for long: that one ends soon, by prediction, or should have ended just now.
        """
        busy: list[Batch] = [instance.batches[0] for instance in self.pool.instances if instance.state == "busy"]
        ends = [batch.begun + self.cost(batch.rows) for batch in busy]
        return bool(ends) and not self._cores.room(len(ends)) and abs(min(ends) - now) < _SHORT

    def _run(self, instance: Instance, chosen: Sequence[Ticket], now: float) -> None:
        batch = Batch(list(chosen), now)
        for ticket in batch.tickets:
            ticket.started = now
        self._running += 1
        head, body = self._packer.pack(batch)
        instance.run(batch, head, body)

    def _again(self, ticket: Ticket) -> None:
        if ticket.done is None:
            ticket.let_go()
            return
        ticket.alone = True
        if ticket.patient and not self.pool.running:
            ticket.deadline = self._loop.time() + self._patience()
        self.queue.push(ticket)

    def _failed(self, batch: Batch, message: str) -> None:
        for ticket in batch.tickets:
            self._refuse(ticket, Refusal("failed", message), "BACKEND")
        self._give(batch)
        self._check_empty()

    def _late(self, had: float) -> Refusal:
        """A call that had so many seconds is late; till the next tick all of them are told the same, which is cheap."""
        micros = int(had * 1e6 + 0.5)
        told = self._told_late.get(micros)
        if told is None:
            said = f"the deadline of {had * 1e3:.4g} ms cannot be met: {self.queue.length:,} calls wait"
            told = Refusal("late", said, max(self.wait_seconds(), 0.1), object())
            if not self.pool.running and self.pool.failure:
                said = f"no replica of `{self.source.name}` runs: {self.pool.failure}"
                told = Refusal("overloaded", said, 5.0, object())
            if len(self._told_late) >= _REMEMBERED:
                self._told_late.clear()
            self._told_late[micros] = told
        return Refusal(told.kind, told.message, told.retry_after, told.form)

    def _refuse(self, ticket: Ticket, refusal: Refusal, reason: str) -> None:
        if ticket.done is not None:
            self.counters.request_failure[reason] += 1
            now = self._loop.time()
            self.counters.failure_duration += now - ticket.arrived
            self._tell(ticket, refusal, now)
        ticket.let_go()

    def _tell(self, ticket: Ticket, result: Answer | Refusal, now: float) -> None:
        if self._observer is not None:
            self._observer.ended(self, ticket, result, now)
        done, ticket.done = ticket.done, None
        if done is not None:
            done(result)

    def _note(self, event: str, **fields: Any) -> None:
        if self._observer is not None:
            self._observer.event(event, model=self.source.name, version=self.number, **fields)

    def _let_go(self, batch: Batch) -> None:
        for ticket in batch.tickets:
            if ticket.call.release is not None:
                ticket.let_go()
        self._give(batch)
        self._check_empty()

    def _give(self, batch: Batch) -> None:
        for place in batch.places:
            self._arena.give(place)
        batch.places.clear()

    def _fail(self, reason: str) -> None:
        if not self._first.done():
            name = self.source.name
            self._first.set_exception(ModelError(f"the model `{name}` cannot be loaded: {reason}"))

    def _check_empty(self) -> None:
        if self._empty is not None and not self._empty.done() and not self.queue.length and not self._running:
            self._empty.set_result(None)
