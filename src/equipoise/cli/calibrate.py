"""`equipoise calibrate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit, gather
from equipoise.extras import require


def calibrate(
    *,
    out: OutOption,
    guard: Annotated[Path | None, typer.Option("--guard", help="Folder of a trained guard.")] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Labelled records that it was not trained on. Repeatable."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a guard's probabilities come true, and fit strict, moderate and loose policies.

    Writes a guard folder with calibration.json and policies/; its card says how far they hold.
    """
    require("equipoise calibrate", "train")
    from equipoise.lineage import produce
    from equipoise.pipeline.calibrate import CALIBRATE

    settings = gather(CALIBRATE, {"guard": guard, "data": data}, config=config, overrides=set_)
    outcome = produce(out, CALIBRATE, settings, force=force)
    notes = outcome.manifest.notes
    emit({"out": str(out), "skipped": outcome.skipped, **notes}, as_json, _text(notes, out))


def _text(notes: dict[str, Any], out: Path) -> str:
    lines = [f"{notes['texts']} labelled texts to {notes['prompts']} prompts"]
    lines += [
        f"  {name}: calibration error {error:.3f} (at most {notes['ece_upper'][name]:.3f})"
        for name, error in notes["ece"].items()
    ]
    if notes["training_files_not_checked"]:
        files = ", ".join(notes["training_files_not_checked"])
        lines.append(f"  not checked for prompts that the guard was trained on: {files}")
    return "\n".join([*lines, f"wrote {out}"])
