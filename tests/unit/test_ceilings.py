from __future__ import annotations

from pathlib import Path

from searching import TARGET

from portolan.study import ceilings
from portolan.targets.local import local
from portolan.worker.environments import backends


def test_integer_rates_are_read_on_the_runtime_or_not_at_all() -> None:
    target = local.detect()
    found = ceilings.measured(target, backends(target, ["onnxruntime"]))
    assert found["detail"]["flops_int8"]["n"] >= 5
    assert found["flops_int8"] >= found["detail"]["flops_int8"]["min"] > 1e8
    assert ceilings.measured(target, {})["flops_int8"] is None


def test_the_integer_rate_is_kept_for_later_searches_on_this_target(tmp_path: Path) -> None:
    target = local.detect()
    assert ceilings.here(target, tmp_path / "nothing")["flops_int8"] is None
    ceilings.keep(target, {"flops_fp32": 1.0, "flops_int8": 3e11}, tmp_path)
    known = ceilings.here(target, tmp_path)
    assert known["flops_int8"] == 3e11
    assert known["flops_fp32"] > 1.0, "floats are measured as they are now"
    assert ceilings.here(TARGET, tmp_path)["flops_int8"] is None, "another machine"
