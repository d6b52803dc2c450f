"""equipoise curate: what stays in a data set."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from equipoise.cli.common import ForceFlag, JsonFlag, OutOption, SetOption, emit, gather

app = typer.Typer(help="Decide what stays in a data set.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(help="Files of records: .jsonl, .jsonl.gz, .parquet or .csv.")]
EngineOption = Annotated[
    Literal["local", "ray"] | None, typer.Option(help="Where the work runs; the same records come out.")
]
WorkersOption = Annotated[int | None, typer.Option(help="Processes, or Ray actors.")]


@app.command()
def dedup(
    files: Files,
    *,
    out: OutOption,
    threshold: Annotated[
        float | None, typer.Option(help="Share of common shingles that makes a near-copy, 0.8 if not given.")
    ] = None,
    field: Annotated[
        Literal["prompt", "response", "both"] | None,
        typer.Option(help="What is compared, both if not given."),
    ] = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Drop near-copies; of each group the first record is kept, or the best by a score.

    OUT.dropped.jsonl says of which record each one is a copy, and how similar the two are.
    """
    from equipoise.curation.steps import DEDUP, dropped_path
    from equipoise.lineage import produce

    given = {"files": files, "threshold": threshold, "field": field, "engine": engine, "workers": workers}
    outcome = produce(out, DEDUP, gather(DEDUP, given, overrides=set_), force=force)
    notes = outcome.manifest.notes
    result = {"out": str(out), "dropped_list": str(dropped_path(out)), **notes, "was_done": outcome.skipped}
    counts = f"{notes['exact']} exact and {notes['near']} near copies of {notes['rows']} dropped"
    emit(result, as_json, f"{out}: {notes['records']} records, {counts}")
