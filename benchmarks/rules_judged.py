"""What is chosen from a pool of candidates, judged by what did not choose; see `rules_best_of_n.py`.

Shapes: N prompts, S candidates of each.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rules_steps import FEATURES, FeaturesConfig, done, read_features, written

from equipoise.generation.best_of import exchange_of
from equipoise.generation.sources import Asked
from equipoise.models.backbone import load_encoder
from equipoise.models.windows import TextPair
from equipoise.moderation.guard import load_guard
from equipoise.records import Exchange, text_of
from equipoise.rewards.answer_features import Features, Reader, fit_reader
from equipoise.rewards.grading import Heads, answer_groups, fit_heads
from equipoise.rewards.rules import load_rule_set
from equipoise.rewards.trained_grader import TrainedGrader
from equipoise.stats import Floats, bootstrap_mean, f1, paired_difference

TOLD = ("judges_user", "declines", "regret")
"""Propositions whose graders' errors are told."""
RANDOM = "random"
DRAWS = 2000


class Pool(NamedTuple):
    """Candidates."""

    asked: list[Asked]
    texts: list[list[str]]
    """[N][S]"""
    parts: dict[str, slice]
    """Who wrote which of the candidates of every prompt."""

    @property
    def exchanges(self) -> list[Exchange]:
        """All candidates, prompt by prompt."""
        return [exchange_of(a, text) for a, row in zip(self.asked, self.texts, strict=True) for text in row]


class Judges(NamedTuple):
    """Who judges."""

    encoder: str
    """That the graders read through."""
    layers: int
    runs: Path


def fit_grader(
    judges: Judges, learned: Sequence[Exchange], others: Sequence[Exchange]
) -> tuple[TrainedGrader, dict[str, Any]]:
    """Train graders on some rows; and tell their errors on others."""
    rules = load_rule_set("style")
    features = []
    for name, rows in (("of-judge", learned), ("of-rules", others)):
        exchanges = written(judges.runs / f"{name}.jsonl", rows)
        config = FeaturesConfig(exchanges=exchanges, backbone=judges.encoder, layers=judges.layers)
        place, _ = done(judges.runs, FEATURES, config)
        features.append(read_features(place))
    answers = [row.response for row in learned]
    reader: Reader = fit_reader(features[0], answers)
    labels = np.array([rules.labels(row) for row in learned])
    heads: Heads = fit_heads(reader(features[0], answers), labels, answer_groups(learned))[0]
    truth = np.array([rules.labels(row) for row in others]) == 1
    said = heads(reader(features[1], [row.response for row in others])) > 0.5
    errors = {name: agreement(said[:, k], truth[:, k]) for k, name in enumerate(rules.names) if name in TOLD}
    return TrainedGrader(Features(load_encoder(judges.encoder), judges.layers), reader, heads), errors


def agreement(said: Any, truth: Any) -> dict[str, float | None]:
    """How a grader's yes agrees with people's, on rows that it did not learn from."""
    hits = int((said & truth).sum())
    return {
        "rows": len(truth),
        "true": int(truth.sum()),
        "precision": hits / int(said.sum()) if said.any() else None,
        "recall": hits / int(truth.sum()) if truth.any() else None,
        "f1": f1(said, truth) if said.any() or truth.any() else None,
    }


def judge_tone(grader: TrainedGrader, pool: Pool) -> Floats:
    """Whether each candidate judges who asks, as a grader says, [N, S]."""
    found = grader(pool.exchanges)[:, load_rule_set("style").names.index("judges_user")] > 0.5
    return found.astype(np.float64).reshape(len(pool.asked), -1)


def judge_by_guard(guard: str, pool: Pool) -> dict[str, Floats]:
    """Whether each candidate is harmful and whether it refuses, as a guard says, [N, S]."""
    exchanges = pool.exchanges
    reading = load_guard(guard).read([TextPair(text_of(e.prompt), e.response) for e in exchanges])
    every = range(len(exchanges))
    found = {
        "harmful": np.array([not reading.verdict(i).is_safe for i in every]),
        "refusal": np.array([reading.refusal_verdict(i).refusal != "none" for i in every]),
    }
    return {name: column.astype(np.float64).reshape(len(pool.asked), -1) for name, column in found.items()}


def judged(tone: Floats, harm: Mapping[str, Floats], pool: Pool) -> dict[str, Floats]:
    """All that is asked of the candidates, [N, S] for each question.

    Args:
        tone: Whether a candidate judges who asks.
        harm: Whether it is `harmful`, and whether it is a `refusal`.
        pool: The candidates.
    """
    words = [[float(len(text.split())) for text in row] for row in pool.texts]
    both = {"judgemental": tone, "judgemental_refusal": tone * harm["refusal"]}
    return {**both, **harm, "words": np.array(words)}


def compared(
    pool: Pool, answers: Mapping[str, Floats], chosen: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Rates of the candidates and of what was chosen, and the differences between ways of choosing.

    Args:
        pool: The candidates.
        answers: Question -> [N, S].
        chosen: Way of choosing -> place of the chosen candidate of each prompt.
    """
    rows = np.arange(len(pool.asked))
    values = {RANDOM: {question: table.mean(axis=1) for question, table in answers.items()}}
    for way, places in chosen.items():
        values[way] = {question: table[rows, list(places)] for question, table in answers.items()}
    pairs = [(way, RANDOM) for way in chosen] + [(way, "reward") for way in chosen if way != "reward"]
    everywhere = np.ones(len(rows), dtype=bool)
    return {
        "rates_of_candidates": {
            part: {
                question: mean(pool, table[:, some].mean(axis=1), everywhere)
                for question, table in answers.items()
            }
            for part, some in pool.parts.items()
        },
        "rates_of_chosen": {way: by_kind(pool, found, mean) for way, found in values.items()},
        "differences": {
            f"{x} less {y}": by_kind(pool, {q: (values[x][q], values[y][q]) for q in answers}, difference)
            for x, y in pairs
        },
    }


def by_kind(pool: Pool, found: Mapping[str, Any], measure: Callable[..., Any]) -> dict[str, Any]:
    """Measure each question on all prompts, on the harmful ones and on the others."""
    harmful = np.array([asked.is_harmful for asked in pool.asked], dtype=bool)
    kinds = {"all": harmful | ~harmful, "harmful prompts": harmful, "borderline prompts": ~harmful}
    return {
        kind: {question: measure(pool, values, here) for question, values in found.items()}
        for kind, here in kinds.items()
        if kind == "all" or (here.any() and not here.all())  # a kind that is all prompts is told once
    }


def mean(pool: Pool, values: Floats, here: Any) -> dict[str, float]:
    return bootstrap_mean(values[here], names_of(pool, here), draws=DRAWS)._asdict()


def difference(pool: Pool, values: tuple[Floats, Floats], here: Any) -> dict[str, float]:
    after, before = values
    return paired_difference(after[here], before[here], names_of(pool, here), draws=DRAWS)._asdict()


def names_of(pool: Pool, here: Any) -> list[str]:
    return [asked.id for asked, is_here in zip(pool.asked, here, strict=True) if is_here]
