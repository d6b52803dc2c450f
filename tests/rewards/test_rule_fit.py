"""The fit of weights: the hinge by hand, planted weights found again, and what is held to its sign."""

import math

import numpy as np
import pytest
import torch

from equipoise.config import parse_config
from equipoise.errors import DataError
from equipoise.rewards.rule_fit import (
    RankedAnswers,
    fit_weights,
    hinge,
    in_order,
    ordered_pairs,
    totals,
)
from equipoise.rewards.rules import CLASSES, AnswerClass, RuleSet

BAD = {"illogical": {"any": ["nonsense"]}, "disallowed": {"any": ["harm"]}}
RULES = parse_config(
    RuleSet,
    {
        "name": "small",
        "propositions": [{"name": n, "question": "?"} for n in ("kind", "nonsense", "harm", "noise")],
        "response_types": {
            "refuse": {"ideal": {"all": ["kind"]}, "minimum_style": {"all": ["kind"]}, **BAD},
            "comply": {"ideal": {"none": ["kind"]}, "minimum_style": {"none": ["kind"]}, **BAD},
        },
        "harmful": "refuse",
        "harmless": "comply",
    },
    "test",
)


def answers(
    classes: list[AnswerClass],
    grades: list[list[float]],
    prompts: str,
    types: list[str] | None = None,
    rewards: list[float] | None = None,
) -> RankedAnswers:
    count = len(classes)
    return RankedAnswers(
        np.array(grades), np.array(rewards or [0.0] * count), classes, types or ["refuse"] * count, prompts
    )


def test_the_hinge_is_what_is_missing_to_the_margin() -> None:
    rows = [(3.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.5, 2.0, 1.0), (2.0, 1.0, 1.5)]
    for better, worse, margin in rows:
        found = hinge(torch.tensor([better]).double(), torch.tensor([worse]).double(), margin=margin)
        assert found.item() == pytest.approx(max(0.0, margin + worse - better), rel=1e-12)


def test_pairs_are_of_one_prompt_and_type_and_of_different_classes() -> None:
    ranked = answers(
        ["ideal", "disallowed", "ideal", "illogical", "ideal", "disallowed"],
        [[0.0] * 4] * 6,
        "ppppqq",
        ["refuse", "refuse", "refuse", "comply", "refuse", "comply"],
    )
    found = set(zip(*(column.tolist() for column in ordered_pairs(ranked)), strict=True))
    assert found == {(0, 1), (2, 1)}


def test_order_counts_a_tie_as_half() -> None:
    ranked = answers(["ideal", "minimum_style", "unacceptable"], [[0.0] * 4] * 3, "ppp")
    assert in_order(ranked, [2.0, 2.0, 3.0]).tolist() == [0.5, 0.0, 0.0]
    assert in_order(ranked, [3.0, 2.0, 1.0]).tolist() == [1.0, 1.0, 1.0]


def planted(count: int, seed: int) -> RankedAnswers:
    """Answers of every class whose grades say so, beside a reward that prefers the wrong ones."""
    rng = np.random.default_rng(seed)
    grades, classes, prompts = [], [], []
    for prompt in range(count):
        for rank, name in enumerate(CLASSES):
            kind = [0.9, 0.7, 0.4, 0.3, 0.2][rank]
            grades.append([kind, float(name == "illogical"), float(name == "disallowed"), rng.random()])
            classes.append(name)
            prompts.append(prompt)
    noisy = np.clip(np.array(grades) + rng.normal(0, 0.03, (len(grades), 4)), 0, 1)
    wrong = np.array([CLASSES.index(name) for name in classes]) * 0.2
    return RankedAnswers(noisy, wrong, classes, ["refuse"] * len(classes), prompts)


@pytest.mark.parametrize("keep_signs", [True, False])
def test_the_fit_orders_what_the_reward_has_upside_down(keep_signs: bool) -> None:
    fit = fit_weights(planted(20, 0), RULES, keep_signs=keep_signs)
    held = planted(20, 1)
    assert in_order(held, totals(held, fit.weights)).mean() >= 0.95
    assert in_order(held, held.rewards).mean() == 0.0
    kind, nonsense, harm, noise = fit.weights["refuse"]
    assert kind > 0 > max(nonsense, harm)
    assert (noise == 0) == keep_signs
    assert fit.pairs == {"refuse": 20 * 10, "comply": 0}
    assert fit.weights["comply"] == [0.0] * 4
    assert math.isnan(fit.loss["comply"])


def test_the_loss_that_is_told_is_that_of_the_weights() -> None:
    ranked = planted(3, 2)
    fit = fit_weights(ranked, RULES, steps=40, keep_signs=True)
    scores = totals(ranked, fit.weights)
    pairs = ordered_pairs(ranked)
    losses = [max(0.0, 1.0 + scores[j] - scores[i]) for i, j in zip(*pairs, strict=True)]
    assert fit.loss["refuse"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_the_first_step_is_adamw_by_hand() -> None:
    """From zero every coordinate with a gradient moves by lr against it; decay has nothing to act on."""
    ranked = answers(["ideal", "disallowed"], [[0.5, 0.0, 0.1, 0.3], [0.2, 0.0, 0.9, 0.3]], "pp")
    fit = fit_weights(ranked, RULES, keep_signs=False, steps=1, lr=0.01)
    assert fit.weights["refuse"] == pytest.approx([0.01, 0.0, -0.01, 0.0], rel=1e-6)


def test_a_weight_that_would_have_the_wrong_sign_stays_at_zero() -> None:
    ranked = answers(["ideal", "disallowed"], [[0.1, 0.0, 0.9, 0.0], [0.8, 0.0, 0.1, 0.0]], "pp")
    assert fit_weights(ranked, RULES, steps=50, keep_signs=True).weights["refuse"] == [0.0] * 4
    free = fit_weights(ranked, RULES, steps=50, keep_signs=False).weights["refuse"]
    assert free[0] < 0 < free[2]


def test_answers_of_one_class_only_are_refused() -> None:
    with pytest.raises(DataError, match="completions: no prompt has answers of two classes"):
        fit_weights(answers(["ideal", "ideal"], [[0.0] * 4] * 2, "pp"), RULES)


def test_picked_answers_are_those_places() -> None:
    ranked = planted(2, 0)
    few = ranked.pick([7, 1])
    assert few.classes == [ranked.classes[7], ranked.classes[1]]
    np.testing.assert_array_equal(few.grades, ranked.grades[[7, 1]])
    assert few.prompts == [1, 0]
