"""`Models` without a door: canary, shadow, scaling to zero and back, large tensors; a loop and its replicas."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.core.signature import Signature, TensorSpec
from portolan.hosting import open_source
from portolan.serving import instance
from portolan.serving.calls import Call, Refusal, Tensor
from portolan.serving.heads import Head
from portolan.serving.metrics import Metrics
from portolan.serving.models import Models
from portolan.serving.request import Request
from portolan.serving.responses import Response, raw
from portolan.serving.rollout import Terms
from portolan.serving.routes import Routes
from portolan.serving.source import Source
from portolan.serving.version import Version
from support import moody


@pytest.fixture(autouse=True)
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in moody.install(tmp_path / "site").items():
        monkeypatch.setenv(key, value)


def source(tmp: Path, factor: float, **limits: Any) -> Source:
    """A model that multiplies by `factor`, opened as the server does but without its backend in this process."""
    folder = tmp / f"compiled-{factor}"
    moody.bundle(tmp / f"moody-{factor}", factor)
    folder.mkdir()
    for file in (tmp / f"moody-{factor}" / "compiled").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return Source("moody", str(folder), moody.SIGNATURE, "moody").limited(**limits)


def call(first: float, rows: int = 1, version: str | None = None, **more: Any) -> Call:
    x = np.full((rows, 4), first, np.float32)
    return Call("moody", version, [Tensor("x", "FP32", x.shape, x.tobytes())], **more)


async def answer(models: Models, first: float, **more: Any) -> float:
    got = await models.infer(call(first, **more))
    return float(np.frombuffer(got.outputs[0].data, np.float32)[0])


def run(work: Callable[[Models, list[dict[str, Any]]], Awaitable[None]]) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        models = Models(arena_bytes=2**26, told=told.append)
        try:
            await asyncio.wait_for(work(models, told), 60)
        finally:
            models.close()

    asyncio.run(main())


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


def test_a_full_disk_leaves_a_model_its_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 3.0))
        assert await answer(models, 2.0) == 6.0

    monkeypatch.setattr(instance, "Scratch", full)
    run(work)


def test_a_canary_that_does_well_takes_over(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0))
        await models.add(source(tmp_path, 3.0), Terms("canary", 0.25, calls=40, p99=1e6))
        assert [v.number for v in models.versions()] == ["1", "2"]
        seen = [await answer(models, 1.0) for _ in range(120)]
        assert {2.0, 3.0} == set(seen)
        assert 10 <= seen.count(3.0) <= 60
        while not any("promoted" in item for item in told):
            await answer(models, 1.0)
        assert await answer(models, 1.0) == 3.0
        assert [v.number for v in models.versions()] == ["2"]

    run(work)


def test_a_canary_that_fails_is_rolled_back_and_the_old_version_serves_on(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0))
        await models.add(source(tmp_path, 3.0), Terms("canary", 0.5, calls=400, p99=1e6))
        new = models.versions()[1]
        while not any("rolled_back" in item for item in told):
            # What raises does so in both versions, so only the new one is asked for it.
            with pytest.raises(Refusal):
                await models.infer(call(888.0, version=new.number))
            await asyncio.sleep(0.005)
        assert "failed" in next(item["reason"] for item in told if "rolled_back" in item)
        assert [v.number for v in models.versions()] == ["1"]
        assert {await answer(models, 1.0) for _ in range(20)} == {2.0}

    run(work)


def test_nobody_sees_what_a_shadow_answers(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0))
        await models.add(source(tmp_path, 3.0), Terms("shadow", 1.0, calls=10_000))
        shadow = models.versions()[1]
        assert {await answer(models, 1.0) for _ in range(30)} == {2.0}
        await until(lambda: shadow.counters.request_success == 30)
        # One is 3 where the other is 2, but the top of four equal scores is the same: they agree.
        await until(lambda: shadow.counters.compared == 30)
        (stats,) = models.statistics("moody", shadow.number)["model_stats"]
        assert stats["shadow"] == {"compared": 30, "agreed": 30}
        assert 'portolan_shadow_agreed_total{model="moody",version="2"} 30' in Metrics(models).text()
        assert [v.number for v in models.versions()] == ["1", "2"]

    run(work)


def test_a_version_that_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0))
        broken = source(tmp_path, 3.0)
        (Path(broken.folder) / "factor.txt").write_text("no number")
        with pytest.raises(Exception, match="cannot be loaded"):
            await models.add(broken)
        assert await answer(models, 1.0) == 2.0
        assert models.ready("moody")

    run(work)


def test_the_last_replica_goes_when_nobody_asks_and_comes_back_for_the_next_call(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        version = await models.add(source(tmp_path, 2.0, replicas=(0, 1), idle_after=0.5, deadline=0.05))
        assert await answer(models, 1.0) == 2.0
        await until(lambda: not version.pool.instances)
        assert version.pool.cost() == (0, 0.0)
        assert models.ready("moody")
        assert await answer(models, 4.0) == 8.0  # although a start takes longer than the deadline

    run(work)


def test_replicas_are_added_while_calls_wait(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        version = await models.add(source(tmp_path, 2.0, replicas=(1, 3), max_batch=1))
        calls = [models.infer(call(-0.25)) for _ in range(40)]
        await until(lambda: version.pool.running == 3)
        assert len(await asyncio.gather(*calls)) == 40

    run(work)


@pytest.mark.interpreted
def test_a_second_replica_runs_beside_the_first_only_where_a_core_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portolan.serving.version._SHORT", 5.0)

    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        version = await models.add(source(tmp_path, 2.0, replicas=(2, 2)))
        await until(lambda: version.pool.running == 2)
        cores = models.cores
        cores.look = lambda: None  # type: ignore[method-assign]
        cores.count = 2
        for share, joined in ((0.0, False), (1.0, True)):
            cores.share = share
            before = version.counters.exec_count
            slow = models.infer(call(-0.3))
            await asyncio.sleep(0.05)
            others = [models.infer(call(float(i))) for i in range(5)]
            await asyncio.sleep(0.05)
            later = [models.infer(call(float(i))) for i in range(5)]
            await asyncio.gather(*others, *later)
            assert slow.done() == joined
            await slow
            assert version.counters.exec_count - before == (2 if joined else 3)

    run(work)


def test_large_tensors_go_through_shared_memory_and_come_back_right(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0))
        rng = np.random.default_rng(0)
        for rows in (1, 5000, 40_000):
            x = rng.random((rows, 4), np.float32)  # not below 0, which asks for sleep
            released: list[bool] = []
            asked = Call("moody", None, [Tensor("x", "FP32", x.shape, x.tobytes())])
            asked.release = lambda released=released: released.append(True)  # type: ignore[misc]
            got = await models.infer(asked)
            np.testing.assert_array_equal(np.frombuffer(got.outputs[0].data, np.float32).reshape(rows, 4), x * 2)
            assert released == [True]
        assert models.arena.used == 0

    run(work)


@pytest.mark.interpreted
def test_large_outputs_come_back_through_shared_memory(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        version = await models.add(source(tmp_path, 2.0))
        x = np.random.default_rng(0).random((40_000, 4), np.float32)
        seen: list[int] = []
        take = models.arena.take
        models.arena.take = lambda size: seen.append(size) or take(size)  # type: ignore[method-assign,func-returns-value]

        async def twice() -> None:
            for factor in (1.0, 3.0):
                asked = Call("moody", None, [Tensor("x", "FP32", x.shape, (x * factor).tobytes())])
                got = await models.infer(asked)
                y = np.frombuffer(got.outputs[0].data, np.float32).reshape(x.shape)
                np.testing.assert_array_equal(y, x * factor * 2)

        await twice()
        # The first answer of its size came through the socket; from then on there is room for the next one.
        assert seen == [x.nbytes, x.nbytes, x.nbytes]
        await twice()
        assert len(seen) == 7
        assert models.arena.used == 0
        assert version.counters.request_success == 4

    run(work)


def fixed(tmp: Path, factor: float, rows: int, **limits: Any) -> Source:
    """A model that runs with so many rows and no other number."""
    made = source(tmp, factor, **limits)
    (Path(made.folder) / "rows.txt").write_text(str(rows))
    np.savez(tmp / "warm.npz", x=np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) / 100)
    signature = Signature(*((TensorSpec(name, "float32", (rows, 4)),) for name in "xy"))
    return replace(made, signature=signature, samples=str(tmp / "warm.npz"))


def test_a_model_of_a_fixed_batch_serves_single_calls_together(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        version = await models.add(fixed(tmp_path, 2.0, 8, max_batch=8))
        assert models.metadata("moody")["inputs"][0]["shape"] == [-1, 4]
        assert models.config("moody")["max_batch_size"] == 8
        assert await answer(models, 3.0) == 6.0
        whole = await models.infer(call(1.0, rows=8))
        assert whole.outputs[0].shape == (8, 4)
        before = version.counters.exec_count
        first = models.infer(call(-0.2))  # the others gather meanwhile
        await asyncio.sleep(0.1)
        got = await asyncio.gather(*(answer(models, float(i)) for i in range(1, 8)))
        assert [float(value) for value in got] == [2.0 * i for i in range(1, 8)]
        assert np.frombuffer((await first).outputs[0].data, np.float32)[0] == pytest.approx(-0.4)
        assert version.counters.exec_count == before + 2
        with pytest.raises(Refusal, match="9 rows, and the model takes at most 8"):
            models.infer(call(1.0, rows=9))

    run(work)


def in_turn(tmp: Path, **more: Any) -> Source:
    """A model whose calls share no batch, and that is quick by what is known of it, so that they go out together."""
    return replace(source(tmp, 2.0, max_batch=1), profile={1: 1e-5}, **more)


async def together(models: Models, made: Source, asked: list[Call]) -> tuple[Version, list[int], list[Any]]:
    """Serves it, and asks while a call runs that sleeps; how many calls went out at once then, and what each got."""
    version = await models.add(made)
    first = models.infer(call(-0.2))
    await until(lambda: any(instance.batches for instance in version.pool.instances))
    waiting = asyncio.gather(*(models.infer(one) for one in asked), return_exceptions=True)
    await first
    sizes = [len(batch.tickets) for instance in version.pool.instances for batch in instance.batches]
    return version, sizes, await waiting


def test_calls_that_share_no_batch_run_one_after_another_in_one_frame(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        asked = [call(-0.05 - i / 1000, rows=1 + i // 6) for i in range(8)]
        version, sizes, got = await together(models, in_turn(tmp_path), asked)
        assert sizes == [6], "six of one shape; two of another wait"
        for one, answer in zip(asked, got, strict=True):
            assert answer.outputs[0].shape == one.inputs[0].shape
            sent = np.frombuffer(one.inputs[0].data, np.float32)
            np.testing.assert_array_equal(np.frombuffer(answer.outputs[0].data, np.float32), 2 * sent)
        counted = version.counters
        assert (counted.count, counted.exec_count, counted.batches[1][0]) == (9, 9, 9)
        assert counted.batch_rows.counts[0] == 9
        assert counted.runtime > 0.2 + 8 * 0.05
        assert counted.compute_infer_duration == pytest.approx(counted.runtime)

    run(work)


def test_fewer_calls_go_out_together_when_they_are_seen_to_be_slow(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        version, sizes, _ = await together(models, in_turn(tmp_path), [call(-0.05) for _ in range(4)])
        assert sizes == [4]
        caps = []
        for _ in range(10):
            await asyncio.gather(*(models.infer(call(-0.01)) for _ in range(8)))
            version.tick()
            caps.append(version.cap)
        assert caps[-1] == 1, caps

    run(work)


def test_calls_in_turn_are_divided_among_the_replicas(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        version = await models.add(in_turn(tmp_path).limited(replicas=(2, 2)))
        await until(lambda: version.pool.running == 2)
        waiting = asyncio.gather(*(models.infer(call(-0.1)) for _ in range(4)))
        await until(lambda: any(instance.batches for instance in version.pool.instances))
        (first, *_) = (batch for instance in version.pool.instances for batch in instance.batches)
        assert first.rows == 2
        await waiting

    run(work)


def test_a_call_that_fails_in_turn_costs_the_others_nothing(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        asked = [call(first) for first in (-0.1, 888, 3)]
        version, sizes, (good, bad, last) = await together(models, in_turn(tmp_path), asked)
        assert sizes == [3]
        assert isinstance(bad, Refusal)
        assert "the inputs say: fail" in str(bad)
        for first, answer in ((-0.1, good), (3, last)):
            assert np.frombuffer(answer.outputs[0].data, np.float32)[0] == pytest.approx(2 * first)
        assert version.counters.request_failure["BACKEND"] == 1

    run(work)


def test_calls_in_turn_may_have_outputs_of_different_shapes(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        ragged = Signature(moody.SIGNATURE.inputs, (TensorSpec("y", "float32", ("N", "K")),))
        made = in_turn(tmp_path, signature=ragged)
        (Path(made.folder) / "ragged.txt").touch()
        rows = np.float32([[-0.1, 2, 2, 0], [0, 0, 0, 2], [2, 2, 2, 2]])
        asked = [Call("moody", None, [Tensor("x", "FP32", (1, 4), row.tobytes())]) for row in rows]
        _, sizes, got = await together(models, made, asked)
        assert sizes == [3]
        assert [answer.outputs[0].shape for answer in got] == [(1, 2), (1, 1), (1, 4)]

    run(work)


def test_a_full_queue_refuses_and_a_cancelled_call_leaves_it(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        version = await models.add(source(tmp_path, 2.0, queue=3))
        busy = models.infer(call(-0.5))
        await asyncio.sleep(0.1)
        waiting = [models.infer(call(1.0)) for _ in range(3)]
        with pytest.raises(Refusal) as refused:
            await models.infer(call(1.0))
        assert (refused.value.kind, version.queue.length) == ("overloaded", 3)
        assert refused.value.retry_after is not None
        waiting[1].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert version.queue.length == 2
        assert len(await asyncio.gather(busy, waiting[0], waiting[2])) == 3
        assert version.counters.count == 3

    run(work)


def test_opening_gives_what_a_bundle_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import portolan

    portolan.pack("demo:digits", out=tmp_path / "d.portolan")
    into = tmp_path / "into"
    into.mkdir()
    opened = open_source(tmp_path / "d.portolan", into)
    assert (opened.name, opened.platform) == ("digits", "onnxruntime")
    assert Source.from_json(opened.to_json()) == opened
    assert (Path(opened.folder) / "compiled.json").is_file()


def test_a_full_batch_leaves_in_the_middle_of_a_turn_that_reads_many_calls(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0, max_batch=4))
        pool = models.versions()[0].pool

        def running() -> int:
            return sum(len(one.batches) for one in pool.instances)

        waiting = [models.infer(call(float(i + 1))) for i in range(4)]
        assert running() == 0, "the turn may bring more"
        waiting.append(models.infer(call(5.0)))
        assert running() == 1, "no call was answered yet, and nobody waited"
        answers = await asyncio.gather(*waiting)
        got = [float(np.frombuffer(a.outputs[0].data, np.float32)[0]) for a in answers]
        assert got == [2.0, 4.0, 6.0, 8.0, 10.0]

    run(work)


def test_a_replica_is_heard_in_the_middle_of_a_turn_that_reads_many_calls(tmp_path: Path) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0, max_batch=4))
        pool = models.versions()[0].pool
        first = [models.infer(call(float(i + 1))) for i in range(5)]
        second = [models.infer(call(9.0)) for _ in range(4)]
        time.sleep(1.0)  # no turn of the loop passes, and the replica has long answered
        second.append(models.infer(call(9.0)))
        assert all(future.done() for future in first[:4])
        assert sum(len(one.batches) for one in pool.instances) == 1, "the next batch has left"
        answers = await asyncio.gather(*first, *second)
        got = [float(np.frombuffer(a.outputs[0].data, np.float32)[0]) for a in answers]
        assert got == [2.0, 4.0, 6.0, 8.0, 10.0, *[18.0] * 5]

    run(work)


class Wire:
    """A connection that keeps what is answered."""

    peer = "test"

    def __init__(self) -> None:
        self.said: list[Response] = []

    def extra(self, key: str) -> object:
        return None

    def answer(self, request: Request, response: Response) -> None:
        self.said.append(response)


@pytest.mark.interpreted
def test_what_is_refused_at_once_says_the_same_and_keeps_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0, max_batch=4))
        monkeypatch.setattr("portolan.serving.turns.Turns.waited", lambda self, now: 10.0)
        x = np.ones((1, 4), np.float32)
        asked = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        json_part = json.dumps({"inputs": [asked], "parameters": {"timeout": 5_000_000}}).encode()
        routes, wire = Routes(models), Wire()
        body = json_part + x.tobytes()
        head = Head(b"POST", b"/v2/models/moody/infer", {}, False, len(body), len(json_part))
        for _ in range(2):
            request = Request(wire, head)
            into = request.receive(models.arena)
            assert into is not None
            into[:] = body
            request.body = into
            routes(request)
            assert request.cancel is None
            request.give_back(models.arena)  # as the door does with what nobody was lent
            assert models.arena.used == 0
        one, other = wire.said
        assert one is other
        assert one.status == 503
        assert b"cannot be met" in b"".join(raw(one, close=False))
        assert b"Connection: close" in b"".join(raw(one, close=True))
        assert models.versions()[0].counters.request_failure["REJECTED"] == 2

    run(work)


@pytest.mark.interpreted
def test_deadlines_count_from_when_a_call_came_and_not_from_when_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(models: Models, told: list[dict[str, Any]]) -> None:
        await models.add(source(tmp_path, 2.0))
        assert await answer(models, 1.0, timeout=5.0) == 2.0
        monkeypatch.setattr("portolan.serving.turns.Turns.waited", lambda self, now: 10.0)
        version = models.versions()[0]
        came = version.queue.came
        with pytest.raises(Refusal, match="the deadline of 5000 ms cannot be met"):
            await models.infer(call(1.0, timeout=5.0))
        assert version.queue.came == came, "it was refused before it was let wait"
        assert version.counters.request_failure["REJECTED"] == 1
        assert await answer(models, 1.0, timeout=15.0) == 2.0

    run(work)
