"""The application: all endpoints, who may use them, and what is said where there is no answer."""

import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from equipoise import __version__
from equipoise.generation.client import Client, read_key
from equipoise.moderation.chat import GatewayError
from equipoise.moderation.server import azure, chat, litellm, native, openai, ops, stream
from equipoise.moderation.server.answers import service_of
from equipoise.moderation.server.errors import RequestError, failed, left, not_served, refuse
from equipoise.moderation.server.logs import event
from equipoise.moderation.server.service import Service

JUDGING = (native, stream, openai, azure, litellm, chat)
"""The modules whose endpoints judge texts; all of them need a key, where there are keys."""

_QUEUE_SECONDS = 1.0
"""Wait for a free connection to the server behind a gateway; then a client is told to come again."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_app(service: Service) -> FastAPI:
    """Return the application for a service, which may be started before or after.

    When the application stops, the service is closed: what was accepted is finished.
    """
    app = FastAPI(
        title="equipoise",
        version=__version__,
        summary="Judges texts by category and severity.",
        docs_url=None,  # their pages load from another host
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it would export texts of errors
        lifespan=_lifespan,
    )
    app.state.service = service
    app.include_router(ops.open_router)
    for module in (*JUDGING, ops):
        app.include_router(module.router, dependencies=[Depends(_with_key)])
    app.add_exception_handler(GatewayError, refuse)
    app.add_exception_handler(HTTPException, not_served)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, failed)
    app.add_middleware(_Observed, service=service)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    gateway = service.settings.gateway
    if gateway is None:
        yield
    else:
        key = read_key(gateway.upstream)
        async with Client(gateway.upstream, key, queue_seconds=_QUEUE_SECONDS) as client:
            app.state.upstream = client
            yield
    app.state.is_drained = await service.close()


async def _with_key(request: Request) -> None:
    if not service_of(request).keys.admit(request.headers):
        raise RequestError(401, "no key, or a wrong one; expected Authorization: Bearer KEY")


class _Observed:
    """Gives every request an id, counts it and logs it: what was asked of the server, never the texts."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "facts": {}}
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - started
            path = getattr(scope.get("route"), "path", "unmatched")
            self._service.metrics.answered(path, status, seconds)
            facts = {"path": path, "status": status, "ms": round(1000 * seconds, 1), **state["facts"]}
            event("request", {"request_id": request_id, "method": scope["method"], **facts})
