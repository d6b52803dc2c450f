"""`equipoise serve`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipoise.cli.common import ConfigOption, JsonFlag, SetOption, emit
from equipoise.extras import require

if TYPE_CHECKING:
    from equipoise.moderation.server.service import Service
    from equipoise.moderation.server.settings import ServeConfig


def serve(
    *,
    guard: Annotated[
        Path | None, typer.Option("--guard", help="Folder of a trained guard; the shipped one if not given.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A policy's file, or the name of one of the guard's; the first decides. Repeatable."
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(help="Guard this chat server of the OpenAI protocol, e.g. http://localhost:9000/v1."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; this machine only if not given.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="8000 if not given; 0 takes a free one.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="torch, torch-bf16, torch-compiled, onnx or onnx-int8.")
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve a guard to clients of OpenAI, Azure, LiteLLM, Llama Guard and its own protocol, until Ctrl-C.

    Keys come from EQUIPOISE_API_KEYS. SIGTERM finishes what was accepted, SIGHUP loads a new guard.
    """
    require("equipoise serve", "train")
    require("equipoise serve", "serve")
    from equipoise.config import load_config
    from equipoise.moderation.server.logs import configure
    from equipoise.moderation.server.run import bind, run, url_of
    from equipoise.moderation.server.settings import ServeConfig

    given = {
        "guard": guard and str(guard),
        "policies": policy or None,
        "gateway.upstream.url": upstream,
        "host": host,
        "port": port,
        "runtime": runtime,
    }
    flags = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    wanted = load_config(ServeConfig, config, [*flags, *(settings or [])])
    service = _service(wanted)
    with bind(wanted.host, wanted.port) as listening:
        configure()
        service.start()
        url = url_of(listening)
        emit({"url": url}, as_json, f"{url} (Ctrl-C stops it when it has finished what was accepted)")
        run(service, listening)


def _service(wanted: "ServeConfig") -> "Service":
    """Return the service, not started; what is wrong with a key or a language is said before it loads."""
    from equipoise.curation.language import OtherLanguage
    from equipoise.generation.client import read_key
    from equipoise.moderation.server.engine import load_engine
    from equipoise.moderation.server.service import Service
    from equipoise.moderation.server.settings import read_keys

    if wanted.gateway is not None:
        read_key(wanted.gateway.upstream)
    identify = OtherLanguage(keep=wanted.languages).guess
    identify("")
    return Service(wanted, lambda observe: load_engine(wanted, identify, observe), read_keys())
