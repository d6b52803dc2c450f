"""A guard and a scorer as judges: what they say equals what `moderate` and `score` say."""

import math
from pathlib import Path

import pytest
import torch

from equipoise.errors import DataError, ModelError
from equipoise.judges.learned import GuardJudge, ScorerJudge
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel, Target
from equipoise.models.scorer import ScorerCard, ScorerModel
from equipoise.moderation.guard import Guard
from equipoise.records import Exchange, Pair
from equipoise.rewards.learned import RewardCost, Scorer
from equipoise.taxonomy import load_taxonomy


def guard(encoder: Path, targets: tuple[Target, ...] = ("response",), taxonomy: str = "pku19") -> Guard:
    torch.manual_seed(3)
    card = GuardCard(
        taxonomy=load_taxonomy(taxonomy),
        backbone=str(encoder),
        layers=2,
        hidden=4,
        targets=targets,
        knows_refusals=False,
    )
    return Guard(GuardModel(card, load_encoder(encoder, device="cpu")))


def scorer(encoder: Path, trained: tuple[str, ...] = ("reward", "cost")) -> Scorer:
    torch.manual_seed(1)
    card = ScorerCard.model_validate(
        {"backbone": str(encoder), "trunk": "pooled", "layers": 2, "hidden": 4, "trained": trained}
    )
    return Scorer(ScorerModel(card, load_encoder(encoder, device="cpu")))


def many(exchanges: list[Exchange]) -> list[Exchange]:
    words = ["mix", "flour", "and", "water", "then", "wait", "until", "the", "dough", "has", "doubled"]
    return [
        exchanges[0].model_copy(update={"id": f"x{i}", "response": " ".join(words[i:])})
        for i in range(len(words))
    ]


