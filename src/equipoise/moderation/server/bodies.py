"""Reads what a client sends: bounded in bytes and time, strict JSON, and nothing of it in an error."""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from equipoise.moderation.server.errors import RequestError
from equipoise.moderation.server.settings import Limits

M = TypeVar("M", bound=BaseModel)

_SWALLOWED = 8
"""Times the limit that is read and dropped of a request that is too large, so that the client hears why."""


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """Return the JSON object of a request; anything else raises RequestError."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limits.max_request_bytes:
                    chunks.append(chunk)
                elif size > _SWALLOWED * limits.max_request_bytes:
                    break
    except TimeoutError as exc:
        raise RequestError(408, f"the request did not come within {limits.body_seconds:g} s") from exc
    if size > limits.max_request_bytes:
        raise too_large(limits)
    return as_object(b"".join(chunks))


def as_object(raw: bytes) -> dict[str, Any]:
    """Return a JSON object; text that is no UTF-8, NaN, half a surrogate pair or deep nesting are errors."""
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as exc:
        raise RequestError(400, f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise RequestError(400, f"expected a JSON object, got {type(value).__name__}")
    return value


def parse(kind: type[M], body: Mapping[str, Any]) -> M:
    """Check a body against a model; the error names the field and shows nothing of its value."""
    try:
        return kind.model_validate(body)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise RequestError(400, f"{field}: {message}" if field else message, param=field or None) from exc


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI should say of a body that is read here, models inside models written out."""
    schema = kind.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema.pop("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


def too_large(limits: Limits) -> RequestError:
    """Return the error of a request with too many bytes."""
    return RequestError(413, f"the request is too large; expected at most {limits.max_request_bytes} bytes")


def _inlined(schema: Any, models: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(part, models) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(models[schema["$ref"].rpartition("/")[2]], models)
    return {name: _inlined(part, models) for name, part in schema.items()}
