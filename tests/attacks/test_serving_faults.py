"""Processes die, hang and are told to stop while requests are under way: what was taken is answered."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from portolan.core.scratch import sweep
from support import moody
from support.serving import Server, serving

PATH = "/v2/models/moody/infer"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return moody.install(tmp_path_factory.mktemp("site"))


@pytest.fixture
def server(site: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    with serving(moody.bundle(tmp_path / "moody"), "--replicas", "2", **site) as running:
        yield running


def body(first: float, **parameters: Any) -> bytes:
    item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [first, 1, 2, 3]}
    return json.dumps({"inputs": [item], "parameters": parameters}).encode()


def ask(server: Server, first: float, **parameters: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", PATH, body(first, **parameters))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class Load:
    """Callers on kept connections, each with its next request as soon as the one before is answered."""

    def __init__(self, server: Server, callers: int = 8) -> None:
        self.server = server
        self.answers: list[int] = []
        self.broken: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(i,)) for i in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.answers) > 50)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, seed: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        number = seed * 1000.0
        while not self._stop.is_set():
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                return  # it takes no new connections: nothing was taken, nothing is lost
            try:
                number = (number + 1) % 600
                connection.request("POST", PATH, body(number))
                answer = connection.getresponse()
                told = json.loads(answer.read())
                if answer.status == 200 and told["outputs"][0]["data"][0] != 2 * number:
                    self.broken.append(f"{told}")
                self.answers.append(answer.status)
                if answer.will_close:
                    connection.close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.broken.append(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()


def test_kill_9_of_a_replica_under_load_loses_nothing(server: Server) -> None:
    with Load(server) as load:
        for _ in range(3):
            victim = server.children()["replica"][0]
            os.kill(victim, signal.SIGKILL)
            before = len(load.answers)
            until(lambda victim=victim: victim not in server.children()["replica"])  # type: ignore[misc]
            until(lambda before=before: len(load.answers) > before + 50)  # type: ignore[misc]
    assert load.broken == []
    assert set(load.answers) == {200}
    until(lambda: len(server.children()["replica"]) == 2)
    until(lambda: server.get("/v2/models/moody/stats")["model_stats"][0]["replicas"]["running"] == 2)
    assert server.get("/v2/models/moody/stats")["model_stats"][0]["replicas"]["lost"] == 3


def test_a_call_that_ends_every_replica_is_tried_twice_and_refused_and_the_others_are_answered(server: Server) -> None:
    with ThreadPoolExecutor(12) as pool:
        good = [pool.submit(ask, server, float(i)) for i in range(11)]
        bad = pool.submit(ask, server, 666.0)
        status, told = bad.result()
        assert status == 500
        assert "tried on again" in told["error"]
        assert "SIGKILL" in told["error"]
        assert [future.result()[0] for future in good] == [200] * 11
    assert server.get("/v2/models/moody/stats")["model_stats"][0]["replicas"]["lost"] == 2


def test_a_call_that_raises_costs_nobody_else_an_answer(site: dict[str, str], tmp_path: Path) -> None:
    with serving(moody.bundle(tmp_path / "moody"), **site) as server, ThreadPoolExecutor(12) as pool:
        slow = pool.submit(ask, server, -0.3)  # keeps the replica, so that the others share a batch
        time.sleep(0.1)
        calls = [pool.submit(ask, server, 888.0 if i == 3 else float(i)) for i in range(8)]
        assert slow.result()[0] == 200
        found = [call.result() for call in calls]
        assert [status for status, _ in found] == [500 if i == 3 else 200 for i in range(8)]
        assert "the inputs say: fail" in found[3][1]["error"]


def test_a_replica_that_hangs_is_found_and_replaced(site: dict[str, str], tmp_path: Path) -> None:
    made = moody.bundle(tmp_path / "moody")
    with serving(made, "--hang-after", "1s", **site) as server, ThreadPoolExecutor(4) as pool:
        before = server.children()["replica"]
        hung = pool.submit(ask, server, 777.0)
        time.sleep(0.2)
        others = [pool.submit(ask, server, float(i)) for i in range(3)]
        assert hung.result()[0] == 500
        assert "taken for hung" in hung.result()[1]["error"]
        assert [future.result()[0] for future in others] == [200] * 3
        assert not set(before) & set(server.children()["replica"])


def test_sigterm_under_load_answers_what_was_taken_and_exits_0(server: Server) -> None:
    load = Load(server)
    with load:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert load.broken == []
    assert set(load.answers) == {200}


def test_sigterm_waits_for_a_slow_answer(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, server, -2.0)
        time.sleep(0.3)
        assert server.stop() == 0
        assert slow.result()[0] == 200


def test_readiness_ends_before_the_server_does(site: dict[str, str], tmp_path: Path) -> None:
    with serving(moody.bundle(tmp_path / "moody"), "--drain", "2s", **site) as server:
        server.process.send_signal(signal.SIGTERM)
        seen = set()
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            connection.request("GET", "/v2/health/ready")
            seen.add(connection.getresponse().status)
            connection.close()
            assert ask(server, 1.0)[0] == 200  # and requests are still taken
        assert 400 in seen
        assert server.process.wait(20) == 0


def test_kill_9_of_the_supervisor_loses_nothing_that_was_taken(server: Server) -> None:
    front = server.children()["front"][0]
    replicas = server.children()["replica"]
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, server, -1.5)
        time.sleep(0.3)
        load = Load(server)
        with load:
            server.process.kill()
            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (front, *replicas)))
        assert slow.result()[0] == 200
    assert load.broken == []
    assert set(load.answers) == {200}


def folders(place: Path, kind: str) -> list[Path]:
    """The temporary folders of servers, or of their replicas."""
    return list(place.glob("portolan-server-*/portolan-replica-*" if kind == "replica" else f"portolan-{kind}-*"))


def temporary(pid: int) -> Path:
    """Where a process's temporary files go."""
    said = dict(line.partition("=")[::2] for line in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return Path(said["TMPDIR"])


def test_temporary_files_go_with_who_made_them(site: dict[str, str], tmp_path: Path) -> None:
    """A runtime may unpack a model's weights there, and its process ends by a signal."""
    place = tmp_path / "tmp"
    place.mkdir()
    with serving(moody.bundle(tmp_path / "moody"), **site, TMPDIR=str(place)) as server:
        (replica,) = server.children()["replica"]
        unpacked = temporary(replica) / "unpacked"
        assert folders(place, "replica") == [unpacked.parent]
        unpacked.write_text("weights")
        os.kill(replica, signal.SIGKILL)
        until(lambda: server.children()["replica"] not in ([], [replica]))
        until(lambda: not unpacked.parent.exists())
        (whole,) = folders(place, "server")
        (whole / "unpacked").write_text("weights")
        os.kill(server.children()["front"][0], signal.SIGKILL)
        until(lambda: folders(place, "server") not in ([], [whole]))
        assert not whole.exists()
        until(lambda: len(server.children()["replica"]) == 1)
        assert server.stop() == 0
    assert list(place.iterdir()) == []


def test_nobody_sweeps_what_a_front_without_its_supervisor_needs(site: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    with serving(moody.bundle(tmp_path / "moody"), **site, TMPDIR=str(place)) as server, ThreadPoolExecutor(1) as pool:
        front, replicas = server.children()["front"][0], server.children()["replica"]
        slow = pool.submit(ask, server, -1.5)
        time.sleep(0.3)
        server.process.kill()
        server.process.wait()
        sweep(place, "portolan-server-")
        assert len(folders(place, "server")) == 1
        assert slow.result()[0] == 200
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (front, *replicas)))
    sweep(place, "portolan-server-")
    assert list(place.iterdir()) == []


