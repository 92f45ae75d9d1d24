"""The OpenAPI description of the HTTP endpoints, written by hand beside them."""

from __future__ import annotations

from typing import Any

from smash_base.json_values import JsonObject
from smash_export import __version__
from smash_export.server.models import EXAMPLES

_NAME: JsonObject = {"type": "string", "minLength": 1, "maxLength": 100}
_ERROR: JsonObject = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_WORDS = {
    "400": "The request does not follow the protocol or does not fit the model.",
    "401": "The API key is missing or wrong.",
    "403": "Not allowed here.",
    "404": "No such model or version.",
    "405": "The method does not exist here.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is compressed in an unknown way.",
    "431": "The headers are too long.",
    "500": "The model could not run.",
    "503": "Busy or not ready; try again.",
}
_TENSOR: JsonObject = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}, "maxItems": 16},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
_INFER_REQUEST: JsonObject = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": 200},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 4,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
            },
        },
    },
}
_INFER_ANSWER: JsonObject = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_PREDICTION: JsonObject = {
    "type": "object",
    "required": ["label", "index", "probability"],
    "properties": {
        "label": {"type": "string"},
        "index": {"type": "integer", "minimum": 0},
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
_PREDICT_ANSWER: JsonObject = {
    "type": "object",
    "required": ["model", "version", "target", "precision", "milliseconds", "request_id"],
    "properties": {
        "predictions": {"type": "array", "items": _PREDICTION},
        "results": {  # instead, of several files: in their order, each with predictions or an error
            "type": "array",
            "items": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string"},
                    "error": {"type": "string"},
                    "predictions": {"type": "array", "items": _PREDICTION},
                    "present": {"type": "array", "items": _PREDICTION},
                    "doubtful": {"type": "boolean"},
                },
            },
        },
        "present": {  # only of networks whose classes do not exclude each other
            "type": "array",
            "items": _PREDICTION,
        },
        "doubtful": {"type": "boolean"},  # perhaps of no class; where the bundle says from when on
        "milliseconds": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
_METADATA: JsonObject = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {"versions": {"type": "array", "items": {"type": "string"}}},
}


_MODEL: JsonObject = {"name": "model", "in": "path", "required": True, "schema": _NAME}
_VERSION: JsonObject = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
}
_NUMBER: JsonObject = {
    "name": "number",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 0, "maximum": EXAMPLES - 1},
}
_OPEN = ("/v2/health/live", "/v2/health/ready")
_STATISTICS: JsonObject = {
    "type": "object",
    "required": ["model_stats"],
    "properties": {"model_stats": {"type": "array", "items": {"type": "object"}}},
}
_CONFIGURATION: JsonObject = {
    "type": "object",
    "required": ["name", "platform", "backend", "max_batch_size", "input", "output"],
    "properties": {
        "name": {"type": "string"},
        "max_batch_size": {"type": "integer"},
        "input": {"type": "array", "items": {"type": "object"}},
        "output": {"type": "array", "items": {"type": "object"}},
    },
}
_BODY_ERRORS = ("408", "413", "415", "503")


_SCHEMAS: dict[str, JsonObject] = {
    "Error": _ERROR,
    "Tensor": _TENSOR,
    "InferRequest": _INFER_REQUEST,
    "InferResponse": _INFER_ANSWER,
    "Prediction": _PREDICTION,
    "PredictResponse": _PREDICT_ANSWER,
    "ModelMetadata": _METADATA,
    "ModelConfiguration": _CONFIGURATION,
    "ModelStatistics": _STATISTICS,
}
_SCHEMA_NAMES = {id(schema): name for name, schema in _SCHEMAS.items()}


