"""KServe: a ServingRuntime that serves bundles with our own image, and an InferenceService that uses it.

Fields as in the CRDs `serving.kserve.io` v1alpha1 and v1beta1 (kserve/kserve, `pkg/apis/serving`).
"""

from __future__ import annotations

import math
from typing import Any

from portolan.bundle.names import show
from portolan.deployment import _sizing as sizing
from portolan.deployment import docker
from portolan.deployment._facts import Facts
from portolan.deployment._platform import Emitted, Platform
from portolan.deployment._serve import arguments
from portolan.deployment._yaml import Said, dump, sentence
from portolan.errors import UsageError

_PORT = 8080
#: Where KServe's storage initializer puts what it fetched.
_FETCHED = "/mnt/models"
#: Percent of the asked-for processors at which another replica is added; Kubernetes' usual target.
_CPU_TARGET = 80
#: Seconds until every node has taken a pod that is not ready out of its balancing.
_DRAIN = 5
_METRICS = {"cpu": "cpu", "concurrency": "concurrency", "qps": "rps"}


class KServe(Platform):
    """An InferenceService on our own image."""

    name = "kserve"
    about = "a KServe ServingRuntime and InferenceService"

    def emit(self, facts: Facts) -> Emitted:
        """Refuses what the chosen way of scaling cannot do."""
        few, _ = facts.replicas
        knative = facts.choices.scale_on in ("concurrency", "qps")
        if few == 0 and not knative:
            raise UsageError(
                "KServe scales to zero only with Knative, and `cpu` is scaled on without it",
                hint="`--scale-on concurrency`, or a lowest number of at least 1 (`--replicas 1..4`)",
            )
        if facts.choices.scale_on == "qps" and sizing.qps(facts).value is None:
            raise UsageError(
                "replicas cannot be scaled on queries per second: the capacity of one was not measured",
                hint="`--scale-on concurrency`, or measure it with a goal such as `max throughput`",
            )
        texts = {
            "servingruntime.yaml": dump(_runtime(facts, knative), _head(facts)),
            "inferenceservice.yaml": dump(_service(facts, knative), _head(facts)),
        }
        apply = "kubectl apply -f {folder}"
        return Emitted(texts, next=[apply], notes=_notes(facts))


def _head(facts: Facts) -> list[str]:
    return [f"`{show(facts.manifest.name)}`, bundle sha256 {facts.bundle.sha256}."]


def _notes(facts: Facts) -> list[str]:
    notes = [] if facts.choices.storage else [f"the image `{facts.image}` holds the bundle: `--to docker` writes it"]
    found = sizing.memory(facts)
    return [*notes, found.why] if found.value is None else notes


def _runtime(facts: Facts, knative: bool) -> dict[str, Any]:
    place = f"{docker.HOME}/{docker.BUNDLE}" if facts.choices.storage is None else _FETCHED
    # The platform scales by pods, so a pod has one replica.
    words = ["portolan", *arguments(facts, place, port=_PORT, grpc=None, replicas=(1, 1), drain=_DRAIN)]
    container = {
        "name": "kserve-container",
        "image": facts.image,
        "command": words[:1],
        "args": words[1:],
        "ports": [{"name": "http1", "containerPort": _PORT, "protocol": "TCP"}],
        "resources": _resources(facts),
        **_probes(facts, knative),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": docker.USER,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": facts.label},
        "spec": {
            "supportedModelFormats": [{"name": "portolan", "version": "1", "autoSelect": False}],
            "protocolVersions": ["v2"],
            "multiModel": False,
            "containers": [container],
        },
    }


def _resources(facts: Facts) -> Said:
    cpu, memory, limit = sizing.cpus(facts), sizing.memory(facts), sizing.memory_limit(facts)
    # Half a processor for the front: it must answer probes while the model has all of its own.
    asked: dict[str, Any] = {"cpu": str(cpu.value)}
    most: dict[str, Any] = {"cpu": f"{facts.threads * 1000 + 500}m"}
    if memory.value is not None and limit is not None:
        asked["memory"], most["memory"] = _mebibytes(memory.value), _mebibytes(limit)
    return Said({"requests": asked, "limits": most}, sentence(f"cpu: {cpu.why}", memory.why))


def _mebibytes(size: int) -> str:
    return f"{math.ceil(size / 2**20)}Mi"


def _probes(facts: Facts, knative: bool) -> dict[str, Any]:
    start = sizing.startup(facts)
    ready = {"httpGet": {"path": "/v2/health/ready", "port": _PORT}, "periodSeconds": 2, "timeoutSeconds": 2}
    live = {"httpGet": {"path": "/v2/health/live", "port": _PORT}, "periodSeconds": 10, "timeoutSeconds": 5}
    if knative:  # which has no startup probe of its own in every version
        return {
            "readinessProbe": ready,
            "livenessProbe": Said({**live, "initialDelaySeconds": start.value}, sentence(start.why)),
        }
    startup = {**ready, "failureThreshold": math.ceil((start.value or 0) / 2)}
    return {"startupProbe": Said(startup, sentence(start.why)), "readinessProbe": ready, "livenessProbe": live}


def _service(facts: Facts, knative: bool) -> dict[str, Any]:
    few, many = facts.replicas
    grace = sizing.grace(facts)
    model: dict[str, Any] = {
        "modelFormat": {"name": "portolan", "version": "1"},
        "protocolVersion": "v2",
        "runtime": facts.label,
    }
    if facts.choices.storage is not None:
        model["storageUri"] = facts.choices.storage
    predictor: dict[str, Any] = {
        "minReplicas": few,
        "maxReplicas": many,
        **(_scaling(facts) if few != many else {}),
        "terminationGracePeriodSeconds": Said(grace.value, sentence(grace.why)),
        "model": model,
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": facts.label,
            "annotations": {"serving.kserve.io/deploymentMode": "Knative" if knative else "Standard"},
        },
        "spec": {"predictor": predictor},
    }


def _scaling(facts: Facts) -> dict[str, Any]:
    on = facts.choices.scale_on or "cpu"
    if on == "cpu":
        why = "Percent of the cpu asked for; Kubernetes' usual target, not a measurement."
        target: int | None = _CPU_TARGET
    else:
        found = sizing.qps(facts) if on == "qps" else sizing.in_flight(facts)
        target, why = found.value, sentence(f"per replica; {found.why}")
    return {"scaleMetric": _METRICS[on], "scaleTarget": Said(target, why)}


kserve = KServe()
