"""`equipoise models` and `equipoise doctor`."""

from typing import Annotated

import typer

from equipoise.cli.common import JsonFlag, emit

app = typer.Typer(no_args_is_help=True, help="The built-in models: what there is, and how to get it.")


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List the built-in models and where they lie."""
    from equipoise.models.builtin import BUILTIN, installed

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
    from equipoise.models.builtin import BUILTIN, entry_of, install

    wanted = list(BUILTIN) if names == ["all"] else names
    for name in wanted:
        entry_of(name)  # a wrong name is said before anything is fetched
    folders = {name: str(install(name)) for name in wanted}
    text = "\n".join(f"{name}: {folder}" for name, folder in folders.items())
    emit({"installed": folders}, as_json, text)


def doctor(as_json: JsonFlag = False) -> None:
    """Show versions, devices, models found, and which extras are missing."""
    from equipoise.doctor import as_text, examine

    report = examine()
    emit(report, as_json, as_text(report))
