"""The OpenAPI description of the HTTP endpoints, written by hand beside them."""

from __future__ import annotations

from typing import Any

from smash_export import __version__

_NAME = {"type": "string", "minLength": 1, "maxLength": 100}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_WORDS = {
    "400": "The request does not follow the protocol or does not fit the model.",
    "401": "The API key is missing or wrong.",
    "403": "Not allowed here.",
    "404": "No such model or version.",
    "405": "The method does not exist here.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "503": "Busy or not ready; try again.",
}
_TENSOR = {
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
_INFER_REQUEST = {
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
_INFER_ANSWER = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_PREDICTION = {
    "type": "object",
    "required": ["label", "index", "probability"],
    "properties": {
        "label": {"type": "string"},
        "index": {"type": "integer", "minimum": 0},
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
_PREDICT_ANSWER = {
    "type": "object",
    "required": ["model", "version", "target", "precision", "predictions", "milliseconds", "request_id"],
    "properties": {
        "predictions": {"type": "array", "items": _PREDICTION},
        "present": {  # only of networks whose classes do not exclude each other
            "type": "array",
            "items": _PREDICTION,
        },
        "milliseconds": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
_METADATA = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {"versions": {"type": "array", "items": {"type": "string"}}},
}


def describe_api() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    model = {"name": "model", "in": "path", "required": True, "schema": _NAME}
    version = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
    }
    infer = {
        "summary": "Run the model on a tensor",
        "requestBody": {"required": True, "content": _json(_INFER_REQUEST)},
        "responses": _answers(_INFER_ANSWER, "400", "404", "408", "413", "415", "503"),
    }
    metadata = {"summary": "What the model takes and gives", "responses": _answers(_METADATA, "404")}
    ready = {"summary": "Whether the model answers", "responses": _answers({"type": "object"}, "404")}
    administration = _answers({"type": "object"}, "400", "403", "404", "408", "413", "415", "503")
    paths: dict[str, Any] = {
        "/v2": _get("The server", {"type": "object", "required": ["name", "version", "extensions"]}),
        "/v2/health/live": _get("Whether the process runs", {"type": "object", "required": ["live"]}),
        "/v2/health/ready": _get(
            "Whether it takes requests", {"type": "object", "required": ["ready"]}, "503"
        ),
        "/v2/models/{model}": {"parameters": [model], "get": metadata},
        "/v2/models/{model}/versions/{version}": {"parameters": [model, version], "get": metadata},
        "/v2/models/{model}/ready": {"parameters": [model], "get": ready},
        "/v2/models/{model}/versions/{version}/ready": {"parameters": [model, version], "get": ready},
        "/v2/models/{model}/infer": {"parameters": [model], "post": infer},
        "/v2/models/{model}/versions/{version}/infer": {"parameters": [model, version], "post": infer},
        "/v2/repository/index": {
            "post": {
                "summary": "Every model and its state",
                "responses": _answers(
                    {"type": "array", "items": {"type": "object"}}, "408", "413", "415", "503"
                ),
            }
        },
        "/v2/repository/models/{model}/load": {
            "parameters": [model],
            "post": {
                "summary": "Open the model anew from its path and exchange it",
                "requestBody": {"required": False, "content": _json({"type": "object"})},
                "responses": administration,
            },
        },
        "/v2/repository/models/{model}/unload": {
            "parameters": [model],
            "post": {
                "summary": "Stop serving the model",
                "requestBody": {"required": False, "content": _json({"type": "object"})},
                "responses": administration,
            },
        },
        "/v1/predict": {
            "post": {
                "summary": "Classify an image file",
                "parameters": [
                    {"name": "model", "in": "query", "schema": _NAME},
                    {"name": "version", "in": "query", "schema": {"type": "string"}},
                    {
                        "name": "top_k",
                        "in": "query",
                        "schema": {"type": "integer", "minimum": 1, "maximum": 1000},
                    },
                ],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "required": ["file"],
                                "properties": {"file": {"type": "string", "format": "binary"}},
                            }
                        },
                    },
                },
                "responses": _answers(_PREDICT_ANSWER, "400", "404", "408", "413", "415", "503"),
            }
        },
        "/v1/models": _get("Every open model", {"type": "object", "required": ["models"]}),
        "/v1/models/{model}/card": {
            "parameters": [model],
            "get": {
                "summary": "The model card",
                "responses": {
                    **_answers({}, "404"),
                    "200": {"description": "Done.", "content": {"text/plain": {}}},
                },
            },
        },
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics",
                "responses": {
                    **_answers({}),
                    "200": {"description": "Done.", "content": {"text/plain": {}}},
                },
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "smash-export", "version": __version__},
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answers(schema: dict[str, Any], *errors: str) -> dict[str, Any]:
    """200 with the schema, and the errors; 401, 403 and 405 can come from anywhere."""
    answers: dict[str, Any] = {"200": {"description": "Done.", "content": _json(schema)}}
    for code in sorted({*errors, "401", "403", "405"}):
        answers[code] = {"description": _WORDS[code], "content": _json(_ERROR)}
    return answers


def _get(summary: str, schema: dict[str, Any], *errors: str) -> dict[str, Any]:
    answers = _answers(schema, *errors)
    if "503" in errors:
        answers["503"] = {"description": _WORDS["503"], "content": _json(schema)}
    return {"get": {"summary": summary, "responses": answers}}
