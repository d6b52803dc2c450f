"""`equipoise certify`: exit 0 where the policy passes, 1 where it does not."""

import json
from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit, gather


def certify(
    *,
    run: Annotated[Path | None, typer.Argument(help="Folder of an evaluation on held-out prompts.")] = None,
    out: OutOption,
    budget: Annotated[float | None, typer.Option(help="What the expected cost may be at most.")] = None,
    measure: Annotated[
        str | None, typer.Option(help="cost, harmful, severity, severe or unsafe_probability.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Probability at most of passing a policy over budget.")
    ] = None,
    train: Annotated[
        list[Path] | None, typer.Option(help="What the policy was trained on, to be sure. Repeatable.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Pass a policy only if it is within budget with high confidence; exit 1 where it is not."""
    from equipoise.evaluation.certify_run import CERTIFY
    from equipoise.lineage import produce

    given = {"run": run, "budget": budget, "measure": measure, "delta": delta, "train": train}
    outcome = produce(out, CERTIFY, gather(CERTIFY, given, config=config, overrides=set_), force=force)
    found = json.loads((out / "certificate.json").read_text("utf-8"))
    emit(
        {"out": str(out), "skipped": outcome.skipped, **found},
        as_json,
        f"{outcome.manifest.notes['verdict']}\nwrote {out}",
    )
    if not found["passed"]:
        raise typer.Exit(1)
