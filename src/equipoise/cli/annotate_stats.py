"""equipoise annotate agreement, consensus and route: what judgements say together."""

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
    gather,
    listed,
)

Judgements = Annotated[list[Path], typer.Argument(help="Files of judgements, JSON Lines.")]
_RECORDS = "Files of exchanges or pairs. Repeatable."


@app.command()
def agreement(
    judgements: Judgements,
    *,
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Report how far annotators agree, with intervals: OUT/agreement.json and OUT/agreement.md.

    Cohen, Fleiss, Krippendorff (nominal, ordinal, MASI) and Gwet; per question and category; among
    people, among models, and between both.
    """
    from equipoise.annotation.steps import AGREEMENT
    from equipoise.lineage import produce

    settings = gather(AGREEMENT, {"judgements": judgements}, config=config, overrides=set_)
    outcome = produce(out, AGREEMENT, settings, force=force)
    result = {"out": str(out), "was_done": outcome.skipped, **outcome.manifest.notes}
    emit(result, as_json, (out / "agreement.md").read_text("utf-8"))


@app.command()
def consensus(
    judgements: Judgements,
    *,
    records: Annotated[list[Path], typer.Option("--records", help=_RECORDS)],
    out: OutOption,
    gold: Annotated[
        list[Path] | None, typer.Option("--gold", help="Records with right labels, to test annotators.")
    ] = None,
    method: Annotated[
        Literal["dawid-skene", "mace", "majority"] | None, typer.Option(help="How votes are weighed.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Label records with what all annotators say together, and report on each annotator.

    Every record says where its labels come from (a person, a model, a consensus of n) and lists the
    annotators. What nobody answered stays missing.
    """
    from equipoise.annotation.steps import CONSENSUS
    from equipoise.lineage import produce

    given = {"judgements": judgements, "records": records, "gold": gold, "method": method}
    settings = gather(CONSENSUS, given, config=config, overrides=set_)
    outcome = produce(out, CONSENSUS, settings, force=force)
    notes: dict[str, Any] = outcome.manifest.notes
    lines = [_rater_line(rater) for rater in notes["raters"]]
    lines += listed("judged, but not among the records: ", notes["strangers"])
    adjusted = sum(notes["adjusted"].values())
    lines.append(
        f"{out}: {notes['records']} records, {notes['judged']} judged ({notes['single']} by one annotator),"
        f" {notes['undecided']} answers undecided, {adjusted} made to fit the others,"
        f" {len(notes['text_conflicts'])} texts labelled in different ways"
    )
    emit({"out": str(out), "was_done": outcome.skipped, **notes}, as_json, "\n".join(lines))


@app.command()
def route(
    records: Annotated[list[Path], typer.Argument(help="Files of exchanges or pairs to be labelled.")],
    *,
    judgements: Annotated[list[Path], typer.Option("--judgements", help="Judgements by models. Repeatable.")],
    labelled: Annotated[
        list[Path], typer.Option("--labelled", help="Records labelled by people. Repeatable.")
    ],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Decide what a model's label settles and what a person sees: settled, queue and audit in OUT.

    The threshold is the lowest at which settled labels surely agree with people as often as
    `--set target=0.95`, measured on held-out labelled rows; curve.json holds the whole curve.
    """
    from equipoise.annotation.route import ROUTE
    from equipoise.lineage import produce

    given = {"records": records, "judgements": judgements, "labelled": labelled}
    outcome = produce(out, ROUTE, gather(ROUTE, given, config=config, overrides=set_), force=force)
    notes = outcome.manifest.notes
    threshold = notes["threshold"]
    reached = (
        f"no threshold surely reaches {notes['target']}, so people see everything"
        if threshold is None
        else f"threshold {threshold:.3f}"
    )
    lines = [
        f"calibrated on {notes['calibrated_on']} rows: calibration error {notes['ece_before']:.3f} before,"
        f" {notes['ece_after']:.3f} after (held out)",
        reached,
        f"{out}: {notes['settled']} settled, {notes['queue']} queued, {notes['audit']} to audit,"
        f" {notes['labelled']} labelled before",
    ]
    emit({"out": str(out), "was_done": outcome.skipped, **notes}, as_json, "\n".join(lines))


def _rater_line(rater: dict[str, Any]) -> str:
    """Return what there is to say of an annotator on one line."""
    parts = [f"{rater['name']} ({rater['kind']}): {rater['subjects']} subjects"]
    parts += [f"{name} {e['value']:.2f} right on {e['n']} gold items" for name, e in rater["gold"].items()]
    for name in ("contradictions", "cycles", "changed"):
        if rater[name]:
            parts.append(f"{len(rater[name])} {name}")
    if rater["flags"]:
        parts.append(f"look into: {', '.join(rater['flags'])}")
    return ", ".join(parts)
