"""Bundles to deploy, made without a runtime, and the platforms' own schemas to check what comes out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import yaml

from portolan.core.measurement import Measurement
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.serving import Profile
from portolan.core.signature import Signature, TensorSpec
from portolan.deployment import Choices, deploy
from support.bundles import make_bundle

SCHEMA = json.loads((Path(__file__).parent / "kserve" / "schema.json").read_text(encoding="utf-8"))
SERVING = {"max_batch": 4, "replicas": [1, 3], "deadline": 0.05}
MEASURED = {
    "latency_p95": Measurement.of("latency_p95", 6.9, 6.8, 7.0, 312),
    "memory": Measurement.of("memory", 300 * 2**20, 290 * 2**20, 310 * 2**20, 5),
    "cold_start": Measurement.of("cold_start", 3400.0, 3300.0, 3600.0, 5),
}
PROFILE = Profile({n: Measurement(0.002 + 0.001 * n, "s", None, None, 200) for n in (1, 2, 4, 8)})


def onnx_bundle(
    tmp: Path, *, backend: str = "onnxruntime", options: Any = None, serving: Any = None, **changes: Any
) -> Path:
    """A bundle whose compiled folder looks as a backend for ONNX leaves it; nothing ever runs it."""
    built = tmp / "compiled"
    built.mkdir(parents=True, exist_ok=True)
    (built / "model.onnx").write_bytes(b"an ONNX graph")
    (built / "signature.json").write_text("{}")
    recipe = Recipe((), backend, {"threads": 1} if options is None else options, serving=serving or {})
    parts: dict[str, Any] = {
        "name": "digits",
        "recipe": recipe,
        "claims": {},
        "profile": None,
        "compiled": built,
        "backend_versions": {backend: "1.31.1"},
        "environment": {"versions": {"python": "3.11.7", "numpy": "2.4.6"}},
    }
    return make_bundle(tmp, **{**parts, **changes})


def measured_bundle(tmp: Path, **changes: Any) -> Path:
    """A bundle with everything that a study under load leaves in it."""
    return onnx_bundle(tmp, **{"serving": SERVING, "claims": MEASURED, "profile": PROFILE, **changes})


def emit(bundle: Path, platform: str, out: Path, **choices: Any) -> Path:
    """Deploys to one platform; its folder."""
    deploy(bundle, [platform], Choices(**choices), out=out, force=False, dry_run=False)
    return out / platform


def one_input(dtype: str, shape: tuple[Any, ...] = ("N", 4), name: str = "x") -> dict[str, Any]:
    """The parts of a bundle with another input."""
    size = tuple(2 if isinstance(d, str) else d for d in shape)
    array = np.zeros(size, dtype if dtype != "string" else "<U3")
    signature = Signature((TensorSpec(name, dtype, shape),), (TensorSpec("y", "float32", ("N", 3)),))
    outputs = {"y": np.zeros((size[0], 3), np.float32)}
    model = Model("product", Path("model.onnx"), "0" * 64, signature)
    return {"model": model, "golden_inputs": {name: array}, "golden_outputs": outputs}


# --- the platforms' own schemas


def check_triton(text: str) -> Any:
    """Parses `config.pbtxt` with Triton's own messages.

    Raises:
        ParseError: a field that does not exist, or a value of another type.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def check_kserve(text: str) -> dict[str, Any]:
    """Checks one document against the SDK's types, made strict, and by the rules of KServe's admission webhook.

    Raises:
        ValidationError: a field that does not exist, is missing, or has another type; or values at odds.
    """
    document = yaml.safe_load(text)
    where = SCHEMA["kinds"].get(document.get("kind"))
    if where is None:
        raise jsonschema.ValidationError(f"no kind `{document.get('kind')}`")
    jsonschema.validate(document, {**where, "$defs": SCHEMA["$defs"]})
    if document["kind"] == "InferenceService":
        _admit(document)
    return dict(document)


def _admit(service: dict[str, Any]) -> None:
    """What KServe asks of a service besides its schema: `inference_service_validation.go` and `component.go` of its
    `pkg/apis/serving/v1beta1`, which a cluster runs as a webhook.
    """
    predictor, name = service["spec"]["predictor"], service["metadata"]["name"]
    knative = service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    few, most = predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0)
    metric = predictor.get("scaleMetric", "concurrency" if knative else "cpu")
    target = predictor.get("scaleTarget", 1)
    rules = {
        "its name": re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name),
        "its replicas": few >= 0 and most >= 0 and (few <= most or most == 0),
        "what it scales on": metric in (("concurrency", "rps") if knative else ("cpu", "memory")),
        "how far it scales": target >= 1 and (metric != "cpu" or target <= 100),
        "one model": len({"model", "containers"} & predictor.keys()) == 1,
    }
    broken = [rule for rule, held in rules.items() if not held]
    if broken:
        raise jsonschema.ValidationError(f"KServe would not admit {name}: {broken}")


def hadolint() -> str | None:
    """The linter of Dockerfiles, where it is installed."""
    return shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def check_dockerfile(path: Path) -> list[str]:
    """What the linter says; empty when it is content."""
    linter = hadolint()
    if linter is None:
        raise RuntimeError("hadolint is not installed")
    done = subprocess.run([linter, "--no-color", str(path)], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    return said or ([f"exit {done.returncode}"] if done.returncode else [])
