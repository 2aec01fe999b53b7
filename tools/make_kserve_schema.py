"""Writes tests/support/kserve/schema.json from KServe's SDK: `python tools/make_kserve_schema.py WHEEL WHEEL`.

The wheels are those of `kserve` and `kubernetes` (`pip download --no-deps kserve kubernetes`). Their model classes are
generated from KServe's and Kubernetes' OpenAPI documents, and hold each field's name, type and whether it is required.
They are read as text; nothing of them is imported. Objects are made strict: a field that is not there is refused.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "tests" / "support" / "kserve" / "schema.json"
KINDS = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}
PLAIN = {
    "str": "string", "StrictStr": "string", "int": "integer", "StrictInt": "integer", "bool": "boolean",
    "StrictBool": "boolean", "float": "number",
}  # fmt: skip
#: What the CRD says and the SDK's types do not (kserve/kserve, pkg/apis/serving/v1beta1/component.go).
ENUMS = {("V1beta1PredictorSpec", "scaleMetric"): ["cpu", "memory", "concurrency", "rps"]}


def classes(wheel: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema of every model class in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if re.search(r"/models/\w+\.py$", name):
                for node in ast.walk(ast.parse(archive.read(name))):
                    if isinstance(node, ast.ClassDef) and (tables := _tables(node)):
                        yield node.name, _schema(node, *tables)


def _tables(node: ast.ClassDef) -> tuple[dict[str, str], dict[str, str]] | None:
    found: dict[str, dict[str, str]] = {}
    for item in node.body:
        target = (
            item.target
            if isinstance(item, ast.AnnAssign)
            else item.targets[0]
            if isinstance(item, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map"):
            found[target.id] = ast.literal_eval(item.value)  # type: ignore[union-attr, arg-type]
    return (found["openapi_types"], found["attribute_map"]) if len(found) == 2 else None


def _schema(node: ast.ClassDef, types: dict[str, str], names: dict[str, str]) -> dict[str, Any]:
    source = ast.unparse(node)
    required = {names[key] for key in types if f"Invalid value for `{key}`, must not be `None`" in source}
    for item in node.body:  # the newer generator: a field that is not Optional
        target = item.target if isinstance(item, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id in types and not _optional(item):
            required.add(names[target.id])
    properties = {names[key]: _type(kind) for key, kind in types.items()}
    for (owner, key), values in ENUMS.items():
        if owner == node.name:
            properties[key] = {"enum": values}
    made: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**made, "required": sorted(required)} if required else made


def _optional(item: ast.stmt) -> bool:
    return isinstance(item, ast.AnnAssign) and ast.unparse(item.annotation).startswith("Optional")


def _type(text: str) -> dict[str, Any]:
    if text in PLAIN:
        return {"type": PLAIN[text]}
    if found := re.fullmatch(r"[Ll]ist\[(.+)\]", text):
        return {"type": "array", "items": _type(found[1])}
    if found := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", text):
        return {"type": "object", "additionalProperties": _type(found[1])}
    return {"$ref": f"#/$defs/{text}"}


def reached(every: dict[str, dict[str, Any]], start: list[str]) -> dict[str, Any]:
    """The schemas that `start` leads to; what no class describes is anything."""
    found: dict[str, Any] = {}
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = every.get(name, {})
            waiting += re.findall(r"#/\$defs/([^\"]+)", json.dumps(found[name]))
    return dict(sorted(found.items()))


def main() -> None:
    """Reads the wheels and writes the schema."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs=2, type=Path, help="of kserve and of kubernetes")
    wheels = parser.parse_args().wheels
    every = {name: schema for wheel in wheels for name, schema in classes(wheel)}
    schema = {
        "$comment": "From "
        + " and ".join("-".join(w.name.split("-")[:2]) for w in wheels)
        + "; Apache-2.0, see NOTICE.",
        "$defs": reached(every, list(KINDS.values())),
        "kinds": {kind: {"$ref": f"#/$defs/{name}"} for kind, name in KINDS.items()},
    }
    OUT.write_text(json.dumps(schema, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
