"""A trained guard, and a trained scorer, as judges of records."""

import math
from collections.abc import Sequence

from pydantic import JsonValue

from equipoise.errors import ModelError
from equipoise.judges.judging import Judged, Opinion, answers_of, arrange, judgement
from equipoise.judges.questions import Preference
from equipoise.moderation.guard import Guard
from equipoise.protocols import Verdict
from equipoise.records import Choice, Exchange, Judgement, Labels, Pair, Score
from equipoise.rewards.learned import RewardCost, Scorer, ScorerEnsemble

_SAME = 1e-5
"""Scores nearer than this are one: in fp32 a row's last digits depend on its neighbours in a batch."""


class GuardJudge:
    """Labels every answer: safe, severity and categories, as `moderate` would. It compares no answers."""

    def __init__(self, guard: Guard, annotator: str) -> None:
        """Use a guard that was trained on responses; one that was not raises DataError."""
        guard.require("response")
        self.guard = guard
        self.annotator = annotator

    def __call__(self, records: Sequence[Judged]) -> list[list[Judgement]]:
        """Judge each answer in the context of its prompt."""
        exchanges = answers_of(records)
        verdicts = self.guard(exchanges)
        found = {
            exchange.id: judgement(self.annotator, exchange, self._opinion(verdict))
            for exchange, verdict in zip(exchanges, verdicts, strict=True)
        }
        return arrange(records, found, {})

    def _opinion(self, verdict: Verdict) -> Opinion:
        unsafe = verdict.unsafe_probability
        is_graded = len(self.guard.card.taxonomy.severities) > 2  # of two levels, 1 is not "minor"
        return Opinion(
            Labels(
                is_safe=verdict.is_safe,
                severity=verdict.severity if is_graded else None,
                categories=frozenset(verdict.categories),
            ),
            confidence=1 - unsafe if verdict.is_safe else unsafe,
            details={
                "judge": "guard",
                "taxonomy": self.guard.card.taxonomy.name,
                "probabilities": {
                    "is_safe": round(1 - unsafe, 6),
                    "severity": [round(p, 6) for p in verdict.severity_probabilities],
                    "categories": {name: round(p, 6) for name, p in verdict.category_probabilities.items()},
                },
                "truncated": verdict.truncated or None,
            },
        )


class ScorerJudge:
    """The cost's sign says whether an answer is safe; reward says which is better, cost which is safer."""

    def __init__(self, scorer: Scorer | ScorerEnsemble, annotator: str) -> None:
        """Use a loaded scorer; what it was not trained for it does not say."""
        self.scorer = scorer
        self.annotator = annotator

    def __call__(self, records: Sequence[Judged]) -> list[list[Judgement]]:
        """Score each answer in the context of its prompt; an exchange without a cost raises ModelError."""
        exchanges = answers_of(records)
        scores = {e.id: score for e, score in zip(exchanges, self.scorer(exchanges), strict=True)}
        labels = {e.id: self._label(e, cost) for e in exchanges if (cost := scores[e.id].cost) is not None}
        pairs = [record for record in records if isinstance(record, Pair)]
        if not labels and len(pairs) < len(records):
            raise ModelError(
                f"{self.annotator}: the scorer has no cost; expected one that is trained for it, or pairs"
            )
        chosen = {
            pair.id: self._prefer(pair, scores[f"{pair.id}#0"], scores[f"{pair.id}#1"]) for pair in pairs
        }
        return arrange(records, labels, chosen)

    def _label(self, exchange: Exchange, cost: Score) -> Judgement:
        safe = _sigmoid(-cost.harm)
        is_safe = cost.harm <= 0
        opinion = Opinion(
            Labels(is_safe=is_safe),
            confidence=safe if is_safe else 1 - safe,
            details={
                "judge": "scorer",
                "probabilities": {"is_safe": round(safe, 6)},
                "raw": {"cost": round(cost.value, 6)},
            },
        )
        return judgement(self.annotator, exchange, opinion)

    def _prefer(self, pair: Pair, first: RewardCost, second: RewardCost) -> Judgement:
        margins: dict[Preference, float] = {}  # above 0 where the first answer does more good, or less harm
        raw: dict[str, JsonValue] = {}
        if first.reward is not None and second.reward is not None:
            margins["better"] = second.reward.harm - first.reward.harm
            raw["reward"] = [round(first.reward.value, 6), round(second.reward.value, 6)]
        if first.cost is not None and second.cost is not None:
            margins["safer"] = second.cost.harm - first.cost.harm
            raw["cost"] = [round(first.cost.value, 6), round(second.cost.value, 6)]
        details: dict[str, JsonValue] = {
            "judge": "scorer",
            "probabilities": {name: round(_sigmoid(margin), 6) for name, margin in margins.items()},
            "raw": raw,
        }
        chosen = {name: _choice(margin) for name, margin in margins.items()}
        sure = min(_sigmoid(abs(margin)) for margin in margins.values())
        return judgement(self.annotator, pair, Opinion(None, chosen, sure, details))


def _choice(margin: float) -> Choice:
    if abs(margin) < _SAME:
        return "tie"
    return 0 if margin > 0 else 1


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
