"""The front as a run of its own: `sweep.json`, `sweep.md` and `sweep.svg` from finished evaluations."""

import math
from typing import Annotated

from pydantic import Field, model_validator

from equipoise.config import Config, InputPath
from equipoise.evaluation.files import plain, write_json
from equipoise.evaluation.front import Candidate, Front, Helpfulness, measure_front
from equipoise.evaluation.front_plot import front_svg
from equipoise.evaluation.metrics import DRAWS, LOW_POWER
from equipoise.evaluation.rows import load_run
from equipoise.lineage import Run, Step, write_text

FILES = ("sweep.json", "sweep.md", "sweep.svg")
"""What the step writes."""

BASE = "base"
"""Name of the base among the runs."""


class FrontConfig(Config):
    """Finished evaluations of one recipe under several values of one setting."""

    knob: str
    """The setting that was turned."""
    evaluations: Annotated[dict[str, InputPath], Field(min_length=1)]
    """By value of the knob."""
    base: InputPath | None = None
    """The evaluation of the model before; the reference, unless one is given."""
    reference: tuple[float, float] | None = None
    """Helpfulness and harmlessness from which the hypervolume is measured."""
    helpfulness: Helpfulness | None = None
    """None takes the reward on benign prompts where it was measured, else the truly safe share."""
    failed: dict[str, str] = {}
    """Values whose run failed, and how."""
    draws: Annotated[int, Field(ge=100)] = DRAWS
    """Of prompts, behind every interval."""
    seed: int = 0

    @model_validator(mode="after")
    def _is_measured_from_somewhere(self) -> "FrontConfig":
        if self.base is None and self.reference is None:
            raise ValueError("reference: got none, and no base; expected HELPFULNESS,HARMLESSNESS")
        if BASE in self.evaluations and self.base is not None:
            raise ValueError(f"evaluations: {BASE} is the name of the base; expected another")
        return self


def build_front(config: FrontConfig, run: Run) -> None:
    """Write the front and its plot."""
    folders = {BASE: config.base} if config.base is not None else {}
    runs = [load_run(path)._replace(name=name) for name, path in (folders | config.evaluations).items()]
    front = measure_front(
        runs,
        helpfulness=config.helpfulness,
        reference=config.reference,
        draws=config.draws,
        seed=config.seed,
    )
    run.licences |= {name for each in runs for name in each.manifest.licences}
    run.notes |= {
        "hypervolume": str(front.hypervolume),
        "on_front": [each.name for each in front.candidates if each.is_on_front],
        "failed": list(config.failed),
    }
    keys = {each.name: each.manifest.key for each in runs}
    told = {"knob": config.knob, **plain(front), "failed": config.failed, "evaluations": keys}
    write_json(run.out / "sweep.json", told)
    write_text(run.out / "sweep.md", front_text(front, config.knob, config.failed) + "\n![](sweep.svg)\n")
    write_text(run.out / "sweep.svg", front_svg(front, config.knob))


def front_text(front: Front, knob: str, failed: dict[str, str]) -> str:
    """Return the front as Markdown that also reads well on a terminal."""
    whose = f"the numbers of {front.reference_run}" if front.reference_run else "the reference"
    origin = f"helpfulness {front.reference[0]:.3f}, harmlessness {front.reference[1]:.3f}"
    runs = [(each.name, *_cells(each)) for each in front.candidates]
    head = (f"`{knob}`", "helpfulness", "harmlessness", "front", "in draws")
    lines = [
        f"# Trade-off over `{knob}`",
        "",
        f"- helpfulness: {front.helpfulness.lower()}",
        f"- harmlessness: {front.harmlessness.lower()}, share",
        f"- prompts: {front.harmful_prompts} harmful, {front.benign_prompts} benign",
        f"- hypervolume: {front.hypervolume}, the area that the runs win over {whose} ({origin})",
        *(f"- failed: {value}: {why}" for value, why in failed.items()),
        "",
        *_table([head, *runs]),
        "",
        "More is better in both. Intervals: 95 %, over prompts that all runs share. `in draws`: the share of"
        " draws of prompts in which no other run beats this one. Chance adds to a hypervolume, so one whose"
        " interval begins near 0 shows nothing.",
    ]
    if min(front.harmful_prompts, front.benign_prompts) < LOW_POWER:
        lines += ["", f"Fewer than {LOW_POWER} prompts of a kind: this rests on little."]
    return "\n".join(lines) + "\n"


def _cells(each: Candidate) -> tuple[str, ...]:
    share = "" if math.isnan(each.front_share) else f"{100 * each.front_share:.0f}%"
    return str(each.helpfulness), str(each.harmlessness), "yes" if each.is_on_front else "", share


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


FRONT = Step("sweep", 1, build_front, config=FrontConfig)
