"""Describe the body of generate and of jobs for /openapi.json: it is parsed by hand, so no framework can tell."""

from typing import Any

from fastapi import FastAPI

from openklein.contract import DEFAULT_ASPECT_RATIO, DEFAULT_MODEL, MAX_REFERENCES, MAX_SEED, MODEL_IDS, RESOLUTIONS

FIELDS: dict[str, Any] = {
    "prompt": {"type": "string", "minLength": 1, "description": "Text description of the image to generate"},
    "model": {"type": "string", "enum": list(MODEL_IDS), "default": DEFAULT_MODEL, "description": "Model identifier"},
    "aspect_ratio": {
        "type": "string",
        "enum": list(RESOLUTIONS),
        "default": DEFAULT_ASPECT_RATIO,
        "description": "Output aspect ratio: "
        + ", ".join(f"{name} {width} x {height}" for name, (width, height) in RESOLUTIONS.items()),
    },
    "seed": {
        "type": "integer",
        "format": "int64",
        "minimum": 0,
        "maximum": MAX_SEED,
        "description": "The same request with the same seed gives the same bytes; random where not given",
    },
}
URI_LIST = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_REFERENCES, "default": []}
URI_TEXT = {"type": "string", "contentMediaType": "application/json"}
URIS = "http or https URLs, or base64 data URIs, of reference images; they count after images"
FILES = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "maxItems": MAX_REFERENCES,
    "default": [],
    "description": "PNG, JPEG or WebP files: several parts named images",
}


def _content(**references: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {**FIELDS, **references},
    }
    return {"schema": schema}


def _error(description: str, **headers: str) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {name: {"schema": {"type": "string"}, "description": text} for name, text in headers.items()},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
    }


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


GENERATE: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            "description": "A name for this request: sent again with it, the request gets the same answer again",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _content(
                images=FILES, image_uris={**URI_TEXT, "description": f"A JSON array of {URIS}"}
            ),
            "application/json": _content(image_uris={"oneOf": [URI_LIST, URI_TEXT], "description": URIS}),
        },
    },
    "responses": {
        "200": {
            "description": "The bytes of a PNG: RGB, 8 bit",
            "headers": {
                "x-request-id": _header("Names this request in the server's log"),
                "x-klein-model": _header("The model that made the picture"),
                "x-klein-seed": _header("The seed that was used"),
                "x-klein-workflow": _header("text-to-image, image-to-image or multi-reference"),
                "x-klein-price": _header("What this image cost, in dollars"),
                "Server-Timing": _header("Milliseconds by stage"),
                "Idempotent-Replayed": _header("true where this answer was given to an earlier request"),
            },
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        "401": _error("Authentication failed due to a missing or invalid API key"),
        "409": _error("A request with this Idempotency-Key is still running"),
        "410": _error("The answer to this Idempotency-Key is no longer kept"),
        "413": _error("The body is larger than the server accepts"),
        "422": _error("Request parameters failed validation"),
        "429": _error("A limit of this key is reached", **{"Retry-After": "Seconds until it is worth to try again"}),
        "500": _error("Unexpected server error"),
        "503": _error("The queue is full, or no model is ready"),
        "504": _error("Generation exceeded the allowed time limit"),
    },
}


TAKEN = {
    "description": "The job is queued",
    "headers": {
        "Location": _header("The path of the job"),
        "Idempotent-Replayed": GENERATE["responses"]["200"]["headers"]["Idempotent-Replayed"],
    },
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobBody"}}},
}
CREATE_JOB: dict[str, Any] = {
    **GENERATE,
    "responses": {
        "202": TAKEN,
        "403": _error("The key may not generate"),
        **{status: answer for status, answer in GENERATE["responses"].items() if status != "200"},
    },
}


def complete(app: FastAPI) -> None:
    """Put into the app's schema what the framework cannot know: the body of generate, and the keys."""
    schema = app.openapi()
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    # Added afterwards, because passing through the framework would turn the largest seed into a rounded float.
    schema["paths"]["/v1/generate"]["post"] |= GENERATE
    schema["paths"]["/v1/jobs"]["post"] |= CREATE_JOB
    for path, methods in schema["paths"].items():
        for operation in methods.values() if path.startswith("/v1/") else ():
            operation["security"] = [{"key": []}]
