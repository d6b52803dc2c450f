"""Verdicts by a policy: consistent whatever it asks, monotone in its thresholds, and labelled."""

import random
from typing import Any

import pytest
import torch

from equipoise.models.guard import GuardCard, Target
from equipoise.models.heads import GuardLogits
from equipoise.moderation.calibration import Calibration, Line
from equipoise.moderation.policies import Policy
from equipoise.moderation.reading import Reading
from equipoise.taxonomy import load_taxonomy

PKU = load_taxonomy("pku19")
COUNT = 400
TARGETS: list[Target] = ["prompt", "response"]


def card(**more: Any) -> GuardCard:
    given = {
        "taxonomy": PKU,
        "backbone": "none",
        "layers": 1,
        "hidden": 1,
        "targets": ("prompt", "response"),
        "knows_refusals": True,
    }
    return GuardCard.model_validate(given | more)


def read(calibration: Calibration | None = None, policy: Policy | None = None, **more: Any) -> Reading:
    torch.manual_seed(0)
    logits = GuardLogits(
        2 * torch.randn(COUNT, 3), 2 * torch.randn(COUNT, len(PKU.names)) - 2, torch.randn(COUNT, 3)
    )
    targets = [TARGETS[i % 2] for i in range(COUNT)]
    return Reading(
        card(**more), logits, [False] * COUNT, targets=targets, calibration=calibration, policy=policy
    )


def policy(**more: Any) -> Policy:
    return Policy.model_validate({"name": "p", **more})


def any_policy(rng: random.Random) -> Policy:
    parts = {
        "unsafe": {"prompt": rng.random(), "response": rng.random()},
        "categories": {name: rng.random() for name in rng.sample(PKU.names, 5)},
        "severity": {level: rng.random() for level in (1, 2, 3)},
    }
    kept = {name: part for name, part in parts.items() if rng.random() < 0.6}
    return policy(**(kept or {"unsafe": 0.5}))


@pytest.mark.parametrize("seed", range(8))
def test_a_verdict_is_consistent_whatever_the_policy(seed: int) -> None:
    rng = random.Random(seed)
    reading, chosen = read(), any_policy(rng)
    for row in range(COUNT):
        v = reading.verdict(row, chosen)
        assert v.is_safe == (v.severity == 0) == (v.categories == ())
        assert v.policy == "p"
        p, target = v.unsafe_probability, TARGETS[row % 2]
        at_least = [sum(v.severity_probabilities[k:]) for k in range(4)]
        expected = (
            (chosen.unsafe is not None and p >= getattr(chosen.unsafe, target))
            or any(v.category_probabilities[name] >= t for name, t in chosen.categories.items())
            or any(at_least[level] >= t for level, t in chosen.severity.items())
        )
        assert v.is_safe == (not expected)
        if not v.is_safe:
            own = [level for level, t in chosen.severity.items() if at_least[level] >= t]
            assert v.severity >= max(own, default=1)
            assert {n for n, t in chosen.categories.items() if v.category_probabilities[n] >= t} <= set(
                v.categories
            )


@pytest.mark.parametrize("part", ["unsafe", "categories", "severity"])
def test_the_higher_the_threshold_the_fewer_are_flagged(part: str) -> None:
    reading = read()
    shares = []
    for threshold in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0):
        value: Any = {"unsafe": threshold, "categories": {"Drugs": threshold}, "severity": {2: threshold}}[
            part
        ]
        chosen = policy(**{part: value})
        shares.append(sum(not reading.verdict(row, chosen).is_safe for row in range(COUNT)) / COUNT)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert shares[-1] == 0.0
    assert len(set(shares)) > 5


def test_the_probability_of_a_severity_falls_with_it() -> None:
    reading = read()
    assert (reading.at_least.diff(dim=1) <= 0).all()
    for row in range(0, COUNT, 40):
        v = reading.verdict(row)
        assert v.unsafe_probability == pytest.approx(sum(v.severity_probabilities[1:]), abs=1e-12)
        assert sum(v.severity_probabilities) == pytest.approx(1.0, abs=1e-12)


def test_the_guards_own_policy_decides_where_none_is_named() -> None:
    by_card = read(unsafe_threshold=0.7)
    assert {by_card.verdict(row).policy for row in range(COUNT)} == {"default"}
    assert all(
        by_card.verdict(row).is_safe == (by_card.verdict(row).unsafe_probability < 0.7)
        for row in range(COUNT)
    )
    named = read(policy=policy(unsafe=0.2))
    assert named.verdict(0) == named.verdict(0, policy(unsafe=0.2))
    assert named.verdict(0).policy == "p"


def test_a_person_is_asked_within_the_band_and_the_verdict_stands() -> None:
    reading, plain, band = read(), policy(unsafe=0.5), policy(unsafe=0.5, review=(0.4, 0.7))
    asked = [reading.verdict(row, band) for row in range(COUNT)]
    assert {(v.is_safe, v.review) for v in asked} == {(a, b) for a in (True, False) for b in (True, False)}
    for row, v in enumerate(asked):
        assert v.review == (0.4 <= v.unsafe_probability < 0.7)
        assert v._replace(review=False) == reading.verdict(row, plain)


def test_a_shadow_policy_judges_as_any_other() -> None:
    reading = read()
    for row in range(0, COUNT, 20):
        assert reading.verdict(row, policy(unsafe=0.5, shadow=True)) == reading.verdict(
            row, policy(unsafe=0.5)
        )


def test_only_what_was_calibrated_says_so() -> None:
    assert not any(read().verdict(row).calibrated for row in range(4))
    lines = Calibration(weights="w", unsafe={"response": Line(slope=2.0, intercept=-1.0)})
    before, after = read(), read(lines)
    assert [after.verdict(row).calibrated for row in range(4)] == [False, True, False, True]
    for row in range(COUNT):
        old, new = (torch.logit(reading.at_least[row, 0]) for reading in (before, after))
        assert float(new) == pytest.approx(2 * float(old) - 1 if row % 2 else float(old), abs=1e-9)


def test_calibration_moves_verdicts_and_keeps_their_order() -> None:
    lines = Calibration(
        weights="w",
        unsafe={target: Line(slope=0.3, intercept=1.0) for target in TARGETS},
        refusal_temperature=2.0,
    )
    before, after = read(), read(lines)
    for target in (0, 1):
        rows = slice(target, None, 2)
        assert torch.equal(before.at_least[rows, 0].argsort(), after.at_least[rows, 0].argsort())
    safe = [sum(r.verdict(row).is_safe for row in range(COUNT)) for r in (before, after)]
    assert safe[0] > safe[1] > 0
    logits = before.logits.refusal[0].double() / 2
    assert list(after.refusal_verdict(0).probabilities.values()) == pytest.approx(logits.softmax(0).tolist())
