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
from portolan.serving.source import Source
from portolan.serving.ticket import Done, Ticket
from portolan.serving.version import Observer, Version

#: Opens what lies behind a model's name, checks it, and gives what a replica loads. Raises PortolanError.
Opener = Callable[[str], Awaitable[Source]]
_TICK = 0.1


class Entry:
    """One name of the repository.

    Attributes:
        current: the version that serves, if any.
        old: versions that finish what they have.
        reason: why it does not serve.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.current: Version | None = None
        self.old: list[Version] = []
        self.reason = ""
        self.number = 0
        self.lock = asyncio.Lock()

    @property
    def versions(self) -> list[str]:
        """The versions that take calls."""
        return [self.current.number] if self.current is not None else []


class Models:
    """Models by name. Everything is to be called on the loop it was made on.

    Args:
        opener: how `load` finds a model by its name; None where only `add` brings models.
        arena_bytes: memory shared with replicas, for large tensors; it is taken as it is touched.

    Attributes:
        observer: told of calls and replicas of the versions that are loaded from now on.
    """

    def __init__(self, opener: Opener | None = None, *, arena_bytes: int = 2**30) -> None:
        self.arena = Arena(arena_bytes)
        self.observer: Observer | None = None
        self._entries: dict[str, Entry] = {}
        self._opener = opener
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer = self._loop.call_later(_TICK, self._tick)

    def submit(self, call: Call, done: Done) -> tuple[Version, Ticket]:
        """Lets `call` wait for a replica; `done` is told of its answer or refusal, later, once.

        Raises:
            Refusal: at once.
        """
        version = self.find(call.model, call.version)
        return version, version.submit(call, done)

    def infer(self, call: Call) -> asyncio.Future[Answer]:
        """The answer to `call`; cancelling the future takes it out of the queue.

        Raises:
            Refusal: at once; later, the future raises it.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()

        def done(result: Answer | Refusal) -> None:
            if future.done():
                return
            if isinstance(result, Refusal):
                future.set_exception(result)
            else:
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
        entry = self._entry(model)
        found = entry.current
        if found is None:
            why = f": {entry.reason}" if entry.reason else ""
            raise Refusal("not_ready", f"the model `{model}` is not ready{why}")
        if version is not None and version != found.number:
            raise Refusal("not_found", f"the model `{model}` has no version `{version}`; it serves `{found.number}`")
        return found

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
        return describe.metadata(self.find(model, version), self._entry(model).versions)

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
        chosen = self.versions() if model is None else [self.find(model, version)]
        return {"model_stats": [describe.statistics(v) for v in chosen]}

    def versions(self) -> list[Version]:
        """Every version that takes calls, for metrics."""
        return [entry.current for entry in self._entries.values() if entry.current is not None]

    def index(self, ready_only: bool = False) -> list[dict[str, Any]]:
        """The repository's index, as Triton shapes it."""
        found = []
        for entry in self._entries.values():
            if entry.current is not None:
                found.append({"name": entry.name, "version": entry.current.number, "state": "READY", "reason": ""})
            elif not ready_only:
                found.append({"name": entry.name, "version": "", "state": "UNAVAILABLE", "reason": entry.reason})
        return found

    async def load(self, model: str, parameters: Mapping[str, Any]) -> None:
        """Loads a model of the repository, or loads it again as it lies there now: the old version serves on until the
        new one is warm, and longer if that one cannot be loaded.

        Raises:
            Refusal: `not_found`; `invalid`, with what is wrong.
        """
        if self._opener is None:
            raise Refusal("invalid", "this server loads no models by name")
        del parameters
        entry = self._entry(model)
        try:
            await self.add(await self._opener(model))
        except PortolanError as error:
            if entry.current is None:
                entry.reason = error.message
            raise Refusal("invalid", f"the model `{model}` was not loaded: {error.message}") from error

    async def add(self, source: Source) -> Version:
        """Loads `source` and lets it serve in the place of the version before, which finishes what it has.

        Raises:
            ModelError: it cannot be loaded; the version before serves on.
        """
        entry = self.name(source.name)
        async with entry.lock:
            entry.number += 1
            version = Version(source, str(entry.number), self.arena, self.observer)
            try:
                await version.load()
            except BaseException as error:
                self._discard(source)
                if entry.current is None:
                    entry.reason = error.message if isinstance(error, ModelError) else "loading was interrupted"
                raise
            before, entry.current, entry.reason = entry.current, version, ""
            if before is not None:
                self._retire(entry, before)
            return version

    async def unload(self, model: str) -> None:
        """Takes a model out of service; the calls it has are answered.

        Raises:
            Refusal: `not_found`.
        """
        entry = self._entry(model)
        async with entry.lock:
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
        versions = [v for entry in self._entries.values() for v in (*entry.old, entry.current) if v is not None]
        await asyncio.gather(*(version.drain() for version in versions))

    def close(self) -> None:
        """Ends everything; calls that are still here are refused."""
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for entry in self._entries.values():
            for version in (*entry.old, entry.current):
                if version is not None:
                    version.close()
                    self._discard(version.source)
            entry.current = None

    def _entry(self, model: str) -> Entry:
        entry = self._entries.get(model)
        if entry is None:
            raise Refusal("not_found", f"no model named `{model}`: {nearest(model, self._entries)}")
        return entry

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK, self._tick)
        for entry in self._entries.values():
            for version in (*entry.old, entry.current):
                if version is not None:
                    version.tick()

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
