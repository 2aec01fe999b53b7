"""Plain checks that an object printed by `--json` has the keys and types of the contract. More keys are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portolan.core.measurement import METRICS, load_of, unloaded

NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, type(None))
TEXT_OR_NONE = (str, type(None))
METRIC_OR_NONE = (Mapping, type(None))


class Misshapen(AssertionError):
    """An object that is not as the contract says; the message has the path."""


def _want(data: Any, path: str, fields: Mapping[str, Any]) -> None:
    if not isinstance(data, Mapping):
        raise Misshapen(f"{path} is no object but {type(data).__name__}")
    for key, kind in fields.items():
        if key not in data:
            raise Misshapen(f"{path}.{key} is missing")
        value = data[key]
        if isinstance(value, bool) and bool not in (kind if isinstance(kind, tuple) else (kind,)):
            raise Misshapen(f"{path}.{key} is a bool")
        if not isinstance(value, kind):
            raise Misshapen(f"{path}.{key} is {type(value).__name__}, expected {kind}")


def metric(data: Any, path: str, name: str | None = None) -> None:
    _want(data, path, {"value": OPTIONAL_NUMBER, "unit": str, "lo": OPTIONAL_NUMBER, "hi": OPTIONAL_NUMBER})
    _want(data, path, {"n": (int, type(None)), "kind": str})
    if data["kind"] not in ("measured", "estimated", "predicted"):
        raise Misshapen(f"{path}.kind is {data['kind']!r}")
    known = METRICS.get(unloaded(name or ""))
    if known is not None and data["unit"] != known.unit:
        raise Misshapen(f"{path}.unit is {data['unit']!r}, expected {known.unit!r}")
    if None not in (data["lo"], data["hi"]) and data["lo"] > data["hi"]:
        raise Misshapen(f"{path} has its interval upside down")


def metrics(data: Any, path: str) -> None:
    _want(data, path, {})
    for name, value in data.items():
        if name not in METRICS and load_of(name) is None:
            raise Misshapen(f"{path}.{name} is no metric")
        metric(value, f"{path}.{name}", name)


def recipe(data: Any, path: str) -> None:
    _want(data, path, {"passes": list, "backend": str, "options": Mapping, "target": str, "serving": Mapping})
    for i, step in enumerate(data["passes"]):
        _want(step, f"{path}.passes[{i}]", {"name": str})


def trial(data: Any, path: str) -> None:
    _want(data, path, {"id": (int, type(None)), "recipe": Mapping, "status": str, "reason": TEXT_OR_NONE})
    _want(data, path, {"metrics": Mapping, "pareto": bool, "met": bool})
    recipe(data["recipe"], f"{path}.recipe")
    metrics(data["metrics"], f"{path}.metrics")
    if data["status"] not in ("ok", "failed", "refused"):
        raise Misshapen(f"{path}.status is {data['status']!r}")
    if data["status"] != "ok" and not data["reason"]:
        raise Misshapen(f"{path} is {data['status']} without a reason")
    if data["met"] and data["status"] != "ok":
        raise Misshapen(f"{path} is {data['status']} and yet met")


def inspection(data: Any) -> None:
    _want(data, "$", {"name": str, "format": str, "opset": int, "sha256": str, "inputs": list, "outputs": list})
    _want(data, "$", {"operators": Mapping, "parameters": int, "flops": OPTIONAL_NUMBER, "notes": list})
    _want(data, "$", {"bytes_moved": OPTIONAL_NUMBER})
    for side in ("inputs", "outputs"):
        for i, spec in enumerate(data[side]):
            _want(spec, f"$.{side}[{i}]", {"name": str, "dtype": str, "shape": list})


def examination(data: Any, *, bench: bool = False) -> None:
    _want(data, "$", {"target": Mapping, "backends": list, "passes": list})
    _want(data["target"], "$.target", {"id": str, "fingerprint": str, "kind": str, "arch": str, "features": list})
    _want(data["target"], "$.target", {"cores": int, "ram": int, "accelerators": list})
    _want(data["target"], "$.target", {"devices": list})
    for i, row in enumerate(data["backends"]):
        _want(row, f"$.backends[{i}]", {"name": str, "ready": bool, "version": TEXT_OR_NONE, "reason": TEXT_OR_NONE})
        _want(row, f"$.backends[{i}]", {"fix": TEXT_OR_NONE, "devices": Mapping})
        if not row["ready"] and not row["reason"]:
            raise Misshapen(f"$.backends[{i}] is not ready without a reason")
    for i, row in enumerate(data["passes"]):
        _want(row, f"$.passes[{i}]", {"name": str, "about": TEXT_OR_NONE, "needs": TEXT_OR_NONE})
    if bench:
        _want(data, "$", {"ceilings": Mapping})
        _want(data["ceilings"], "$.ceilings", {"flops_fp32": object, "flops_int8": object, "bandwidth": object})
        for i, row in enumerate(data.get("payoffs", ())):
            where = f"$.payoffs[{i}]"
            _want(row, where, {"passes": str, "features": list, "operators": str, "backend": str})
            _want(row, where, {"ratio": OPTIONAL_NUMBER, "reason": TEXT_OR_NONE})


def serving(data: Any, path: str) -> None:
    _want(data, path, {"loads": list, "profiles": list, "choices": list, "runs": list})
    for i, row in enumerate(data["profiles"]):
        where = f"{path}.profiles[{i}]"
        _want(row, where, {"trial": int, "recipe": Mapping, "profile": Mapping, "note": TEXT_OR_NONE})
        _want(row["profile"], f"{where}.profile", {"quantile": NUMBER, "unit": str, "batches": Mapping})
        for size, value in row["profile"]["batches"].items():
            metric(value, f"{where}.profile.batches.{size}")
    for i, row in enumerate(data["choices"]):
        where = f"{path}.choices[{i}]"
        _want(row, where, {"trial": (int, type(None)), "recipe": Mapping, "predicted": Mapping})
        recipe(row["recipe"], f"{where}.recipe")
        metrics(row["predicted"], f"{where}.predicted")
    for i, row in enumerate(data["runs"]):
        where = f"{path}.runs[{i}]"
        _want(row, where, {"trial": int, "scenario": str, "asked": OPTIONAL_NUMBER, "calls": int, "answered": int})
        _want(row, where, {"rate": NUMBER, "seconds": NUMBER, "late": NUMBER, "valid": bool, "why": list})
        _want(row, where, {"failures": Mapping, "quantiles": Mapping})


def study(data: Any) -> None:
    _want(data, "$", {"study": str, "goals": list, "met": bool, "baseline": Mapping, "trials": list})
    _want(data, "$", {"best": (Mapping, type(None)), "closest": (Mapping, type(None)), "seconds": NUMBER})
    _want(data, "$", {"measurements": int})
    for i, row in enumerate(data.get("untried", ())):
        _want(row, f"$.untried[{i}]", {"recipe": Mapping, "reason": str})
        recipe(row["recipe"], f"$.untried[{i}].recipe")
    for i, row in enumerate(data["trials"]):
        trial(row, f"$.trials[{i}]")
    for role in ("baseline", "best", "closest"):
        if data[role] is not None:
            trial(data[role], f"$.{role}")
    if data.get("serving") is not None:
        serving(data["serving"], "$.serving")
    if data["met"] != (data["best"] is not None):
        raise Misshapen("$.met and $.best disagree")


def compression(data: Any) -> None:
    _want(data, "$", {"model": str, "recipe": Mapping, "metrics": Mapping})
    recipe(data["recipe"], "$.recipe")
    metrics(data["metrics"], "$.metrics")


def comparison(data: Any) -> None:
    _want(data, "$", {"arms": list, "ratios": list, "noise": Mapping, "environment": Mapping})
    for i, arm in enumerate(data["arms"]):
        _want(arm, f"$.arms[{i}]", {"name": str, "metrics": Mapping})
        metrics(arm["metrics"], f"$.arms[{i}].metrics")
    for i, row in enumerate(data["ratios"]):
        path = f"$.ratios[{i}]"
        _want(row, path, {"a": str, "b": str, "metric": str, "ratio": NUMBER, "lo": NUMBER, "hi": NUMBER})
        if row.get("verdict") not in ("faster", "slower", "no significant difference"):
            raise Misshapen(f"{path}.verdict is {row.get('verdict')!r}")
    noise = {"aa_ratio": OPTIONAL_NUMBER, "lo": OPTIONAL_NUMBER, "hi": OPTIONAL_NUMBER, "ok": bool}
    _want(data["noise"], "$.noise", noise)


def packing(data: Any) -> None:
    _want(data, "$", {"bundle": str, "sha256": TEXT_OR_NONE, "files": list, "verified": bool})


def operators(data: Any) -> None:
    _want(data, "$", {"kernels": list})
    for i, row in enumerate(data["kernels"]):
        where = f"$.kernels[{i}]"
        _want(row, where, {"name": str, "target": str, "max_abs_error": OPTIONAL_NUMBER})
        _want(row, where, {"seconds_tuning": OPTIONAL_NUMBER, "gflops": OPTIONAL_NUMBER})
        _want(row, where, {"gbytes_per_s": OPTIONAL_NUMBER, "artefact": TEXT_OR_NONE})


def reporting(data: Any) -> None:
    _want(data, "$", {"report": str})


def deployment(data: Any) -> None:
    _want(data, "$", {"bundle": str, "sha256": str, "name": str, "out": str, "facts": Mapping, "platforms": list})
    facts = {"replicas": list, "max_batch": int, "deadline": OPTIONAL_NUMBER, "cpus": int, "profiled": bool}
    _want(data["facts"], "$.facts", facts)
    claims = {"latency": METRIC_OR_NONE, "memory": METRIC_OR_NONE, "cold_start": METRIC_OR_NONE}
    _want(data["facts"], "$.facts", claims)
    for key in claims:
        if data["facts"][key] is not None:
            metric(data["facts"][key], f"$.facts.{key}")
    for i, platform in enumerate(data["platforms"]):
        _want(platform, f"$.platforms[{i}]", {"name": str, "folder": str, "files": list, "next": list, "notes": list})


def environments(data: Any) -> None:
    _want(data, "$", {"action": str, "root": str, "environments": list})
    for i, row in enumerate(data["environments"]):
        _want(row, f"$.environments[{i}]", {"name": str, "state": str, "reason": TEXT_OR_NONE, "fix": TEXT_OR_NONE})
        _want(row, f"$.environments[{i}]", {"version": TEXT_OR_NONE, "size": (int, type(None)), "folder": str})
        _want(row, f"$.environments[{i}]", {"about": str, "packages": list})
        for package in row["packages"]:
            _want(package, f"$.environments[{i}].packages[]", {"name": str, "version": str, "licence": str})


def targets(data: Any) -> None:
    _want(data, "$", {"action": str, "targets": list})
    for i, row in enumerate(data["targets"]):
        _want(row, f"$.targets[{i}]", {"name": str, "folder": str})
        if "reason" in row:
            _want(row, f"$.targets[{i}]", {"reason": str, "fix": TEXT_OR_NONE})
        elif data["action"] == "remove":
            _want(row, f"$.targets[{i}]", {"size": int})
        else:
            _want(
                row,
                f"$.targets[{i}]",
                {"emulate": str, "made": str, "size": int, "packages": Mapping, "target": Mapping},
            )
            _want(row["target"], f"$.targets[{i}].target", {"id": str, "fingerprint": str, "kind": str, "reach": list})


def failure(data: Any, code: int) -> None:
    _want(data, "$", {"error": Mapping})
    _want(data["error"], "$.error", {"code": int, "message": str, "where": TEXT_OR_NONE, "hint": TEXT_OR_NONE})
    if data["error"]["code"] != code:
        raise Misshapen(f"$.error.code is {data['error']['code']}, the exit code {code}")


BY_VERB = {
    "inspect": inspection,
    "doctor": examination,
    "optimize": study,
    "compress": compression,
    "kernel": operators,
    "bench": comparison,
    "report": reporting,
    "pack": packing,
    "deploy": deployment,
    "env": environments,
    "target": targets,
}
