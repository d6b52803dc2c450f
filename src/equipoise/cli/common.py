"""Options that several commands share, and how a result is printed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object last.")]
ForceFlag = Annotated[bool, typer.Option("--force", help="Replace what another run left in the place.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, for example optim.lr=1e-5. Repeatable.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
OutOption = Annotated[Path, typer.Option("--out", help="Where the result goes.")]


def emit(result: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print the result: `text` for a person, or `result` as one JSON object."""
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else text)
