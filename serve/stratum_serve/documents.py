"""The parts of the OpenAPI document that the framework cannot see: bodies that are not JSON, and problems."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from stratum_serve.bodies import FORM, JSON
from stratum_serve.gate import TIMEOUT
from stratum_serve.imaging import MEDIA_TYPES
from stratum_serve.problems import KINDS, MEDIA_TYPE
from stratum_serve.schema import Measurement, ProblemDocument, S3Image, Segmentation, Stored

_SCHEMAS = "#/components/schemas/"
_COMPONENTS = (ProblemDocument, S3Image, Segmentation, Measurement, Stored)
COMMON = ("bad-request", "method-not-allowed", "bad-option", "overload", "internal", "stopping", "deadline")
KEYS = ("missing-key", "missing-scope")
IMAGES = (*COMMON, *KEYS, "unknown-model", "too-many-bytes", "not-an-image", "unavailable")

CURL = "application/x-www-form-urlencoded"  # as which `curl --data-binary` sends whatever it sends
BINARY = {"type": "string", "format": "binary"}


def ref(name: str) -> dict[str, str]:
    """A reference to a schema of the document."""
    return {"$ref": _SCHEMAS + name}


def problems(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that are problems, by status."""
    answers: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status = KINDS[kind].status
        answers[status] = {"description": KINDS[kind].title, "content": {MEDIA_TYPE: {"schema": ref("ProblemDocument")}}}
        if status in (429, 503):
            answers[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return answers


def image_body() -> dict[str, Any]:
    """The body of a route that takes an image, and its deadline."""
    form = {"type": "object", "required": ["image"], "properties": {"image": BINARY}}
    content: dict[str, Any] = {media_type: {"schema": BINARY} for media_type in MEDIA_TYPES}
    content |= {media_type: {"schema": BINARY} for media_type in ("application/octet-stream", CURL)}
    content |= {FORM: {"schema": form}, JSON: {"schema": ref("S3Image")}}
    seconds = {"type": "number", "exclusiveMinimum": 0}
    header = {"name": TIMEOUT, "in": "header", "required": False, "description": "Seconds until a 504.", "schema": seconds}
    return {"requestBody": {"required": True, "content": content}, "parameters": [header]}


def segmented() -> dict[int | str, dict[str, Any]]:
    """The answers of a route that segments."""
    either = {"anyOf": [ref("Segmentation"), ref("Stored")]}
    content: dict[str, Any] = {JSON: {"schema": either}}
    content |= {media_type: {"schema": BINARY} for media_type in ("image/png", "image/jpeg", "application/x-npz")}
    return {200: {"description": "What was found, in the format that was asked for", "content": content}, **problems(*IMAGES)}


def measured() -> dict[int | str, dict[str, Any]]:
    """The answers of a route that measures."""
    either = {"anyOf": [ref("Measurement"), ref("Stored")]}
    return {200: {"description": "What was measured", "content": {JSON: {"schema": either}}}, **problems(*IMAGES)}


def document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What makes the OpenAPI document of an application, once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            for model in _COMPONENTS:
                schema = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
                schemas |= {name: part for name, part in schema.pop("$defs", {}).items() if name not in schemas}
                schemas.setdefault(model.__name__, schema)
            for name in ("HTTPValidationError", "ValidationError"):  # answered as problems
                schemas.pop(name, None)
            app.openapi_schema = made
        return app.openapi_schema

    return openapi