def test_kill_9_of_the_front_is_survived_by_the_server(server: Server) -> None:
    def success() -> int:
        return int(server.get("/v2/models/moody/stats")["model_stats"][0]["inference_stats"]["success"]["count"])

    for _ in range(3):
        assert ask(server, 1.0)[0] == 200
    counted = success()
    time.sleep(1.5)  # counts are kept once a second
    front = server.children()["front"][0]
    os.kill(front, signal.SIGKILL)
    until(lambda: server.children()["front"] not in ([], [front]))

    def answers() -> bool:
        try:
            return ask(server, 1.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    until(answers)
    assert success() > counted  # it goes on where it was
    assert server.stop() == 0


def test_a_client_that_goes_away_takes_its_waiting_calls_along(site: dict[str, str], tmp_path: Path) -> None:
    with serving(moody.bundle(tmp_path / "moody"), **site) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, server, -1.0)
        time.sleep(0.3)
        for i in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                raw = body(float(i))
                connection.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (PATH.encode(), len(raw), raw))
                time.sleep(0.05)
        assert slow.result()[0] == 200
        stats = server.get("/v2/models/moody/stats")["model_stats"][0]
        assert stats["inference_count"] == 1
        assert stats["inference_stats"]["fail"]["count"] == 5


def test_a_corrupt_bundle_at_reload_leaves_the_old_version_serving(site: dict[str, str], tmp_path: Path) -> None:
    made = moody.bundle(tmp_path / "moody", 2.0)
    with serving(made, **site) as server, Load(server, 4) as load:
        (made / "compiled" / "factor.txt").write_text("3.0")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", "/v2/repository/models/moody/load")
        answer = connection.getresponse()
        assert answer.status == 400
        assert "was not loaded" in json.loads(answer.read())["error"]
        connection.close()
        assert ask(server, 5.0)[1]["outputs"][0]["data"][0] == 10.0
        assert server.get("/v2/models/moody")["versions"] == ["1"]
    assert load.broken == []
    assert set(load.answers) == {200}


def test_reload_under_load_switches_once_and_loses_nothing(site: dict[str, str], tmp_path: Path) -> None:
    made = moody.bundle(tmp_path / "moody", 2.0)
    with serving(made, **site) as server:
        seen: list[float] = []
        stop = threading.Event()

        def call() -> None:
            while not stop.is_set():
                status, told = ask(server, 1.0)
                seen.append(told["outputs"][0]["data"][0] if status == 200 else -status)

        with ThreadPoolExecutor(1) as pool:
            calls = pool.submit(call)
            until(lambda: len(seen) > 20)
            moody.bundle(tmp_path / "moody", 3.0)
            os.kill(server.process.pid, signal.SIGHUP)
            until(lambda: 3.0 in seen)
            stop.set()
            calls.result()
        assert set(seen) == {2.0, 3.0}
        assert seen == sorted(seen)
        until(lambda: len(server.children()["replica"]) == 1)