def test_the_guard_says_what_moderation_says(tiny_encoder: Path, exchanges: list[Exchange]) -> None:
    judge, rows = guard(tiny_encoder), many(exchanges)
    middle = sorted(verdict.unsafe_probability for verdict in judge(rows))[len(rows) // 2]
    judge.card = judge.card.model_copy(update={"unsafe_threshold": middle})
    verdicts = judge(rows)
    assert {v.is_safe for v in verdicts} == {True, False}
    for verdict, (found,) in zip(verdicts, GuardJudge(judge, "gate")(rows), strict=True):
        assert found.labels is not None
        assert found.labels.is_safe == verdict.is_safe
        assert found.labels.severity == verdict.severity
        assert found.labels.categories == set(verdict.categories)
        assert found.labels.rated is None
        p = 1 - verdict.unsafe_probability if verdict.is_safe else verdict.unsafe_probability
        assert found.confidence == pytest.approx(p, abs=1e-6)
        probabilities = found.provenance["probabilities"]
        assert isinstance(probabilities, dict)
        assert probabilities["severity"] == pytest.approx(verdict.severity_probabilities, abs=1e-6)
        assert probabilities["categories"] == pytest.approx(verdict.category_probabilities, abs=1e-6)
        assert (found.annotator, found.licence) == ("gate", "MIT")
        assert "truncated" not in found.provenance


def test_the_guard_says_where_it_did_not_read_all(tiny_encoder: Path, exchanges: list[Exchange]) -> None:
    long = exchanges[0].model_copy(update={"response": "take a warm coat " * 400})
    ((found,),) = GuardJudge(guard(tiny_encoder), "gate")([long])
    assert found.provenance["truncated"] is True


def test_the_guard_labels_both_answers_of_a_pair_and_compares_none(
    tiny_encoder: Path, pairs: list[Pair]
) -> None:
    judge = guard(tiny_encoder)
    for pair, rows in zip(pairs, GuardJudge(judge, "gate")(pairs), strict=True):
        assert [row.subject for row in rows] == [f"{pair.id}#0", f"{pair.id}#1"]
        verdicts = judge([pair.exchange(0), pair.exchange(1)])
        assert [row.labels.is_safe for row in rows if row.labels] == [v.is_safe for v in verdicts]
        assert all((row.better, row.safer) == (None, None) for row in rows)


def test_a_guard_without_a_severity_scale_gives_no_severity(
    tiny_encoder: Path, exchanges: list[Exchange]
) -> None:
    judge = GuardJudge(guard(tiny_encoder, taxonomy="beavertails14"), "gate")
    for (row,) in judge(exchanges):
        assert row.labels is not None
        assert row.labels.is_safe is not None
        assert row.labels.severity is None
        assert row.provenance["taxonomy"] == "beavertails14"


def test_a_guard_for_prompts_only_is_no_judge_of_responses(tiny_encoder: Path) -> None:
    with pytest.raises(DataError, match="response: this guard was not trained to judge it"):
        GuardJudge(guard(tiny_encoder, ("prompt",)), "gate")


def test_the_sign_of_the_cost_says_whether_an_answer_is_safe(
    tiny_encoder: Path, exchanges: list[Exchange]
) -> None:
    score = scorer(tiny_encoder)
    rows = many(exchanges)
    costs = [found.cost.value for found in score(rows) if found.cost is not None]
    middle = sorted(costs)[len(costs) // 2]
    with torch.no_grad():
        score.model.heads.cost[-1].bias -= middle
    for found, (row,) in zip(score(rows), ScorerJudge(score, "scale")(rows), strict=True):
        assert found.cost is not None
        assert row.labels is not None
        assert row.labels.is_safe == (found.cost.value <= 0)
        assert (row.labels.severity, row.labels.categories) == (None, None)
        assert row.confidence == pytest.approx(1 / (1 + math.exp(-abs(found.cost.value))), abs=1e-6)


def test_reward_says_which_is_better_and_cost_which_is_safer(tiny_encoder: Path, pairs: list[Pair]) -> None:
    score = scorer(tiny_encoder)
    for pair, rows in zip(pairs, ScorerJudge(score, "scale")(pairs), strict=True):
        assert [row.subject for row in rows] == [f"{pair.id}#0", f"{pair.id}#1", pair.id]
        (r0, c0), (r1, c1) = _values(score([pair.exchange(0), pair.exchange(1)]))
        assert rows[2].better == (0 if r0 > r1 else 1)
        assert rows[2].safer == (0 if c0 < c1 else 1)
        sure = [1 / (1 + math.exp(-abs(gap))) for gap in (r0 - r1, c0 - c1)]
        assert rows[2].confidence == pytest.approx(min(sure), abs=1e-6)
        turned = pair.model_copy(update={"answers": pair.answers[::-1]})
        ((*_, other),) = ScorerJudge(score, "scale")([turned])
        assert (other.better, other.safer) == (1 - rows[2].better, 1 - rows[2].safer)  # type: ignore[operator]


def test_equal_answers_are_a_tie(tiny_encoder: Path, pairs: list[Pair]) -> None:
    same = pairs[0].model_copy(update={"answers": (pairs[0].answers[0],) * 2})
    ((*_, row),) = ScorerJudge(scorer(tiny_encoder), "scale")([same])
    assert (row.better, row.safer, row.confidence) == ("tie", "tie", 0.5)


@pytest.mark.parametrize(("trained", "silent"), [("reward", "safer"), ("cost", "better")])
def test_what_a_scorer_was_not_trained_for_it_does_not_say(
    tiny_encoder: Path, pairs: list[Pair], exchanges: list[Exchange], trained: str, silent: str
) -> None:
    judge = ScorerJudge(scorer(tiny_encoder, (trained,)), "scale")
    for *labels, row in judge(pairs):
        assert getattr(row, silent) is None
        assert {row.better, row.safer} & {0, 1}
        assert bool(labels) == (trained == "cost")
    if trained == "reward":
        with pytest.raises(ModelError, match="scale: the scorer has no cost; expected"):
            judge(exchanges)
    else:
        assert [len(rows) for rows in judge(exchanges)] == [1, 1, 1]


def _values(found: list[RewardCost]) -> list[tuple[float, float]]:
    return [(f.reward.value, f.cost.value) for f in found if f.reward is not None and f.cost is not None]
