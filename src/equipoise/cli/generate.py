"""`equipoise generate`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit, tokens_text


def generate(
    *,
    out: OutOption,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Built-in name, folder or hub id; with --endpoint, a name there. Repeatable."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Ask a server of the OpenAI protocol, e.g. http://localhost:8000/v1.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help='JSON Lines of {"id", "prompt"}.')] = None,
    samples: Annotated[int | None, typer.Option("-k", help="Responses per prompt.")] = None,
    greedy_first: Annotated[
        bool, typer.Option("--greedy-first", help="Write a greedy answer before the k samples.")
    ] = False,
    guard: Annotated[
        Path | None,
        typer.Option(help="Folder of a trained guard, which chooses among several tries or refuses."),
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write responses to a file of prompts; the same rows come out, in the same order."""
    from equipoise.config import load_config
    from equipoise.extras import require
    from equipoise.lineage import produce
    from equipoise.pipeline.guarded import GENERATE, GuardedGenerateConfig

    given = {
        "models": model or None,
        "endpoint.url": endpoint,
        "prompts": prompts and str(prompts),
        "sampling.samples": samples,
        "greedy_first": greedy_first or None,
        "guard": guard and str(guard),
    }
    flags = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    wanted = load_config(GuardedGenerateConfig, config, [*flags, *(settings or [])])
    if wanted.endpoint is None:
        require("equipoise generate", "train")
    outcome = produce(out, GENERATE, wanted, force=force)
    notes: dict[str, Any] = outcome.manifest.notes
    done = "was complete already" if outcome.skipped else "written"
    counts = f"{notes['rows']} prompts answered, {notes['errors']} bad lines"
    text = f"{out}: {done}, {counts}{_missing(notes)}{_refused(notes)}{_took(notes)}"
    emit({"out": str(out), "skipped": outcome.skipped, **notes}, as_json, text)
    if notes["errors"] or notes["missing"]:
        raise typer.Exit(1)


def _missing(notes: dict[str, Any]) -> str:
    return f", {notes['missing']} answers missing" if notes["missing"] else ""


def _refused(notes: dict[str, Any]) -> str:
    return f", {notes['guard']['refused']} answers refused by the guard" if "guard" in notes else ""


def _took(notes: dict[str, Any]) -> str:
    """Say what the answers of a server took: tokens, and their cost where prices were given."""
    if "usage" not in notes:
        return ""
    return f"; {tokens_text(list(notes['usage'].values()))}"
