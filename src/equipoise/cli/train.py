"""`equipoise train ...`: one command for each kind of model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit, gather
from equipoise.extras import require

if TYPE_CHECKING:
    from equipoise.config import Config
    from equipoise.lineage import Step

app = typer.Typer(help="Train a guard, a scorer or a policy.", no_args_is_help=True)

Data = Annotated[list[Path] | None, typer.Option("--data", help="Files to train on. Repeatable.")]


@app.command()
def guard(
    *,
    out: OutOption,
    data: Data = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a guard on exchanges: harm, 19 categories, severity and refusal."""
    require("equipoise train guard", "train")
    from equipoise.training.guard import TRAIN_GUARD

    settings = gather(TRAIN_GUARD, {"exchanges": data}, config=config, overrides=set_)
    _train(TRAIN_GUARD, settings, out=out, force=force, as_json=as_json)


@app.command()
def scorer(
    *,
    out: OutOption,
    data: Data = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train reward and cost on pairs; each pair trains what it has labels for."""
    require("equipoise train scorer", "train")
    from equipoise.training.scorer import TRAIN_SCORER

    settings = gather(TRAIN_SCORER, {"pairs": data}, config=config, overrides=set_)
    _train(TRAIN_SCORER, settings, out=out, force=force, as_json=as_json)


@app.command()
def sft(
    *,
    out: OutOption,
    data: Data = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a policy on the safe responses of exchanges."""
    require("equipoise train sft", "train")
    from equipoise.training.sft import TRAIN_SFT

    settings = gather(TRAIN_SFT, {"exchanges": data}, config=config, overrides=set_)
    _train(TRAIN_SFT, settings, out=out, force=force, as_json=as_json)


@app.command()
def preference(
    *,
    out: OutOption,
    data: Data = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Align a policy on pairs by a preference objective, SafeDPO unless said otherwise."""
    require("equipoise train preference", "train")
    from equipoise.training.preference import TRAIN_PREFERENCE

    settings = gather(TRAIN_PREFERENCE, {"pairs": data}, config=config, overrides=set_)
    _train(TRAIN_PREFERENCE, settings, out=out, force=force, as_json=as_json)


def _train(
    step: "Step",
    settings: "Config",
    *,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    from equipoise.lineage import produce

    outcome = produce(out, step, settings, force=force)
    manifest = outcome.manifest
    state = "was done before" if outcome.skipped else f"took {manifest.wall_seconds:.0f} s"
    notes = "".join(f"\n  {name}: {value}" for name, value in manifest.notes.items())
    result = {"out": str(out), "skipped": outcome.skipped, **manifest.model_dump(include={"key", "notes"})}
    emit(result, as_json, f"{step.name} {state}{notes}\nwrote {out}")
