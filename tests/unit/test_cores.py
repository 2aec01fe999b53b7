"""Whether a core is left for another batch."""

from __future__ import annotations

from portolan.serving.cores import Cores


class Time:
    """A clock and a meter that are turned by hand."""

    def __init__(self) -> None:
        self.now = self.used = 0.0

    def cores(self, count: int) -> Cores:
        return Cores(count, lambda: self.used, lambda: self.now)

    def spend(self, cores: Cores, share: float, seconds: float = 3.0) -> None:
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            self.used += 0.1 * share
            cores.look()


def test_an_idle_front_leaves_all_cores_to_replicas() -> None:
    time = Time()
    cores = time.cores(2)
    time.spend(cores, 0.05)
    assert cores.room(0)
    assert cores.room(1)
    assert not cores.room(2)


def test_a_busy_front_takes_one_and_gives_it_back() -> None:
    time = Time()
    cores = time.cores(2)
    time.spend(cores, 0.8)
    assert cores.room(0)
    assert not cores.room(1)
    time.spend(cores, 0.0)
    assert cores.room(1)


def test_one_turn_of_work_is_no_load() -> None:
    time = Time()
    cores = time.cores(2)
    time.spend(cores, 0.0)
    time.spend(cores, 1.0, seconds=0.1)
    assert cores.room(1)
