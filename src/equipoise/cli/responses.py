"""equipoise responses: which of a model's responses are kept."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit, gather

app = typer.Typer(help="Decide which responses are kept.", no_args_is_help=True)


@app.command()
def select(
    file: Annotated[
        Path, typer.Argument(help="Rows that `equipoise generate` wrote over a file of prompts.")
    ],
    *,
    out: OutOption,
    output: Annotated[
        Literal["exchanges", "pairs"] | None, typer.Option(help="What is made, exchanges if not given.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Responses per prompt, 2 if not given.")] = None,
    likelihood: Annotated[
        str | None, typer.Option(help="Model that says how probable a response is: its quality.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep the default response to each prompt, and others that are good and unlike it; drop gibberish."""
    from equipoise.lineage import produce
    from equipoise.pipeline.cleaning import SELECT

    given = {"responses": file, "output": output, "keep": keep, "likelihood": likelihood}
    outcome = produce(out, SELECT, gather(SELECT, given, config=config, overrides=set_), force=force)
    notes = outcome.manifest.notes
    text = f"{out}: {notes['records']} records of {notes['prompts']} prompts"
    emit({"out": str(out), **notes, "was_done": outcome.skipped}, as_json, text)
