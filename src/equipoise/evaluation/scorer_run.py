"""The measurement of a scorer on held-out pairs as a step of its own, and as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from equipoise.config import Config, InputPath
from equipoise.data.io import read_exchanges, read_records
from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.evaluation.files import write_json
from equipoise.evaluation.pair_scores import LengthBias
from equipoise.evaluation.scorer_quality import CostQuality, ScorerQuality, measure_scorer
from equipoise.lineage import Run, Step, write_text
from equipoise.progress import say
from equipoise.records import Exchange, Pair, text_of
from equipoise.stats import Estimate, Floats


class ScorerQualityConfig(Config):
    """Settings of the measurement."""

    scorer: InputPath
    """Folder of a scorer."""
    pairs: tuple[InputPath, ...] = Field(min_length=1)
    """Held-out pairs."""
    train_pairs: tuple[InputPath, ...] = ()
    """What the scorer was trained on; a prompt that is in both is an error."""
    train_exchanges: tuple[InputPath, ...] = ()
    """Single answers that it was trained on too."""
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of safe answers that the threshold on the cost may flag."""
    draws: Annotated[int, Field(ge=100)] = 2000
    """Resamplings behind every interval."""


def assess_scorer(config: ScorerQualityConfig, run: Run) -> None:
    """Measure, and write `scorer.json`, `scorer.md` and `card.md`.

    Raises:
        DataError: No pair to measure on, or one with a prompt that was trained on.
    """
    pairs = [pair for path in config.pairs for pair in read_records(path, Pair)]
    if not pairs:
        raise DataError("pairs: no pair to measure on; expected one at least")
    _refuse_shared(read_exchanges(config.train_exchanges, config.train_pairs), pairs)
    run.licences |= {pair.licence for pair in pairs}
    scores = _scores(config.scorer, pairs)
    found = measure_scorer(
        pairs, **scores, false_positive_rate=config.false_positive_rate, draws=config.draws
    )
    for line in found.warnings:
        say(f"warning: {line}")
    write_json(run.out / "scorer.json", found)
    write_text(run.out / "scorer.md", scorer_text(found))
    run.notes |= {"pairs": len(pairs), "warnings": list(found.warnings)}
    write_text(run.card, scorer_card(config, run, found))


def scorer_text(found: ScorerQuality) -> str:
    """Return the measurement as Markdown tables."""
    parts = [f"**Warning: {line}.**" for line in found.warnings]
    if found.cost is not None:
        parts += _cost(found.cost)
    if found.reward is not None:
        parts += [_ordering("better answer of a pair has the higher reward", found.reward.ordering)]
        parts += [_length("reward", found.reward.length)]
    return "\n\n".join(parts) + "\n"


def scorer_card(config: ScorerQualityConfig, run: Run, found: ScorerQuality) -> str:
    """Return the card of the measurement as Markdown."""
    given = config.train_pairs or config.train_exchanges
    apart = "none to a prompt that was trained on, as far as given" if given else "training rows not given"
    lines = [f"# Quality of the scorer {config.scorer.name}", "", scorer_text(found)]
    lines += [f"- measured on {run.notes['pairs']} pairs, {apart}"]
    lines += ["- polarity: a reward is better when higher, a cost is worse; above 0 it means unsafe"]
    lines += [f"- intervals: 95 %, {config.draws} resamplings of whole prompts"]
    lines += [f"- licences: {', '.join(sorted(run.licences)) or 'none stated'}", "", "## Limits", ""]
    lines += ["The labels of the pairs are taken for the truth. Of two answers that are equally safe the"]
    lines += ["label `safer` is close to a coin toss, so read the strata and not the total. Length is in"]
    lines += ["characters; a score may follow length because the labels do.", ""]
    return "\n".join(lines)


def _refuse_shared(train: Sequence[Exchange], test: Sequence[Pair]) -> None:
    seen = {normalise_prompt(text_of(exchange.prompt)) for exchange in train}
    shared = [pair.id for pair in test if normalise_prompt(text_of(pair.prompt)) in seen]
    if shared:
        raise DataError(
            f"{len(shared)} pairs have a prompt that was trained on, first {shared[0]};"
            " split by prompt with `equipoise data split`"
        )


def _scores(folder: Path, pairs: Sequence[Pair]) -> dict[str, Floats | None]:
    from equipoise.rewards.learned import load_scorer

    scorer = load_scorer(folder)
    found = scorer([pair.exchange(k) for pair in pairs for k in (0, 1)])

    def column(head: str) -> Floats | None:
        if head not in scorer.card.trained:
            return None
        return np.array([getattr(score, head).value for score in found]).reshape(-1, 2)

    return {"rewards": column("reward"), "costs": column("cost")}


def _cost(cost: CostQuality) -> list[str]:
    parts = [_ordering("less safe answer of a pair has the higher cost", cost.ordering)]
    rows: list[tuple[str, Estimate | None]] = []
    if cost.sign is not None:
        rows += [
            ("cost above 0 exactly where unsafe, accuracy", cost.sign.accuracy),
            ("unsafe against safe, AUROC", cost.sign.auroc),
            ("safe answers with a cost above 0", cost.sign.false_positive_rate),
            ("unsafe answers with a cost above 0", cost.sign.recall),
        ]
    if cost.operating is not None:
        name = f"threshold that flags {cost.operating.wanted:.3g} of the safe answers"
        rows += [
            (name, cost.operating.threshold),
            ("safe answers flagged by it, prompts apart", cost.operating.false_positive_rate),
            ("unsafe answers flagged by it, prompts apart", cost.operating.recall),
        ]
    if rows:
        parts.append(_table("single answers", rows))
    if cost.calibration is not None:
        told = cost.calibration
        gap = told.squared
        lines = ["| sigmoid(cost) as P(unsafe): from | to | mean | observed | n |", "|---|---|---|---|---|"]
        lines += [
            f"| {b.low:.3f} | {b.high:.3f} | {b.predicted:.3f} | {b.observed:.3f} | {b.n} |"
            for b in told.bins
        ]
        about = (
            f"Expected calibration error {told.naive:.3f}, corrected {told.corrected:.3f} (upper 95 % bound"
            f" {told.upper:.3f}), mean squared gap {gap.value:.4f} [{gap.low:.4f}, {gap.high:.4f}]."
        )
        parts += ["\n".join(lines), about]
    return [*parts, _length("cost", cost.length)]


def _ordering(title: str, strata: dict[str, Estimate]) -> str:
    return _table(
        title, [(f"{name} pairs" if name == "all" else name, value) for name, value in strata.items()]
    )


def _length(head: str, length: LengthBias) -> str:
    return _table(
        f"{head} and length",
        [
            ("rank correlation over all answers", length.overall),
            ("within pairs (tau)", length.within_pairs),
            ("the labels' own, within pairs", length.labels_within_pairs),
            ("accuracy where the shorter answer is preferred", length.shorter_preferred),
            ("accuracy where the longer answer is preferred", length.longer_preferred),
        ],
    )


def _table(title: str, rows: Sequence[tuple[str, Estimate | None]]) -> str:
    lines = [f"| {title} | value [95 %] | n | prompts |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {value} | {value.n} | {value.clusters} |" for name, value in rows if value is not None
    ]
    return "\n".join(lines)


SCORER_QUALITY = Step("evaluate.scorer", 1, assess_scorer, config=ScorerQualityConfig)
