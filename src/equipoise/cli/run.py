"""`equipoise run` and `equipoise demo`: a recipe from the first step to the report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.cli.common import JsonFlag, SetOption, emit, fail_on_findings
from equipoise.extras import require

if TYPE_CHECKING:
    from equipoise.pipeline.summary import Finished

Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/NAME if not given.")]
Only = Annotated[str | None, typer.Option("--only", help="Run this step and those that it needs.")]
Force = Annotated[str | None, typer.Option("--force", metavar="STEP", help="Do this step again.")]


def run(
    *,
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    out: Out = None,
    only: Only = None,
    force: Force = None,
    set_: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a recipe. What is done is skipped, what was interrupted goes on."""
    _run(recipe, out=out, overrides=set_, only=only, force=force, as_json=as_json)


def demo(
    *,
    out: Out = None,
    set_: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the quickstart: built-in data and models, from labels to report.html, in minutes on a CPU."""
    _run(None, out=out, overrides=set_, as_json=as_json)


def _run(
    path: Path | None,
    *,
    out: Path | None,
    overrides: list[str] | None,
    as_json: bool,
    only: str | None = None,
    force: str | None = None,
) -> None:
    require("a recipe", "train")
    from equipoise.data.check import FoundError
    from equipoise.pipeline.recipe import built_in_recipe, load_recipe
    from equipoise.pipeline.run import run_recipe

    recipe = load_recipe(path or built_in_recipe("quickstart"), overrides or ())
    place = out or Path("runs") / recipe.name
    try:
        done = run_recipe(recipe, place, only=only, force=force)
    except FoundError as error:
        fail_on_findings(error, as_json)
    published = [str(place / name) for name in recipe.publish] if only is None else []
    result = {"out": str(place), "published": published, "steps": [_told(step) for step in done]}
    emit(result, as_json, "\n".join(published or [str(step.place) for step in done[-1:]]))


def _told(step: "Finished") -> dict[str, Any]:
    manifest = step.manifest
    return {
        "step": step.name,
        "place": str(step.place),
        "skipped": step.skipped,
        **manifest.model_dump(include={"key", "wall_seconds", "cpu_seconds", "peak_memory_mib"}),
    }
