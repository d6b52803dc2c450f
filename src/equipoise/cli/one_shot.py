"""`equipoise one-shot`."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit, gather
from equipoise.extras import require


def one_shot(
    *,
    scored: Annotated[
        Path | None,
        typer.Option(help="Rows of `score` over several responses to each prompt (`generate -k`)."),
    ] = None,
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Make pairs of which plain DPO learns the best policy that keeps a budget of cost (MoCAN).

    The multiplier is found once, from the reference's responses. Then `train preference --set
    objective=dpo --set preference=overall`, with the same beta.
    """
    require("equipoise one-shot", "train")
    from equipoise.lineage import produce
    from equipoise.pipeline.one_shot import ONE_SHOT

    outcome = produce(
        out, ONE_SHOT, gather(ONE_SHOT, {"scored": scored}, config=config, overrides=set_), force=force
    )
    notes = outcome.manifest.notes
    told = (
        f"{notes['pairs']} pairs of {notes['prompts']} prompts; multiplier {notes['multiplier']}"
        f" ({notes['constraint']}); mean cost {notes['cost_of_reference']} of the reference,"
        f" {notes['cost_expected']} of the policy that is aimed at"
    )
    emit({"out": str(out), "skipped": outcome.skipped, **notes}, as_json, f"{told}\nwrote {out}")