def describe_api(root_path: str = "") -> JsonObject:
    """The whole document, OpenAPI 3.1; ``root_path`` is the prefix under which a proxy offers it."""
    paths = _finished({**_server_paths(), **_model_paths(), **_repository_paths(), **_page_paths()})
    return {
        "openapi": "3.1.0",
        "info": {"title": "smash-export", "version": __version__},
        "servers": [{"url": root_path or "/"}],
        "paths": _linked(paths),
        "components": {
            "schemas": {name: _linked(schema, inside=True) for name, schema in _SCHEMAS.items()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _linked(value: Any, *, inside: bool = False) -> Any:
    """The same with references in place of the schemas that have a name; ``inside`` is such a one itself."""
    if isinstance(value, dict):
        name = None if inside else _SCHEMA_NAMES.get(id(value))
        if name is not None:
            return {"$ref": f"#/components/schemas/{name}"}
        return {key: _linked(item) for key, item in value.items()}
    return [_linked(item) for item in value] if isinstance(value, list) else value


def _finished(paths: dict[str, Any]) -> JsonObject:
    """Every operation with a name of its own, whether it wants the key, and what may happen to any."""
    for path, operations in paths.items():
        for method in ("get", "post"):
            if method not in operations:
                continue
            operation = operations[method] = {**operations[method]}  # two paths share one
            operation["responses"] = dict(operation["responses"])
            words = [word.strip("{}") for word in path.split("/") if word]
            operation["operationId"] = "_".join([method, *words]).replace(".", "_")
            operation["security"] = [] if path in _OPEN else [{"key": []}, {"header": []}]
            for code in ("431", "500", "503"):
                answer = {"description": _WORDS[code], "content": _json(_ERROR)}
                operation["responses"].setdefault(code, answer)
    return paths


def _server_paths() -> JsonObject:
    return {
        "/v2": _get("The server", {"type": "object", "required": ["name", "version", "extensions"]}),
        "/v2/health/live": _get("Whether the process runs", {"type": "object", "required": ["live"]}),
        "/v2/health/ready": _get(
            "Whether it takes requests", {"type": "object", "required": ["ready"]}, "503"
        ),
        "/metrics": _text("Prometheus metrics"),
    }


def _model_paths() -> JsonObject:
    infer: JsonObject = {
        "summary": "Run the model on a tensor",
        "requestBody": {"required": True, "content": _json(_INFER_REQUEST)},
        "responses": _answers(_INFER_ANSWER, "400", "404", *_BODY_ERRORS),
    }
    metadata: JsonObject = {
        "summary": "What the model takes and gives",
        "responses": _answers(_METADATA, "404"),
    }
    ready: JsonObject = {
        "summary": "Whether the model answers",
        "responses": _answers({"type": "object"}, "404"),
    }
    configuration: JsonObject = {
        "summary": "The model as Triton's configuration describes it",
        "responses": _answers(_CONFIGURATION, "404"),
    }
    statistics: JsonObject = {
        "summary": "How often the model ran, and for how long",
        "responses": _answers(_STATISTICS, "404"),
    }
    paths: JsonObject = {"/v2/models/stats": _get("The same of every model", _STATISTICS)}
    for place, parameters in (("", [_MODEL]), ("/versions/{version}", [_MODEL, _VERSION])):
        model = f"/v2/models/{{model}}{place}"
        paths[model] = {"parameters": parameters, "get": metadata}
        paths[f"{model}/config"] = {"parameters": parameters, "get": configuration}
        paths[f"{model}/ready"] = {"parameters": parameters, "get": ready}
        paths[f"{model}/stats"] = {"parameters": parameters, "get": statistics}
        paths[f"{model}/infer"] = {"parameters": parameters, "post": infer}
    return paths


def _repository_paths() -> JsonObject:
    index: JsonObject = {
        "summary": "Every model and its state",
        "requestBody": {
            "required": False,
            "content": _json({"type": "object", "properties": {"ready": {"type": "boolean"}}}),
        },
        "responses": _answers({"type": "array", "items": {"type": "object"}}, "400", *_BODY_ERRORS),
    }
    paths: JsonObject = {"/v2/repository/index": {"post": index}}
    for name, summary in (
        ("load", "Open the model anew from its path and exchange it"),
        ("unload", "Stop serving the model"),
    ):
        paths[f"/v2/repository/models/{{model}}/{name}"] = {
            "parameters": [_MODEL],
            "post": {
                "summary": summary,
                "requestBody": {"required": False, "content": _json({"type": "object"})},
                "responses": _answers({"type": "object"}, "400", "403", "404", *_BODY_ERRORS),
            },
        }
    return paths


def _page_paths() -> JsonObject:
    file: JsonObject = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
    content: JsonObject = {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "application/zip": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": file},
    }
    predict: JsonObject = {
        "summary": "Classify an image file, or several",
        "parameters": [
            {"name": "model", "in": "query", "schema": _NAME},
            {"name": "version", "in": "query", "schema": {"type": "string"}},
            {"name": "top_k", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}},
        ],
        "requestBody": {"required": True, "content": content},
        "responses": _answers(_PREDICT_ANSWER, "400", "404", *_BODY_ERRORS),
    }
    return {
        "/v1/predict": {"post": predict},
        "/v1/models": _get(
            "Every open model, and the longest body that is read",
            {"type": "object", "required": ["models", "max_body_bytes"]},
        ),
        "/v1/models/{model}/versions/{version}/examples/{number}": {
            "parameters": [_MODEL, _VERSION, _NUMBER],
            "get": {
                "summary": "A sample of the bundle",
                "responses": {
                    **_answers({}, "404"),
                    "200": {"description": "Done.", "content": {"image/png": {}}},
                },
            },
        },
        "/v1/models/{model}/card": {"parameters": [_MODEL], **_text("The model card", "404")},
        "/v1/models/{model}/versions/{version}/card": {
            "parameters": [_MODEL, _VERSION],
            **_text("The model card of a version", "404"),
        },
    }


def _text(summary: str, *errors: str) -> JsonObject:
    plain: JsonObject = {"description": "Done.", "content": {"text/plain": {}}}
    return {"get": {"summary": summary, "responses": {**_answers({}, *errors), "200": plain}}}


def _json(schema: JsonObject) -> JsonObject:
    return {"application/json": {"schema": schema}}


def _answers(schema: JsonObject, *errors: str) -> JsonObject:
    """200 with the schema, and the errors; 401, 403 and 405 can come from anywhere."""
    answers: JsonObject = {"200": {"description": "Done.", "content": _json(schema)}}
    for code in sorted({*errors, "401", "403", "405"}):
        answers[code] = {"description": _WORDS[code], "content": _json(_ERROR)}
    return answers


def _get(summary: str, schema: JsonObject, *errors: str) -> JsonObject:
    answers = _answers(schema, *errors)
    if "503" in errors:
        answers["503"] = {"description": _WORDS["503"], "content": _json(schema)}
    return {"get": {"summary": summary, "responses": answers}}
