"""A request that gets no verdict, in the form that the client's protocol has for it."""

import http
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from equipoise.moderation.chat import GatewayError

AZURE = "/contentsafety/"
"""Paths below it speak Azure's protocol, errors too."""

_OPENAI = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded"}
_AZURE = {400: "InvalidRequestBody", 401: "401", 429: "TooManyRequests", 500: "InternalServerError"}


class RequestError(GatewayError):
    """A request that cannot be answered; the message shows nothing of its texts."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, after: float | None = None
    ) -> None:
        """Hold the HTTP status, what is wrong, the field it is about and the seconds asked to wait."""
        super().__init__(status, message, after=after)
        self.param = param

    def envelope(self) -> dict[str, Any]:
        """Return the error as the OpenAI protocol has it."""
        return _openai(self.status, str(self), self.param)


def error_response(request: Request, error: GatewayError) -> Response:
    """Return an error in the envelope of the path's protocol."""
    param = getattr(error, "param", None)
    headers = {"x-request-id": request.state.request_id}
    if error.after is not None:
        headers["retry-after"] = str(max(1, round(error.after)))
    if request.url.path.startswith(AZURE):
        code = _AZURE.get(error.status) or _phrase(error.status)
        said = {"code": code, "message": str(error), **({"target": param} if param else {})}
        headers["x-ms-error-code"] = code
        return JSONResponse({"error": said}, error.status, headers)
    return JSONResponse(_openai(error.status, str(error), param), error.status, headers)


async def refuse(request: Request, error: Exception) -> Response:
    """Answer with a GatewayError; the handler of that class."""
    assert isinstance(error, GatewayError)
    return error_response(request, error)


async def not_served(request: Request, error: Exception) -> Response:
    """Answer a path or a method that is not served."""
    assert isinstance(error, HTTPException)
    response = error_response(request, RequestError(error.status_code, _said(error.status_code)))
    response.headers.update(error.headers or {})
    return response


async def failed(request: Request, error: Exception) -> Response:
    """Answer where the server has a bug; what it is stands in the log, and no verdict is given."""
    response = error_response(request, RequestError(500, "the server failed; see its log"))
    response.headers["connection"] = "close"  # uvicorn does so anyway, after an exception
    return response


async def left(request: Request, error: Exception) -> Response:
    """Answer a client that has gone, which is to say nobody."""
    return Response(status_code=400)


def _openai(status: int, message: str, param: str | None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = _OPENAI.get(status) or _phrase(status, "_").lower()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _said(status: int) -> str:
    return {404: "no such path", 405: "this path takes another method"}.get(status, _phrase(status, " "))


def _phrase(status: int, between: str = "") -> str:
    return http.HTTPStatus(status).phrase.replace("-", " ").replace(" ", between)
