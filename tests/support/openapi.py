"""The Open Inference Protocol v2 over HTTP as an OpenAPI document, as strictly as this server keeps it.

The protocol's own document cannot be tested with: its paths have a literal `$`, it lacks the paths without a version,
the errors that a path can bring, and any model's name would be one that is not served. So this one is written anew,
with the model's name and version pinned.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def document(model: str, version: str = "1") -> Schema:
    """The document of a server that has one model."""
    paths: Schema = {
        "/v2": {"get": get("server")},
        "/v2/": {"get": get("server")},
        "/v2/health/live": {"get": get(None)},
        "/v2/health/ready": {"get": get(None)},
        "/v2/models/stats": {"get": get("statistics")},
        "/v2/repository/index": {"post": post("repository", "index", required=False)},
    }
    for prefix, pinned in (("", ()), ("/versions/{version}", (("version", version),))):
        place = "/v2/models/{model}" + prefix
        named = [pin("model", model), *(pin(*item) for item in pinned)]
        paths |= {
            place: {"parameters": named, "get": get("model", 404)},
            f"{place}/ready": {"parameters": named, "get": get(None, 400, 404)},
            f"{place}/config": {"parameters": named, "get": get("config", 404)},
            f"{place}/stats": {"parameters": named, "get": get("statistics", 404)},
            f"{place}/infer": {"parameters": named, "post": post("request", "answer", 404, 413, 503)},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Open Inference Protocol", "version": "2"},
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def pin(name: str, value: str) -> Schema:
    """A parameter of the path that has one value."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [value]}}


def get(schema: str | None, *statuses: int) -> Schema:
    return {"responses": responses(schema, *statuses)}


def post(request: str, answer: str, *statuses: int, required: bool = True) -> Schema:
    body = {"required": required, "content": {"application/json": {"schema": ref(request)}}}
    return {"requestBody": body, "responses": responses(answer, 400, *statuses)}


def responses(schema: str | None, *statuses: int) -> Schema:
    good: Schema = {"description": "as asked"}
    if schema is not None:
        good["content"] = {"application/json": {"schema": ref(schema)}}
    wrong = {"description": "refused", "content": {"application/json": {"schema": ref("error")}}}
    return {"200": good, **{str(status): wrong for status in (*statuses, 405)}}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None, *, closed: bool = False) -> Schema:
    made: Schema = {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}
    return made | ({"additionalProperties": False} if closed else {})


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES")
TENSOR = {"name": TEXT, "datatype": {"type": "string", "enum": [*DATATYPES, "FP16", "BF16"]}, "shape": listed(WHOLE)}
SCHEMAS: Schema = {
    "error": record({"error": {"type": "string", "minLength": 1}}, closed=True),
    "server": record({"name": TEXT, "version": TEXT, "extensions": listed(TEXT)}, closed=True),
    "tensor": record(TENSOR, closed=True),
    "model": record(
        {"name": TEXT, "versions": listed(TEXT), "platform": TEXT, "inputs": listed(ref("tensor"))}
        | {"outputs": listed(ref("tensor"))},
        closed=True,
    ),
    "config": record({"name": TEXT, "max_batch_size": WHOLE, "input": listed({"type": "object"})}),
    "statistics": record({"model_stats": listed(record({"name": TEXT, "version": TEXT, "inference_count": WHOLE}))}),
    "repository": record({}, {"ready": {"type": "boolean"}}),
    "index": listed(record({"name": TEXT, "version": TEXT, "state": TEXT, "reason": TEXT}, closed=True)),
    "element": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "boolean"}]},
    "elements": listed({"anyOf": [ref("element"), listed({"anyOf": [ref("element"), listed(ref("element"))]})]}),
    "request": record(
        {"inputs": listed(record({**TENSOR, "data": ref("elements")}, {"parameters": {"type": "object"}}))},
        {"id": TEXT, "parameters": {"type": "object"}, "outputs": listed(record({"name": TEXT}))},
    ),
    "answer": record(
        {"model_name": TEXT, "model_version": TEXT, "outputs": listed(record({**TENSOR, "data": ref("elements")}))},
        {"id": TEXT},
    ),
}
