"""equipoise data export: records in the formats that others read, as a folder ready for the hub."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from equipoise.cli.common import (
    ConfigOption,
    ForceFlag,
    JsonFlag,
    OutOption,
    SetOption,
    emit,
    fail_on_findings,
    gather,
    listed,
)

_FORMATS = "pku-dual, pku-single, pku-qa, pku-prompt, trl-preference, trl-kto, trl-prompt or records."


def export(
    files: Annotated[
        list[str],
        typer.Argument(metavar="[SPLIT=]FILE...", help="Files of records; without SPLIT= they are `train`."),
    ],
    *,
    to: Annotated[str, typer.Option(help=_FORMATS)],
    out: OutOption,
    file_format: Annotated[
        Literal["jsonl", "parquet"] | None, typer.Option("--as", help="Kind of file; jsonl if not given.")
    ] = None,
    preference: Annotated[
        Literal["better", "safer", "overall"] | None, typer.Option(help="Which preference ranks the answers.")
    ] = None,
    exclude_licences: Annotated[
        str | None, typer.Option(help="Licences to refuse, for example NC,GPL; `unknown` is refused always.")
    ] = None,
    allow_unknown_licence: Annotated[
        bool, typer.Option("--allow-unknown-licence", help="Export records that state no licence, too.")
    ] = False,
    drop_licences: Annotated[
        bool, typer.Option("--drop-licences", help="Leave refused records out instead of stopping.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="Heading of the card.")] = None,
    description: Annotated[str | None, typer.Option(help="What the data is and is not good for.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write records in another format, with a card for the hub; exit code 1 if a licence is refused.

    Other choices of a format (both_unsafe, ties, style, label) are given with --set. What a format cannot
    hold is left out, counted by reason in the card and listed in left_out.jsonl.
    """
    from equipoise.data.check import FoundError
    from equipoise.data.export.run import EXPORT
    from equipoise.lineage import produce

    given = {
        **_inputs(files),
        "to": to,
        "file_format": file_format,
        "preference": preference,
        "exclude_licences": _names(exclude_licences),
        "allow_unknown_licence": allow_unknown_licence or None,
        "drop_licences": drop_licences or None,
        "title": title,
        "description": description,
    }
    settings = gather(EXPORT, given, config=config, overrides=overrides)
    try:
        outcome = produce(out, EXPORT, settings, force=force)
    except FoundError as error:
        fail_on_findings(error, as_json)
    notes: dict[str, Any] = outcome.manifest.notes
    result = {"out": str(out), "rows": notes["rows"], "left_out": notes["left_out"]}
    result |= {"licences": outcome.manifest.licences, "was_done": outcome.skipped}
    emit(result, as_json, _text(notes, out, settings.model_dump()["file_format"]))


def _text(notes: dict[str, Any], out: Path, file_format: str) -> str:
    lines = listed("left out: ", [f"{n} x {reason}" for reason, n in notes["left_out"].items()])
    lines += [f"{out / 'data' / split}.{file_format}: {n} rows" for split, n in notes["rows"].items()]
    return "\n".join(lines)


def _inputs(files: list[str]) -> dict[str, list[str]]:
    """Return the settings that name files and their splits."""
    named = [_named(text) for text in files]
    return {"files": [path for _, path in named], "splits": [split for split, _ in named]}


def _named(text: str) -> tuple[str, str]:
    """Split `test=FILE` into the split and the file; a file that exists by the whole name wins."""
    split, equals, path = text.partition("=")
    if not equals or Path(text).exists() or not split.replace("_", "").isalnum():
        return "train", text
    return split, path


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
