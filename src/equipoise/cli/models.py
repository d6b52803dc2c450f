"""`equipoise models` and `equipoise doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.common import ForceFlag, JsonFlag, OutOption, emit, gather
from equipoise.extras import require

app = typer.Typer(no_args_is_help=True, help="The built-in models: what there is, and how to get it.")


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List the built-in models and where they lie."""
    from equipoise.models.builtin import installed
    from equipoise.models.wheels import BUILTIN

    found = installed()
    models = [
        {
            "name": name,
            "about": entry.about,
            "licence": entry.licence,
            "wheel": entry.wheel,
            "megabytes": entry.megabytes,
            "folder": str(found[name]) if name in found else None,
        }
        for name, entry in BUILTIN.items()
    ]
    lines = [
        f"{m['name']}: {m['about']}; {m['licence']}; "
        + (f"installed in {m['folder']}" if m["folder"] else f"not installed ({m['megabytes']} MB to fetch)")
        for m in models
    ]
    emit({"models": models}, as_json, "\n".join(lines))


@app.command("install")
def install_models(
    names: Annotated[list[str], typer.Argument(help="Names from `models list`, or `all`.")],
    as_json: JsonFlag = False,
) -> None:
    """Fetch built-in models with pip and convert them once into the cache."""
    from equipoise.models.builtin import entry_of, install
    from equipoise.models.wheels import BUILTIN

    wanted = list(BUILTIN) if names == ["all"] else names
    for name in wanted:
        entry_of(name)  # a wrong name is said before anything is fetched
    folders = {name: str(install(name)) for name in wanted}
    text = "\n".join(f"{name}: {folder}" for name, folder in folders.items())
    emit({"installed": folders}, as_json, text)


@app.command("merge")
def merge_models(
    models: Annotated[list[str], typer.Argument(help="Folders or names; all tuned from the same model.")],
    *,
    out: OutOption,
    weights: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Of each model, in order; they sum to 1. Equal if not given."),
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Average the weights of models: a point between what each was tuned for (rewarded soups)."""
    require("equipoise models merge", "train")
    from equipoise.lineage import produce
    from equipoise.models.merge import MERGE

    shares = weights or [1 / len(models)] * len(models)
    outcome = produce(out, MERGE, gather(MERGE, {"models": models, "weights": shares}), force=force)
    result = {"out": str(out), "skipped": outcome.skipped, **outcome.manifest.notes}
    parts = ", ".join(f"{share:.3g} {model}" for model, share in zip(models, shares, strict=True))
    emit(result, as_json, f"{parts}\nwrote {out}")


@app.command("ensemble")
def join_scorers(
    scorers: Annotated[list[Path], typer.Argument(help="Folders of `train scorer`.")],
    *,
    out: OutOption,
    pairs: Annotated[
        list[Path], typer.Option(help="Pairs on whose answers the spread of each scorer is measured.")
    ],
    reward: Annotated[str, typer.Option(help="mean, or worst: the lowest counts.")] = "mean",
    cost: Annotated[str, typer.Option(help="mean, or worst: the highest counts.")] = "worst",
    answers: Annotated[int, typer.Option(help="So many of the answers, drawn at random.")] = 500,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Join scorers into one that is harder to deceive: the mean of rewards, the worst of costs."""
    require("equipoise models ensemble", "train")
    from equipoise.lineage import produce
    from equipoise.rewards.ensemble import ENSEMBLE

    given = {"scorers": scorers, "pairs": pairs, "reward": reward, "cost": cost, "answers": answers}
    outcome = produce(out, ENSEMBLE, gather(ENSEMBLE, given), force=force)
    result = {"out": str(out), "skipped": outcome.skipped, **outcome.manifest.notes}
    notes = outcome.manifest.notes
    told = f"{notes['scorers']} scorers joined on {notes['answers']} answers: {notes['heads']}"
    emit(result, as_json, f"{told}\nwrote {out}")


def doctor(as_json: JsonFlag = False) -> None:
    """Show versions, devices, models found, and which extras are missing."""
    from equipoise.doctor import as_text, examine

    report = examine()
    emit(report, as_json, as_text(report))
