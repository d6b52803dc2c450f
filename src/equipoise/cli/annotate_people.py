"""`equipoise annotate export`, `serve` and `import`: labels from people, on a labelling tool."""

import signal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from equipoise.cli.annotate import app
from equipoise.cli.common import (
    ConfigOption,
    ForceFlag,
    JsonFlag,
    OutOption,
    SetOption,
    emit,
    fail_on_findings,
    gather,
    listed,
)
from equipoise.errors import ConfigError, RunStoppedError

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of `annotate export`.")]


@app.command("export")
def export(
    file: Annotated[Path | None, typer.Argument(help="Exchanges or pairs.")] = None,
    *,
    out: OutOption,
    to: Annotated[
        Literal["potato", "label-studio"] | None, typer.Option(help="The tool; potato if not given.")
    ] = None,
    card: Annotated[
        Literal["dual", "overall"] | None,
        typer.Option(help="Of pairs: labels and two preferences, or one overall preference."),
    ] = None,
    suggestions: Annotated[
        list[Path] | None,
        typer.Option(help="Judgements of models to show; without any, people judge blind. Repeatable."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the pages on which people label exchanges or pairs, for Potato or Label Studio."""
    from equipoise.annotation.people import EXPORT
    from equipoise.annotation.potato import ANSWERS
    from equipoise.lineage import produce

    if force and any((out / ANSWERS).glob("*/*")):
        raise ConfigError(f"{out / ANSWERS}: holds what people entered; choose another place")
    given = {"file": file, "to": to, "card": card, "suggestions": suggestions}
    settings = gather(EXPORT, given, config=config, overrides=set_)
    outcome = produce(out, EXPORT, settings, force=force)
    notes = outcome.manifest.notes
    shown = f"{notes['with_suggestions']} with suggestions" if notes["with_suggestions"] else "blind"
    result = {"out": str(out), "skipped": outcome.skipped, **notes}
    emit(result, as_json, f"{out}: {notes['items']} items, card {notes['card']}, {shown}")


@app.command("serve")
def serve(
    folder: Folder,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="A free one if not given.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start Potato on an exported folder, on this machine only, until Ctrl-C.

    Potato (GPL) is installed into an environment of its own in the cache when it is first needed.
    """
    from equipoise.annotation.environment import install_tool, potato_requirements
    from equipoise.annotation.potato import LOG
    from equipoise.annotation.serve import expect_potato, serving
    from equipoise.models.builtin import cache_folder

    expect_potato(folder)  # before half a gigabyte is fetched for it
    python = install_tool(cache_folder(), "potato", potato_requirements())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: Potato goes with us
    try:
        with serving(folder, python, port) as server:
            result = {"url": server.url, "pid": server.process.pid}
            emit(result, as_json, f"{server.url} (Ctrl-C stops it; what is entered is saved at once)")
            code = server.process.wait()
        raise RunStoppedError(f"potato ended with {code}; see {folder / LOG}")
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)


@app.command("import")
def import_(
    folder: Folder,
    *,
    out: OutOption,
    answers: Annotated[
        Path | None,
        typer.Option(help="What Label Studio exported as JSON; for Potato, its folder if it was moved."),
    ] = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn what people entered into judgements; exit code 1 if something cannot be used."""
    from equipoise.annotation.people import IMPORT
    from equipoise.annotation.project import read_project
    from equipoise.data.check import FoundError
    from equipoise.lineage import produce

    if answers is None and read_project(folder).tool == "label-studio":
        raise ConfigError("--answers: missing; expected the file that Label Studio exported as JSON")
    settings = gather(IMPORT, {"project": folder, "answers": answers}, overrides=set_)
    try:
        outcome = produce(out, IMPORT, settings, force=force)
    except FoundError as error:
        fail_on_findings(error, as_json)
    notes: dict[str, Any] = dict(outcome.manifest.notes)
    lines = listed("left out ", notes["bad"])
    lines += listed("incomplete ", notes["incomplete"]) + listed("passed by ", notes["skipped"])
    cards = ", ".join(f"{name} {count}" for name, count in notes["cards"].items()) or "none"
    lines.append(f"{len(notes['unanswered'])} items without an answer")
    lines.append(f"{out}: {notes['judgements']} judgements; cards: {cards}")
    emit({"out": str(out), "was_done": outcome.skipped, **notes}, as_json, "\n".join(lines))
