from __future__ import annotations

import platform

import numpy as np
import pytest

import portolan
from portolan.measure.environment import Ticks, environment, ticks


@pytest.fixture
def root(tmp_path):
    """A small /proc and /sys."""
    governor = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    governor.mkdir(parents=True)
    (governor / "scaling_governor").write_text("performance\n")
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "stat").write_text("cpu  100 0 50 800 10 0 5 35 70 0\ncpu0 1 2 3\n")
    (proc / "loadavg").write_text("0.50 0.25 0.10 1/200 1234\n")
    (proc / "cpuinfo").write_text("processor : 0\ncpu MHz\t\t: 3000.0\nprocessor : 1\ncpu MHz\t\t: 3200.0\n")
    return tmp_path


def test_everything_is_read(root):
    found = environment(Ticks(total=900, steal=25), root)
    assert found["load"] == [0.5, 0.25, 0.1]
    assert found["steal"] == pytest.approx(0.1)
    assert found["governor"] == "performance"
    assert found["clock_mhz"] == 3100.0
    assert found["kernel"].startswith(platform.system())
    assert found["versions"] == {
        "python": platform.python_version(),
        "portolan": portolan.__version__,
        "numpy": np.__version__,
    }


def test_guest_time_is_not_counted_twice(root):
    assert ticks(root) == Ticks(total=1000, steal=35)


def test_the_clock_of_a_processor_that_lists_none_is_taken_from_its_driver(root):
    (root / "proc/cpuinfo").write_text("processor : 0\nBogoMIPS : 50\n")
    (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text("2400000\n")
    assert environment(root=root)["clock_mhz"] == 2400.0


def test_what_the_system_does_not_tell_is_none(tmp_path):
    found = environment(Ticks(1, 0), tmp_path)
    assert [found[key] for key in ("load", "steal", "governor", "clock_mhz")] == [None] * 4


@pytest.mark.parametrize("text", ["", "cpu 1 2 3\n", "intr 1 2 3 4 5 6 7 8 9\n", "cpu a b c d e f g h\n"])
def test_strange_counters_are_no_counters(root, text):
    (root / "proc/stat").write_text(text)
    assert ticks(root) is None
    assert environment(Ticks(1, 0), root)["steal"] is None


def test_strange_load_and_clock_are_none(root):
    (root / "proc/loadavg").write_text("no load here\n")
    (root / "proc/cpuinfo").write_text("cpu MHz : fast\n")
    found = environment(root=root)
    assert found["load"] is None
    assert found["clock_mhz"] is None
    assert found["steal"] is None
