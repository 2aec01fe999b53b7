"""What the server says of its models, as the protocol and Triton's extensions shape it. Plain data for every door."""

from __future__ import annotations

from typing import Any

from portolan.core.signature import TensorSpec
from portolan.serving.datatypes import WORD
from portolan.serving.version import Version

EXTENSIONS = [
    "binary_tensor_data", "model_configuration", "model_repository", "model_repository(unload_dependents)",
    "schedule_policy", "statistics",
]  # fmt: skip
_TYPES = {"BYTES": "TYPE_STRING"}


def metadata(version: Version, versions: list[str]) -> dict[str, Any]:
    """The protocol's model metadata."""
    signature = version.signature
    return {
        "name": version.source.name,
        "versions": versions,
        "platform": version.source.platform,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(extent, str) else extent for extent in spec.shape]
    return {"name": spec.name, "datatype": WORD[spec.dtype], "shape": shape}


def config(version: Version) -> dict[str, Any]:
    """As much of Triton's model configuration as is true here."""
    source, limits = version.source, version.source.limits
    batches = version.checker is not None and version.checker.batches
    found: dict[str, Any] = {
        "name": source.name,
        "platform": source.platform,
        "backend": source.platform,
        "max_batch_size": limits.max_batch if batches else 0,
        "input": [_config_tensor(spec, batches) for spec in version.signature.inputs],
        "output": [_config_tensor(spec, batches) for spec in version.signature.outputs],
        "instance_group": [{"name": source.name, "kind": "KIND_CPU", "count": limits.replicas[1]}],
        "parameters": {
            "sha256": {"string_value": source.sha256},
            "replicas": {"string_value": f"{limits.replicas[0]}..{limits.replicas[1]}"},
        },
    }
    if batches:
        policy = {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": int(limits.deadline * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": limits.queue,
        }
        found["dynamic_batching"] = {"max_queue_delay_microseconds": 0, "default_queue_policy": policy}
    return found


def _config_tensor(spec: TensorSpec, batches: bool) -> dict[str, Any]:
    shape = [-1 if isinstance(extent, str) else extent for extent in spec.shape]
    word = WORD[spec.dtype]
    return {"name": spec.name, "data_type": _TYPES.get(word, f"TYPE_{word}"), "dims": shape[1:] if batches else shape}


def statistics(version: Version) -> dict[str, Any]:
    """One entry of Triton's statistics, with the replicas and what they cost beside it, and how a shadow agreed."""
    counters = version.counters
    failed = sum(counters.request_failure.values())
    good = counters.request_success
    resident, seconds = version.pool.cost()
    return {
        "name": version.source.name,
        "version": version.number,
        "last_inference": int(counters.last * 1e3),
        "inference_count": counters.count,
        "execution_count": counters.exec_count,
        "inference_stats": {
            "success": _duration(good, counters.request_duration),
            "fail": _duration(failed, counters.failure_duration),
            "queue": _duration(good, counters.queue_duration),
            "compute_input": _duration(good, counters.compute_input_duration),
            "compute_infer": _duration(good, counters.compute_infer_duration),
            "compute_output": _duration(good, counters.compute_output_duration),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(times, 0.0),
                "compute_infer": _duration(times, total),
                "compute_output": _duration(times, 0.0),
            }
            for rows, (times, total) in sorted(counters.batches.items())
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": resident}],
        "replicas": {
            "running": version.pool.running,
            "started": len(version.pool.instances),
            "resident_bytes": resident,
            "cpu_seconds": round(seconds, 3),
            "lost": counters.replicas_lost,
            "retried": counters.retried,
        },
        "shadow": {"compared": counters.compared, "agreed": counters.agreed},
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * 1e9)}
