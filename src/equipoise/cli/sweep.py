"""`equipoise sweep`: a recipe under several values of one setting, and the trade-off that it decides."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.common import JsonFlag, SetOption, emit
from equipoise.extras import require


def sweep(
    *,
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file, with an `evaluate` step.")],
    knob: Annotated[
        str, typer.Option(help="Setting to turn: settings.KEY, or steps.STEP.SETTING as for --set.")
    ],
    values: Annotated[str, typer.Option(help="Its values, parted by commas: 0.01,0.1,1.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; runs/NAME if not given.")
    ] = None,
    point: Annotated[
        str | None, typer.Option(metavar="STEP", help="The evaluation that depends on the knob.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="STEP", help="The evaluation of the model before.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="HELPFUL,HARMLESS", help="Measure the hypervolume from here, not from the base."
        ),
    ] = None,
    helpfulness: Annotated[
        str | None, typer.Option(help="reward_benign or truly_safe; the reward where there is a scorer.")
    ] = None,
    set_: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a recipe once per value of a setting and draw the helpful/harmless front.

    The runs share a folder, so what the setting does not touch is done once. Writes sweep.json, sweep.md
    and sweep.svg. A value whose run failed is named, the others stand, and the same command tries again.
    """
    require("a recipe", "train")
    import json

    from equipoise.errors import RunStoppedError
    from equipoise.pipeline.recipe import load_recipe
    from equipoise.pipeline.sweep import sweep as run_sweep

    place = out or Path("runs") / load_recipe(recipe, set_ or ()).name
    given = {"reference": reference and reference.split(","), "helpfulness": helpfulness}
    done = run_sweep(
        recipe,
        place,
        knob=knob,
        values=values,
        overrides=set_ or (),
        point=point,
        base=base,
        settings={name: value for name, value in given.items() if value is not None},
    )
    result = json.loads((place / "sweep.json").read_text("utf-8"))
    text = (place / "sweep.md").read_text("utf-8").partition("![](")[0].rstrip()
    emit(
        {"out": str(place), "skipped": done.skipped, **result}, as_json, f"{text}\n\nwrote {place}/sweep.svg"
    )
    if done.failed:
        raise RunStoppedError(f"{len(done.failed)} of the values failed: {', '.join(done.failed)}")
