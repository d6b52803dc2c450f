"""How well a guard and a scorer read labelled rows that they have not seen, beside a baseline.

Every comparison is paired on the same rows; intervals come from a bootstrap over prompts. The
baseline is TF-IDF with logistic regression on the same training rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.config import Config, InputPath
from equipoise.data.io import read_exchanges, read_records
from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.evaluation.baseline import safer_scores, unsafe_scores
from equipoise.evaluation.files import plain, write_json
from equipoise.evaluation.guard_quality import TITLES, Quality, measure_quality
from equipoise.lineage import Run, Step, write_text
from equipoise.moderation.default import GuardPath
from equipoise.protocols import RefusalVerdict, Verdict
from equipoise.records import Exchange, Pair, text_of
from equipoise.stats import Estimate, auroc, bootstrap, bootstrap_mean, f1, paired_difference

Floats = NDArray[np.float64]


class DetectionConfig(Config):
    """Settings of the measurement."""

    guard: GuardPath
    scorer: InputPath | None = None
    train_exchanges: tuple[InputPath, ...] = ()
    """What the guard was trained on; the baseline learns from the same rows."""
    train_pairs: tuple[InputPath, ...] = ()
    """Answers of these pairs too; their `safer` also trains the baseline's ranking."""
    test_exchanges: tuple[InputPath, ...] = ()
    test_pairs: tuple[InputPath, ...] = ()
    """Held-out pairs; their answers are exchanges too."""
    test_rewards: tuple[InputPath, ...] = ()
    """Held-out pairs with `better`, for the reward."""
    draws: Annotated[int, Field(ge=100)] = 2000
    """Resamplings behind every interval."""


class Separation(NamedTuple):
    """How a guard tells unsafe responses from safe ones."""

    auroc: Estimate
    """Of P(unsafe)."""
    baseline_auroc: Estimate
    auroc_gain: Estimate
    """Guard less baseline, paired."""
    f1: Estimate
    """At the guard's own threshold."""
    false_positive_rate: Estimate


class Ordering(NamedTuple):
    """Share of pairs whose less safe answer gets the higher cost."""

    accuracy: Estimate
    baseline_accuracy: Estimate
    gain: Estimate
    """Scorer less baseline, paired."""


class Detection(NamedTuple):
    """What was measured; every estimate is on held-out rows."""

    guard: Separation
    ordering: Ordering | None
    reward_ordering: Estimate | None
    """Share of pairs whose better answer gets the higher reward."""
    quality: Quality = Quality()
    """Of the guard, on the rows that carry the labels for it."""


def measure_guard(
    verdicts: Sequence[Verdict], train: Sequence[Exchange], test: Sequence[Exchange], *, draws: int
) -> Separation:
    """Measure verdicts on held-out responses, beside the baseline that learned from the training rows."""
    unsafe = np.array([not e.is_safe for e in test])
    prompts = [normalise_prompt(text_of(e.prompt)) for e in test]
    ours = np.array([v.unsafe_probability for v in verdicts])
    flagged = np.array([not v.is_safe for v in verdicts])
    theirs = unsafe_scores(train, test)

    def boot(statistic: Any) -> Estimate:
        return bootstrap(statistic, prompts, draws=draws)

    safe_rows = np.flatnonzero(~unsafe)
    return Separation(
        boot(lambda rows: auroc(ours[rows], unsafe[rows])),
        boot(lambda rows: auroc(theirs[rows], unsafe[rows])),
        boot(lambda rows: auroc(ours[rows], unsafe[rows]) - auroc(theirs[rows], unsafe[rows])),
        boot(lambda rows: f1(flagged[rows], unsafe[rows])),
        bootstrap_mean(flagged[safe_rows].astype(float), [prompts[i] for i in safe_rows], draws=draws),
    )


def measure_ordering(costs: Floats, train: Sequence[Pair], test: Sequence[Pair], *, draws: int) -> Ordering:
    """Order held-out pairs by cost [N, 2], and by the baseline."""
    prompts = [normalise_prompt(text_of(p.prompt)) for p in test]
    second_is_safer = np.array([p.safer == 1 for p in test])
    ours = _right(costs[:, 0] - costs[:, 1], second_is_safer)
    theirs = _right(safer_scores(train, test), second_is_safer)
    return Ordering(
        bootstrap_mean(ours, prompts, draws=draws),
        bootstrap_mean(theirs, prompts, draws=draws),
        paired_difference(ours, theirs, prompts, draws=draws),
    )


def measure_reward(rewards: Floats, test: Sequence[Pair], *, draws: int) -> Estimate:
    """Share of held-out pairs whose better answer has the higher reward [N, 2], ties half."""
    right = _right(rewards[:, 1] - rewards[:, 0], np.array([p.better == 1 for p in test]))
    return bootstrap_mean(right, [normalise_prompt(text_of(p.prompt)) for p in test], draws=draws)


def _right(gap: Floats, second_is_preferred: NDArray[np.bool_]) -> Floats:
    """1 where the sign of the gap is that of the preference, 0.5 for a tie, [N]."""
    signed = np.where(second_is_preferred, gap, -gap)
    right: Floats = (np.sign(signed) + 1) / 2
    return right


