"""equipoise annotate: labels from judges and from people; other files register their commands on `app`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise.cli.common import (
    ConfigOption,
    ForceFlag,
    JsonFlag,
    OutOption,
    SetOption,
    emit,
    gather,
    tokens_text,
)
from equipoise.errors import ConfigError, near

app = typer.Typer(
    help="Label records with judges and with people, and settle what they say.", no_args_is_help=True
)

_JUDGES = ("guard", "scorer", "model", "endpoint")
_SPEC = "guard:DIR, scorer:DIR, model:NAME|DIR or endpoint:URL#MODEL."


@app.command()
def judge(
    file: Annotated[Path | None, typer.Argument(help="Exchanges or pairs.")] = None,
    *,
    out: OutOption,
    judge: Annotated[str | None, typer.Option("--judge", metavar="KIND:PLACE", help=_SPEC)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the annotator in the judgements.")] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help="is_safe, severity, categories, better, safer or overall. Repeatable."),
    ] = None,
    taxonomy: Annotated[str | None, typer.Option(help="Built-in name, or a .yaml file.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Let a guard, a scorer or a language model label the answers and compare those of pairs.

    What a judge does not answer is missing, never safe. One judge at a time; other judges write other files.
    """
    given = {"file": file, "name": name, "questions": question, "taxonomy": taxonomy}
    chosen = _judge_settings(judge) if judge is not None else []
    from equipoise.judges.run import JUDGE
    from equipoise.lineage import produce

    settings = gather(JUDGE, given, config=config, overrides=[*chosen, *(set_ or ())])
    outcome = produce(out, JUDGE, settings, force=force)
    result = {"out": str(out), "skipped": outcome.skipped, **outcome.manifest.notes}
    emit(result, as_json, _summary(result))


def _judge_settings(spec: str) -> list[str]:
    """Return the settings that `--judge KIND:PLACE` stands for, as `--set` takes them."""
    kind, _, place = spec.partition(":")
    if kind not in _JUDGES or not place:
        raise ConfigError(f"--judge: got '{spec}'{near(kind, _JUDGES)}; expected {_SPEC.rstrip('.')}")
    if kind != "endpoint":
        return [f"{kind}={json.dumps(place)}"]
    url, _, model = place.rpartition("#")
    if not url or not model:
        raise ConfigError(f"--judge: no model in '{spec}'; expected endpoint:URL#MODEL")
    return [f"endpoint.url={json.dumps(url)}", f"model={json.dumps(model)}"]


def _summary(result: dict[str, Any]) -> str:
    """Return one line: rows, what is missing and why, and how much the order of answers decided."""
    missing = [
        f"{name} {', '.join(f'{count} {reason}' for reason, count in reasons.items())}"
        for name, reasons in result["missing"].items()
    ]
    parts = [
        f"{result['rows']} rows judged by {result['judge']}, {result['judgements']} judgements",
        f"missing: {'; '.join(missing) or 'none'}",
    ]
    if result["position_bias"]:
        parts.append(f"position bias: {'; '.join(map(_bias_text, result['position_bias'].items()))}")
    if "usage" in result:
        parts.append(tokens_text([result["usage"]]))
    lines = f"wrote {result['out']}" if not result["skipped"] else f"{result['out']} was complete already"
    return f"{lines}\n{'. '.join(parts)}"


def _bias_text(item: tuple[str, dict[str, Any]]) -> str:
    name, bias = item
    flipped, first, shift = (bias[key] for key in ("flipped", "first", "shift"))
    toward = f", {shift['value']:+.2f} nats towards the first" if shift else ""
    return f"{name} {flipped['value']:.1%} flip with the order, {first['value']:.1%} name the first{toward}"
