"""Options that several commands share, and how a result is printed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from equipoise.config import Config
    from equipoise.data.check import FoundError
    from equipoise.lineage import Step

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object last.")]
ForceFlag = Annotated[bool, typer.Option("--force", help="Do it again, over what another run left there.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, for example optim.lr=1e-5. Repeatable.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
OutOption = Annotated[Path, typer.Option("--out", help="Where the result goes.")]

_LISTED = 50


def emit(result: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print the result: `text` for a person, or `result` as one JSON object."""
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else text)


def fail_on_findings(error: "FoundError", as_json: bool) -> NoReturn:
    """Show what was found in the data and leave with 1."""
    lines = listed("", [str(found) for found in error.findings])
    lines.append(f"{error.what}: {len(error.findings)} problems in the data")
    emit({"findings": [found._asdict() for found in error.findings]}, as_json, "\n".join(lines))
    raise typer.Exit(1)


def listed(prefix: str, lines: Sequence[str]) -> list[str]:
    """Return the lines behind a prefix, the first of them where they are many."""
    more = [f"... and {len(lines) - _LISTED} more; --json lists all"] if len(lines) > _LISTED else []
    return [prefix + line for line in lines[:_LISTED]] + more


def gather(
    step: "Step", given: Mapping[str, Any], *, config: Path | None = None, overrides: list[str] | None = None
) -> "Config":
    """Return a step's settings: its defaults < the file < options that were given < `--set`."""
    from equipoise.config import apply_override, parse_config, parse_override, read_yaml

    data = read_yaml(config) if config else {}
    data |= {name: value for name, value in given.items() if value is not None}
    for item in overrides or ():
        apply_override(data, *parse_override(item))
    return parse_config(step.config, data, str(config or "command line"))


def tokens_text(used: list[dict[str, Any]]) -> str:
    """Return what the answers of servers took, `Usage.note` of each: tokens, and the cost where known."""
    prompt, completion = (sum(u[name] for u in used) for name in ("prompt_tokens", "completion_tokens"))
    text = f"{prompt} prompt and {completion} completion tokens"
    if uncounted := sum(u["uncounted"] for u in used):
        text += f" ({uncounted} answers came without a count)"
    costs = [u["cost"] for u in used if u["cost"] is not None]
    return text + (f", cost {sum(costs):.6g}" if costs else "")
