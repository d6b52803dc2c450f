"""Commands that use a trained guard or scorer: `moderate`, `refusals`, `score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.cli.common import ForceFlag, JsonFlag, SetOption, emit, gather
from equipoise.errors import ConfigError
from equipoise.extras import require

if TYPE_CHECKING:
    from equipoise.lineage import Step

FileOption = Annotated[Path | None, typer.Option("--file", help="JSON Lines of rows.")]
OutFile = Annotated[Path | None, typer.Option("--out", help="JSON Lines to write.")]
GuardOption = Annotated[
    Path | None, typer.Option("--guard", help="Folder of a trained guard; the shipped one if not given.")
]
PolicyOption = Annotated[
    str | None, typer.Option("--policy", help="Name of a policy of the guard, or a YAML file of one.")
]


def moderate(
    *,
    text: Annotated[str | None, typer.Argument(help="One text to judge.")] = None,
    response: Annotated[str | None, typer.Option(help="Judge this response to TEXT instead.")] = None,
    guard: GuardOption = None,
    policy: PolicyOption = None,
    file: FileOption = None,
    out: OutFile = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Judge a text, or every row of a file: safe or not, severity 0 to 3, categories.

    A row with prompt and response has its response judged in context.
    """
    require("equipoise moderate", "train")
    from equipoise.models.features import TextPair
    from equipoise.moderation.batch import MODERATE, judge_texts, policy_of
    from equipoise.moderation.default import NAME
    from equipoise.moderation.guard import load_guard

    if text is not None:
        if file is not None or out is not None or set_:
            raise ConfigError("moderate: got a text and --file, --out or --set; expected one or the other")
        if not text.strip():
            raise ConfigError("moderate: the text is empty")
        loaded = load_guard(guard or NAME)
        found = judge_texts(loaded, [TextPair(text, response)], policy_of(loaded, policy))[0]
        emit(found, as_json, _verdict_text(found))
        return
    if response is not None:
        raise ConfigError("moderate: got --response without TEXT, the prompt that it answers; expected both")
    given = {"guard": guard, "file": file, "policy": policy}
    _batch(MODERATE, given, out=out, overrides=set_, force=force, as_json=as_json)


def refusals(
    *,
    file: FileOption = None,
    out: OutFile = None,
    guard: GuardOption = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Say of every response whether it declines: none, partial or full."""
    require("equipoise refusals", "train")
    from equipoise.moderation.batch import REFUSALS_STEP

    given = {"guard": guard, "file": file}
    _batch(REFUSALS_STEP, given, out=out, overrides=set_, force=force, as_json=as_json)


def score(
    *,
    file: FileOption = None,
    out: OutFile = None,
    scorer: Annotated[Path | None, typer.Option(help="Folder of a trained scorer.")] = None,
    set_: SetOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Give every row a reward (higher is better) and a cost (above 0 is unsafe)."""
    require("equipoise score", "train")
    from equipoise.rewards.batch import SCORE

    given = {"scorer": scorer, "file": file}
    _batch(SCORE, given, out=out, overrides=set_, force=force, as_json=as_json)


def _batch(
    step: "Step",
    given: dict[str, Any],
    *,
    out: Path | None,
    overrides: list[str] | None,
    force: bool,
    as_json: bool,
) -> None:
    from equipoise.lineage import produce

    if given["file"] is None or out is None:
        raise ConfigError(f"{step.name}: expected --file IN and --out OUT")
    outcome = produce(out, step, gather(step, given, overrides=overrides), force=force)
    notes = outcome.manifest.notes
    result = {"out": str(out), "skipped": outcome.skipped, **notes}
    emit(result, as_json, f"{notes['rows']} rows, {notes['errors']} errors\nwrote {out}")
    if notes["errors"]:
        raise typer.Exit(1)


def _verdict_text(found: dict[str, Any]) -> str:
    word = f"unsafe, severity {found['severity']}"
    if found["is_safe"]:
        word = "for review" if found.get("review") or found["truncated"] else "safe"
    lines = [f"{found['target']}: {word} (P(unsafe) {found['unsafe_probability']:.3f})"]
    lines += [f"  {name} {found['category_probabilities'][name]:.3f}" for name in found["harm_categories"]]
    if found.get("review"):
        lines.append("  the policy is not sure: a person should look")
    if found["truncated"]:
        lines.append("  the text was too long and was judged in part")
    if found["context_truncated"]:
        lines.append("  the prompt before it was too long: its beginning and its end were read")
    return "\n".join(lines)
