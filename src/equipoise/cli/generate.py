"""`equipoise generate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.common import ConfigOption, ForceFlag, JsonFlag, OutOption, SetOption, emit


def generate(
    *,
    out: OutOption,
    model: Annotated[str | None, typer.Option(help="Built-in name, folder or hub id.")] = None,
    prompts: Annotated[Path | None, typer.Option(help='JSON Lines of {"id", "prompt"}.')] = None,
    samples: Annotated[int | None, typer.Option("-k", help="Responses per prompt.")] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write responses to a file of prompts; the same rows come out, in the same order."""
    from equipoise.extras import require

    require("equipoise generate", "train")

    from equipoise.config import load_config
    from equipoise.generation.batch import GENERATE, GenerateConfig
    from equipoise.lineage import produce

    given = {"model": model, "prompts": prompts and str(prompts), "sampling.samples": samples}
    flags = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    outcome = produce(
        out, GENERATE, load_config(GenerateConfig, config, [*flags, *(settings or [])]), force=force
    )
    rows, errors = outcome.manifest.notes["rows"], outcome.manifest.notes["errors"]
    done = "was complete already" if outcome.skipped else "written"
    emit(
        {"out": str(out), "rows": rows, "errors": errors, "skipped": outcome.skipped},
        as_json,
        f"{out}: {done}, {rows} prompts answered, {errors} bad lines",
    )
    if errors:
        raise typer.Exit(1)
