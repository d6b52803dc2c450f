"""Commands that measure: `evaluate`, `compare`, `report`. Harmful text shows with `--show-text` only."""

from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, SetOption, emit, gather
from equipoise.extras import require

_SHOWN = 5

Mismatch = Annotated[
    bool, typer.Option("--allow-mismatch", help="Go on although judges or suites differ; it is said.")
]


def evaluate(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    suite: Annotated[str | None, typer.Argument(help="'builtin', or a file of prompts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model that responds: a name, a folder or a hub id.")
    ] = None,
    responses: Annotated[
        Path | None, typer.Option(help="File of responses to judge, in place of a model's new ones.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", "--guard", help="Folder of the guard that judges.")
    ] = None,
    scorer: Annotated[str | None, typer.Option(help="Folder of the reward and cost model.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    show_text: Annotated[bool, typer.Option("--show-text", help="Show texts that may be harmful.")] = False,
) -> None:
    """Let a model respond to a suite, judge harm and refusal, and measure both.

    The folder gets responses.jsonl, rows.jsonl, metrics.json and card.md; it resumes after a kill.
    """
    require("equipoise evaluate", "train")
    from equipoise.evaluation.card import examples_text, metrics_text
    from equipoise.evaluation.files import plain
    from equipoise.evaluation.metrics import measure
    from equipoise.evaluation.rows import load_run
    from equipoise.evaluation.steps import EVALUATE
    from equipoise.lineage import produce

    given = {"suite": suite, "model": model, "responses": responses, "guard": judge, "scorer": scorer}
    settings = gather(EVALUATE, given, config=config, overrides=set_)
    outcome = produce(out, EVALUATE, settings, force=force)
    run = load_run(out)
    metrics = measure(run.rows)
    result: dict[str, Any] = {"out": str(out), "skipped": outcome.skipped, "metrics": plain(metrics)}
    text = [metrics_text(metrics), examples_text(run.rows, _SHOWN, show_text=show_text), f"wrote {out}"]
    emit(result, as_json, "\n\n".join(part for part in text if part))


def compare(
    *,
    before: Annotated[Path, typer.Argument(help="Folder of the evaluation before.")],
    after: Annotated[Path, typer.Argument(help="Folder of the evaluation after.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write the comparison to.")] = None,
    allow_mismatch: Mismatch = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare two evaluations of the same prompts, paired row by row."""
    from equipoise.evaluation.compare import compare as compare_runs
    from equipoise.evaluation.compare_run import COMPARE, CompareConfig, comparison_text
    from equipoise.evaluation.files import plain
    from equipoise.evaluation.rows import load_runs
    from equipoise.lineage import produce

    comparison = compare_runs(*load_runs([before, after]), allow_mismatch=allow_mismatch)
    if out:
        settings = CompareConfig(before=before, after=after, allow_mismatch=allow_mismatch)
        produce(out, COMPARE, settings, force=force)
    emit(plain(comparison), as_json, comparison_text(comparison))


def report(
    *,
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of evaluations, the first is the base; of online trainings.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A page (NAME.html), or a folder.")],
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="Name of a run, once for each in order.")
    ] = None,
    examples: Annotated[int | None, typer.Option(min=0, help="Prompts shown, collapsed.")] = None,
    lineage: Annotated[list[Path] | None, typer.Option(help="More run folders for the lineage.")] = None,
    allow_mismatch: Mismatch = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the report of evaluations, and of online trainings, as a page that needs nothing from outside."""
    from equipoise.config import parse_config
    from equipoise.evaluation.report.build import ReportConfig, numbers, report_step
    from equipoise.evaluation.report.build import gather as gather_report
    from equipoise.lineage import produce

    given = {
        "runs": runs,
        "labels": labels,
        "lineage": lineage,
        "title": title,
        "examples": examples,
        "allow_mismatch": allow_mismatch,
    }
    data = {name: value for name, value in given.items() if value is not None}
    settings = parse_config(ReportConfig, data, "command line")
    notes = produce(out, report_step(out), settings, force=force).manifest.notes
    page = out if out.suffix == ".html" else out / "report.html"
    result = {"out": str(page), **numbers(gather_report(settings))} if as_json else {}
    emit(result, as_json, f"{notes['headline']}\n{page}")
