"""What operators ask: is it alive, is it ready, what does it count, load the new guard; and the page."""

from importlib import resources

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from equipoise.moderation.server.answers import service_of
from equipoise.moderation.server.errors import RequestError

open_router = APIRouter()
"""Needs no key."""

router = APIRouter()

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads nothing and talks to this server only."""


@open_router.get("/health")
async def health() -> JSONResponse:
    """Say that the process is alive."""
    return JSONResponse({"status": "alive"})


@open_router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Say that texts are judged now; 503 where they are not."""
    return JSONResponse({"status": "ready", "version": service_of(request).check_ready().version})


@open_router.get("/", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    """Return the page on which a person can try the guard."""
    text = (resources.files(__package__) / "page.html").read_text("utf-8")
    return HTMLResponse(text, headers={"content-security-policy": _POLICY, "referrer-policy": "no-referrer"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the counters in Prometheus' format."""
    service = service_of(request)
    depth = service.engine.batcher.depth if service.engine else 0
    return Response(service.metrics.text(depth), media_type=CONTENT_TYPE_LATEST)


@router.post("/v1/reload")
async def reload(request: Request) -> JSONResponse:
    """Load the guard and the policies again from where they lie; only for holders of a key."""
    service = service_of(request)
    if not service.keys:
        raise RequestError(403, "reload: needs a key, and this server has none; send SIGHUP instead")
    return JSONResponse({"version": await service.reload()})
