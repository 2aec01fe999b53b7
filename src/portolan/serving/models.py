"""The models of a server: found by name and version, loaded, replaced while they serve, and called. Needs no door."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from portolan import __version__
from portolan.errors import ModelError, PortolanError, nearest
from portolan.serving import describe
from portolan.serving.arena import Arena
from portolan.serving.calls import Answer, Call, Refusal
from portolan.serving.cores import Cores
from portolan.serving.counters import Counters
from portolan.serving.entry import Entry, Trial
from portolan.serving.rollout import Terms
from portolan.serving.source import Source
from portolan.serving.ticket import Done, Ticket
from portolan.serving.version import Observer, Version

#: Opens what lies behind a model's name, checks it, and gives what a replica loads. Raises PortolanError.
Opener = Callable[[str], Awaitable[Source]]
_TICK = 0.1


class Models:
    """Models by name. Everything is to be called on the loop it was made on.

    Args:
        opener: how `load` finds a model by its name; None where only `add` brings models.
        terms: how new versions take over, where a request to load says nothing else.
        told: called with what happens to versions: one of `loaded`, `promoted`, `rolled_back` with the model's name,
            `version` and `reason`.
        arena_bytes: memory shared with replicas, for large tensors; it is taken as it is touched.
        kept: what an earlier server of the same models counted; a bundle that serves again goes on counting there.

    Attributes:
        observer: told of calls and replicas of the versions that are loaded from now on.
        cores: what the front leaves of them to replicas.
    """

    def __init__(
        self,
        opener: Opener | None = None,
        *,
        arena_bytes: int = 2**30,
        terms: Terms | None = None,
        told: Callable[[dict[str, Any]], None] | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self.arena = Arena(arena_bytes)
        self.observer: Observer | None = None
        self.cores = Cores()
        self._kept = dict(kept or {})
        self._entries: dict[str, Entry] = {}
        self._opener = opener
        self._terms = terms or Terms()
        self._told = told or (lambda data: None)
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer = self._loop.call_later(_TICK, self._tick)

    def submit(self, call: Call, done: Done) -> tuple[Version, Ticket]:
        """Lets `call` wait for a replica; `done` is told of its answer or refusal once, perhaps before this returns.

        Raises:
            Refusal: invalid, not found, or not ready.
        """
        return self._entry(call.model).submit(call, done)

    def infer(self, call: Call) -> asyncio.Future[Answer]:
        """The answer to `call`; cancelling the future takes it out of the queue.

        Raises:
            Refusal: invalid, not found, or not ready; every other refusal is the future's.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()

        def done(result: Answer | Refusal) -> None:
            if future.done():
                return
            if isinstance(result, Refusal):
                future.set_exception(result)
            else:
                for tensor in result.outputs:  # they are read later, and may lie in memory that is lent
                    tensor.data = bytes(tensor.data)
                future.set_result(result)

        version, ticket = self.submit(call, done)

        def ended(future: asyncio.Future[Answer]) -> None:
            if future.cancelled():
                version.cancel(ticket)

        future.add_done_callback(ended)
        return future

    def find(self, model: str, version: str | None = None) -> Version:
        """The version that serves.

        Raises:
            Refusal: `not_found`, or `not_ready` for a model that is known.
        """
        return self._entry(model).find(version)

    def server(self) -> dict[str, Any]:
        """The protocol's server metadata."""
        return {"name": "portolan", "version": __version__, "extensions": describe.EXTENSIONS}

    def live(self) -> bool:
        """Whether the process can answer at all."""
        return True

    def ready(self, model: str | None = None, version: str | None = None) -> bool:
        """Whether a model takes calls; without a name, whether the server does, with every model it has.

        Raises:
            Refusal: `not_found`.
        """
        if self._draining:
            return False
        if model is None:
            return all(e.current is not None or e.reason == "unloaded" for e in self._entries.values())
        try:
            return self.find(model, version).state == "ready"
        except Refusal as refusal:
            if refusal.kind == "not_found":
                raise
            return False

    def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """The protocol's model metadata.

        Raises:
            Refusal: `not_found`, or `not_ready`.
        """
        numbers = [found.number for found in self._entry(model).serving]
        return describe.metadata(self.find(model, version), numbers)

    def config(self, model: str, version: str | None = None) -> dict[str, Any]:
        """As much of Triton's model configuration as is true.

        Raises:
            Refusal: `not_found`, or `not_ready`.
        """
        return describe.config(self.find(model, version))

    def statistics(self, model: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Triton's statistics of one model, or of all.

        Raises:
            Refusal: `not_found`, or `not_ready`.
        """
        if model is None:
            chosen = self.versions()
        else:
            chosen = self._entry(model).serving if version is None else []
            chosen = chosen or [self.find(model, version)]
        return {"model_stats": [describe.statistics(v) for v in chosen]}

    def versions(self) -> list[Version]:
        """Every version that takes calls, for metrics."""
        return [version for entry in self._entries.values() for version in entry.serving]

    def counted(self) -> dict[str, Any]:
        """What the versions that serve have counted, for the server that comes after this one."""
        serving = [entry.current for entry in self._entries.values() if entry.current is not None]
        return {
            v.source.name: {"version": v.number, "sha256": v.source.sha256, "counters": v.counters.to_json()}
            for v in serving
        }

    def index(self, ready_only: bool = False) -> list[dict[str, Any]]:
        """The repository's index, as Triton shapes it."""
        found = []
        for entry in self._entries.values():
            for version in entry.serving:
                found.append({"name": entry.name, "version": version.number, "state": "READY", "reason": ""})
            if not entry.serving and not ready_only:
                found.append({"name": entry.name, "version": "", "state": "UNAVAILABLE", "reason": entry.reason})
        return found

    async def load(self, model: str, parameters: Mapping[str, Any]) -> None:
        """Loads a model of the repository, or loads it again as it lies there now: the old version serves on until the
        new one is warm, longer while it is tried, and on if it cannot be loaded or fails its trial.

        Args:
            model: its name.
            parameters: `canary` or `shadow` with a share, and further terms; see portolan.serving.rollout.Terms.

        Raises:
            Refusal: `not_found`; `invalid`, with what is wrong.
        """
        if self._opener is None:
            raise Refusal("invalid", "this server loads no models by name")
        entry = self._entry(model)
        asked = Terms.read(parameters)
        terms = asked if asked.mode != "swap" or "swap" in parameters else self._terms
        try:
            await self.add(await self._opener(model), terms)
        except PortolanError as error:
            if entry.current is None:
                entry.reason = error.message
            raise Refusal("invalid", f"the model `{model}` was not loaded: {error.message}") from error

    async def add(self, source: Source, terms: Terms | None = None) -> Version:
        """Loads `source` and lets it serve in the place of the version before, at once or after a trial; the version
        before finishes what it has.

        Raises:
            ModelError: it cannot be loaded; the version before serves on.
        """
        entry, terms = self.name(source.name), terms or Terms()
        async with entry.lock:
            entry.number += 1
            before = self._kept.pop(entry.name, None)
            same = before is not None and before["sha256"] == source.sha256
            if before is not None:
                entry.number = int(before["version"]) + (not same)
            version = Version(source, str(entry.number), self.arena, self.observer, self.cores)
            if before is not None and same:
                version.counters = Counters.from_json(before["counters"])
            try:
                await version.load()
            except BaseException as error:
                self._discard(source)
                if entry.current is None:
                    entry.reason = error.message if isinstance(error, ModelError) else "loading was interrupted"
                raise
            self._end_trial(entry, "a newer version came")
            if entry.current is None or terms.mode == "swap":
                self._promote(entry, version)
            else:
                entry.trial = Trial(version, entry.current, terms, self._loop.time())
            self._told({"loaded": entry.name, "version": version.number, "reason": terms.mode})
            return version

    def _promote(self, entry: Entry, version: Version) -> None:
        before, entry.current, entry.reason = entry.current, version, ""
        if before is not None:
            self._retire(entry, before)

    def _end_trial(self, entry: Entry, why: str) -> None:
        trial, entry.trial = entry.trial, None
        if trial is not None:
            self._retire(entry, trial.version)
            self._told({"rolled_back": entry.name, "version": trial.version.number, "reason": why})

    def _judge(self, entry: Entry) -> None:
        """Ends the trial of a version that has proved itself, or the opposite."""
        trial = entry.trial
        if trial is None:
            return
        verdict = trial.verdict(self._loop.time())
        if verdict.what == "promote":
            entry.trial = None
            self._promote(entry, trial.version)
            self._told({"promoted": entry.name, "version": trial.version.number, "reason": ""})
        elif verdict.what == "roll back":
            self._end_trial(entry, verdict.why)

    async def unload(self, model: str) -> None:
        """Takes a model out of service; the calls it has are answered.

        Raises:
            Refusal: `not_found`.
        """
        entry = self._entry(model)
        async with entry.lock:
            self._end_trial(entry, "the model is unloaded")
            version, entry.current = entry.current, None
            entry.reason = "unloaded"
        if version is not None:
            await self._retired(entry, version)

    def name(self, model: str) -> Entry:
        """The entry of that name; a new one if there is none, not serving yet."""
        return self._entries.setdefault(model, Entry(model))

    def unready(self) -> None:
        """Readiness becomes false, so that balancers send no more; calls are taken as before."""
        self._draining = True

    async def drain(self) -> None:
        """Returns when every call that came is answered, and ends the replicas."""
        self._draining = True
        versions = [version for entry in self._entries.values() for version in entry.all]
        await asyncio.gather(*(version.drain() for version in versions))

    def close(self) -> None:
        """Ends everything; calls that are still here are refused."""
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for entry in self._entries.values():
            for version in entry.all:
                version.close()
                self._discard(version.source)
            entry.current = entry.trial = None

    def _entry(self, model: str) -> Entry:
        entry = self._entries.get(model)
        if entry is None:
            raise Refusal("not_found", f"no model named `{model}`: {nearest(model, self._entries)}")
        return entry

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK, self._tick)
        self.cores.look()
        for entry in self._entries.values():
            for version in entry.all:
                version.tick()
            self._judge(entry)

    def _retire(self, entry: Entry, version: Version) -> None:
        task = self._loop.create_task(self._retired(entry, version))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retired(self, entry: Entry, version: Version) -> None:
        entry.old.append(version)
        try:
            await version.drain()
        finally:
            entry.old.remove(version)
            version.close()
            self._discard(version.source)

    @staticmethod
    def _discard(source: Source) -> None:
        if source.private:
            with contextlib.suppress(OSError):
                shutil.rmtree(Path(source.folder).parent)
