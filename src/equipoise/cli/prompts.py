"""equipoise prompts: made from a taxonomy, refined, and counted by category and severity."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit, gather

app = typer.Typer(help="Make prompts from a taxonomy, refine them, count them.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(help="Files of prompts: .jsonl, .jsonl.gz, .parquet or .csv.")]
GuardOption = Annotated[Path | None, typer.Option(help="Guard that says what a prompt is.")]
TaxonomyOption = Annotated[str | None, typer.Option(help="Built-in name or a YAML file; pku19 if not given.")]
TargetOption = Annotated[int | None, typer.Option(help="Prompts per category and severity, 3 if not given.")]


@app.command()
def expand(
    *,
    out: OutOption,
    model: Annotated[
        str | None, typer.Option(help="Built-in name, folder or hub id; with --endpoint, a name there.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Ask a server of the OpenAI protocol, e.g. http://localhost:8000/v1.")
    ] = None,
    guard: GuardOption = None,
    taxonomy: TaxonomyOption = None,
    examples: Annotated[
        Path | None, typer.Option(help="Prompts with categories, shown to the model as examples.")
    ] = None,
    target: TargetOption = None,
    max_calls: Annotated[int | None, typer.Option(help="Budget: how often the model is asked.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write prompts for every category and severity, and a harmless look-alike of each.

    A guard decides what is kept; rounds go to the cells that are still empty.
    """
    from equipoise.lineage import produce
    from equipoise.pipeline.factory import EXPAND

    given = {
        "model": model,
        "endpoint": endpoint and {"url": endpoint},
        "guard": guard,
        "taxonomy": taxonomy,
        "examples": examples,
        "target": target,
        "max_calls": max_calls,
    }
    outcome = produce(out, EXPAND, gather(EXPAND, given, config=config, overrides=set_), force=force)
    notes = outcome.manifest.notes
    full = f"{notes['cells_full']} of {notes['cells']} cells full"
    text = f"{out}: {notes['prompts']} harmful prompts, {notes['look_alikes']} look-alikes, {full}"
    emit({"out": str(out), **notes, "was_done": outcome.skipped}, as_json, text)


@app.command()
def refine(
    files: Files,
    *,
    out: OutOption,
    threshold: Annotated[
        float | None, typer.Option(help="Share of common shingles that makes a near-copy, 0.8 if not given.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Normalise, complete and split prompts; drop refusals, gibberish and near-copies.

    OUT.changes.jsonl holds every change: id, reason, before and after.
    """
    from equipoise.lineage import produce
    from equipoise.pipeline.cleaning import REFINE, changes_path

    given = {"files": files, "threshold": threshold}
    outcome = produce(out, REFINE, gather(REFINE, given, config=config, overrides=set_), force=force)
    notes = outcome.manifest.notes
    result = {"out": str(out), "changes_list": str(changes_path(out)), **notes, "was_done": outcome.skipped}
    emit(result, as_json, f"{out}: {notes['prompts']} prompts of {notes['rows']}, {notes['dropped']} dropped")


@app.command()
def coverage(
    files: Files,
    *,
    guard: GuardOption = None,
    taxonomy: TaxonomyOption = None,
    target: TargetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Count harmful prompts by category and severity; with a guard, by the categories that it assigns."""
    from equipoise.pipeline.factory import COVERAGE, CoverageConfig, measure_coverage

    given = {"files": files, "guard": guard, "taxonomy": taxonomy, "target": target}
    config = gather(COVERAGE, given)
    assert isinstance(config, CoverageConfig)
    found = measure_coverage(config)
    result = {"cells_full": found.filled(config.target), "target": config.target, "counts": found.to_json()}
    emit(result, as_json, found.markdown(config.target))