def detect(config: DetectionConfig, run: Run) -> None:
    """Measure, and write `detection.json`, `detection.md` and `card.md`."""
    train = read_exchanges(config.train_exchanges, config.train_pairs)
    test = read_exchanges(config.test_exchanges, config.test_pairs)
    rewards = read_exchanges((), config.test_rewards)
    _apart(train, test + rewards)
    run.licences |= {e.licence for e in test + rewards}
    train = [e for e in train if e.is_safe is not None]
    known = [i for i, e in enumerate(test) if e.is_safe is not None]
    if not train or not known:
        raise DataError("no labelled rows to train the baseline on, or none to test; expected is_safe")
    verdicts, refusals = _read(config.guard, test)
    guard = measure_guard([verdicts[i] for i in known], train, [test[i] for i in known], draws=config.draws)
    ordering, reward = _measure_scorer(config) if config.scorer is not None else (None, None)
    quality = measure_quality(test, verdicts, refusals, draws=config.draws)
    result = Detection(guard, ordering, reward, quality)
    write_json(run.out / "detection.json", plain(result))
    write_text(run.out / "detection.md", detection_text(result))
    run.notes |= {"train": len(train), "test": len(known)}
    write_text(run.card, detection_card(config, run, result))


def _read(folder: Path, rows: Sequence[Exchange]) -> tuple[list[Verdict], list[RefusalVerdict] | None]:
    """Judge rows in one pass; no refusals of a guard that knows of none."""
    from equipoise.models.windows import TextPair
    from equipoise.moderation.guard import load_guard

    guard = load_guard(folder)
    reading = guard.read([TextPair(text_of(row.prompt), row.response) for row in rows])
    verdicts = [reading.verdict(i) for i in range(len(rows))]
    if not guard.card.knows_refusals:
        return verdicts, None
    return verdicts, [reading.refusal_verdict(i) for i in range(len(rows))]


def _measure_scorer(config: DetectionConfig) -> tuple[Ordering | None, Estimate | None]:
    from equipoise.rewards.learned import load_scorer

    assert config.scorer is not None
    scorer = load_scorer(config.scorer)

    def scores(pairs: Sequence[Pair], head: str) -> Floats:
        found = scorer([p.exchange(k) for p in pairs for k in (0, 1)])
        return np.array([getattr(score, head).value for score in found]).reshape(-1, 2)

    ordering = reward = None
    pairs = [p for p in _pairs(config.test_pairs) if p.safer in (0, 1)]
    if pairs and "cost" in scorer.card.trained:
        train = [p for p in _pairs(config.train_pairs) if p.safer in (0, 1)]
        ordering = measure_ordering(scores(pairs, "cost"), train, pairs, draws=config.draws)
    pairs = [p for p in _pairs(config.test_rewards) if p.better in (0, 1)]
    if pairs and "reward" in scorer.card.trained:
        reward = measure_reward(scores(pairs, "reward"), pairs, draws=config.draws)
    return ordering, reward


def detection_text(found: Detection) -> str:
    """Return the measurement as a Markdown table."""
    guard, ordering = found.guard, found.ordering
    rows: list[tuple[str, Estimate, Estimate | None, Estimate | None]] = [
        ("unsafe responses, AUROC", guard.auroc, guard.baseline_auroc, guard.auroc_gain),
        ("unsafe responses, F1", guard.f1, None, None),
        ("safe responses flagged", guard.false_positive_rate, None, None),
    ]
    if ordering is not None:
        name = "safer answer of a pair, accuracy"
        rows.append((name, ordering.accuracy, ordering.baseline_accuracy, ordering.gain))
    if found.reward_ordering is not None:
        rows.append(("better answer of a pair, accuracy", found.reward_ordering, None, None))
    named = zip(found.quality._fields, found.quality, strict=True)
    rows += [(TITLES[name], value, None, None) for name, value in named if value is not None]
    lines = ["| on held-out rows | equipoise | TF-IDF | difference | n |", "|---|---|---|---|---|"]
    for name, ours, theirs, gain in rows:
        lines.append(f"| {name} | {ours} | {theirs or ''} | {gain or ''} | {ours.n} |")
    return "\n".join(lines) + "\n"


def detection_card(config: DetectionConfig, run: Run, found: Detection) -> str:
    """Return the card of the measurement as Markdown."""
    models = [config.guard.name, *([config.scorer.name] if config.scorer else [])]
    lines = [f"# Detection by {' and '.join(models)}", "", detection_text(found)]
    lines += [
        f"- baseline: TF-IDF and logistic regression, trained on {run.notes['train']} labelled responses"
    ]
    lines += [f"- measured on {run.notes['test']} labelled responses, none to a prompt of the training rows"]
    lines += [f"- intervals: 95 %, {config.draws} resamplings of whole prompts"]
    lines += [f"- licences: {', '.join(sorted(run.licences)) or 'none stated'}", "", "## Limits", ""]
    lines += ["The labels of the test rows are taken for the truth. Held-out rows of the same data sets say"]
    lines += ["little of text of another kind; the baseline says how hard these rows are.", ""]
    return "\n".join(lines)


def _pairs(paths: Sequence[Path]) -> list[Pair]:
    return [pair for path in paths for pair in read_records(path, Pair)]


def _apart(train: Sequence[Exchange], test: Sequence[Exchange]) -> None:
    seen = {normalise_prompt(text_of(e.prompt)) for e in train}
    shared = [e.id for e in test if normalise_prompt(text_of(e.prompt)) in seen]
    if shared:
        raise DataError(
            f"{len(shared)} test rows have a prompt of the training rows, first {shared[0]};"
            " split by prompt with `equipoise data split`"
        )


DETECTION = Step("evaluate.detection", 3, detect, config=DetectionConfig)
