"""The model card of a training run, written by the program from what it did."""

from collections.abc import Mapping

from equipoise.lineage import Run, write_text
from equipoise.records import Polarity

_LIMITS = """## Limits

Evaluated on English, single-turn text only, until shown otherwise. A model's judgement is an
estimate: see the evaluation report for its error on labelled rows. Settings are in `config.yaml`,
inputs by content hash in `manifest.json`."""


def model_card(
    run: Run,
    kind: str,
    backbone: str,
    about: str,
    *,
    polarity: dict[str, Polarity] | None = None,
    constraints: Mapping[str, str] | None = None,
) -> None:
    """Write `card.md` into the run's folder.

    Args:
        run: The run whose notes and licences are told.
        kind: What it is, for example `Guard`.
        backbone: The model it stands on.
        about: One clause on what it says or does.
        polarity: Which way each score is good, for models that score.
        constraints: What was held how well, by name, for policies under constraints.
    """
    lines = [f"# {kind} on {backbone}", "", f"{about[0].upper()}{about[1:]}.", "", "## Training data", ""]
    lines += [f"- rows: {run.notes.get('rows', 'unknown')}"]
    lines += [f"- licences: {', '.join(sorted(run.licences)) or 'none'}"]
    if "truncated" in run.notes:
        lines += [f"- texts that do not fit their windows, read in part: {run.notes['truncated']}"]
    if polarity:
        lines += ["", "## Polarity", ""]
        lines += [f"- {name}: {way.replace('_', ' ')}" for name, way in polarity.items()]
    if constraints:
        lines += ["", "## Constraints", "", *(f"- {name}: {told}" for name, told in constraints.items())]
    write_text(run.out / "card.md", "\n".join([*lines, "", _LIMITS, ""]))
