"""Runs the server until it is told to stop: SIGTERM or Ctrl-C finish what was accepted, SIGHUP loads anew."""

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from typing import NoReturn

import uvicorn

from equipoise.errors import ConfigError
from equipoise.moderation.server.app import create_app
from equipoise.moderation.server.errors import RequestError
from equipoise.moderation.server.logs import event, on_loop_error
from equipoise.moderation.server.service import Service

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; an address that cannot be had raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        raise ConfigError(f"--host {host} --port {port}: {exc.strerror or exc}; expected a free one") from exc
    # connections inherit it; without it the body of each answer waits 40 ms for the head to be acknowledged
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url_of(listening: socket.socket) -> str:
    """Return the address of a socket as a browser takes it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run(service: Service, listening: socket.socket) -> None:
    """Serve on a socket until a signal; `service` is started already, and `logs.configure` was called.

    Raises:
        RunStoppedError: What was accepted could not be finished in time.
    """
    host = listening.getsockname()[0]
    if not service.keys and host not in _LOOPBACK:
        event("no keys are set: open to all who reach it", {"host": host}, level=logging.WARNING)
    asyncio.run(_serve(service, listening))


class _Server(uvicorn.Server):
    """Tells the service when the server begins to stop, so that all of it shares one limit of time."""

    service: Service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.begin_stop(self.config.timeout_graceful_shutdown or 0)
        await super().shutdown(sockets)


async def _serve(service: Service, listening: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(on_loop_error)
    app = create_app(service)
    drain = service.settings.drain_seconds
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # it shows queries
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=max(1, round(drain)),
        )
    )
    server.service = service
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reload(service))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it has finished
        signal.signal(number, lambda *_: None)
    await server.serve(sockets=[listening])
    if not getattr(app.state, "is_drained", False):  # a second Ctrl-C leaves it unset
        _give_up()


async def _reload(service: Service) -> None:
    with suppress(RequestError):  # it is logged, and the old guard goes on
        await service.reload()


def _give_up() -> NoReturn:
    """End the process although the guard's thread still runs: nothing else stops it."""
    event("stopped in the middle of work", level=logging.ERROR)
    logging.shutdown()
    os._exit(3)
