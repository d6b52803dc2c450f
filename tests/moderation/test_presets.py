"""Thresholds against a search through all of them; presets that are ordered whatever their aims."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import expit

from equipoise.errors import DataError
from equipoise.models.guard import GuardCard
from equipoise.models.heads import GuardLogits
from equipoise.moderation.fitting import Truth
from equipoise.moderation.policies import Policy
from equipoise.moderation.presets import Aim, Preset, Presets, fit_presets, fit_threshold
from equipoise.moderation.reading import Reading
from equipoise.taxonomy import load_taxonomy

PKU = load_taxonomy("pku19")
DRUGS = "Drugs"
Z = 1.6448536269514722
"""One-sided 95 %."""


def scored(
    n: int, seed: int, digits: int = 3
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.intp]]:
    """Scores with ties, labels that go with them, and prompts of about two rows."""
    rng = np.random.default_rng(seed)
    happened = rng.random(n) < 0.4
    score = expit(rng.normal(np.where(happened, 1.0, -1.0), 1.0)).round(digits)
    return score, happened, rng.integers(0, n // 2, n)


def best(score: list[float], happened: list[bool], aim: Aim) -> float:
    """Recall of the best threshold that keeps to a false-positive rate, or the other way round."""
    found = []
    for cut in [*sorted(set(score)), 2.0]:
        wrong = sum(s >= cut and not h for s, h in zip(score, happened, strict=True)) / happened.count(False)
        right = sum(s >= cut and h for s, h in zip(score, happened, strict=True)) / happened.count(True)
        if aim.recall is not None and right >= aim.recall:
            found.append(-wrong)
        if aim.false_positive_rate is not None and wrong <= aim.false_positive_rate:
            found.append(right)
    return abs(max(found))


@pytest.mark.parametrize("digits", [1, 3])
@pytest.mark.parametrize("wanted", [0.0, 0.01, 0.05, 0.1, 0.3, 1.0])
def test_a_threshold_is_the_best_that_keeps_to_its_aim(wanted: float, digits: int) -> None:
    for seed in range(5):
        score, happened, prompt = scored(200, seed, digits)
        plain = score.tolist(), happened.tolist()
        found = fit_threshold(score, happened, prompt, Aim(false_positive_rate=wanted))
        assert found.false_positive_rate <= wanted
        assert found.recall == pytest.approx(best(*plain, Aim(false_positive_rate=wanted)))
        found = fit_threshold(score, happened, prompt, Aim(recall=1 - wanted))
        assert found.recall >= 1 - wanted
        assert found.false_positive_rate == pytest.approx(best(*plain, Aim(recall=1 - wanted)))


def test_a_threshold_lies_between_two_scores_and_says_what_it_does() -> None:
    score, happened, prompt = scored(300, 1)
    found = fit_threshold(score, happened, prompt, Aim(false_positive_rate=0.1))
    assert np.abs(score - found.threshold).min() > 1e-4
    assert found.false_positive_rate == (score[~happened] >= found.threshold).mean()
    assert found.recall == (score[happened] >= found.threshold).mean()
    assert (found.harmless, found.harmful) == ((~happened).sum(), happened.sum())


def upper(rate: float, n: int) -> float:
    """Wilson's upper bound, in plain floats."""
    centre = (rate + Z * Z / (2 * n)) / (1 + Z * Z / n)
    return centre + Z / (1 + Z * Z / n) * math.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n))


def test_a_certified_threshold_keeps_to_its_aim_with_confidence_counted_in_prompts() -> None:
    score, happened, prompt = scored(2000, 0)
    harmless = len(set(prompt[~happened].tolist()))
    found = fit_threshold(score, happened, prompt, Aim(false_positive_rate=0.05), certify=True)
    loose = fit_threshold(score, happened, prompt, Aim(false_positive_rate=0.05))
    assert found.threshold > loose.threshold
    assert upper(math.ceil(found.false_positive_rate * harmless) / harmless, harmless) <= 0.05
    lower = np.sort(score[score < found.threshold])[-1]
    one_more = (score[~happened] >= lower).mean()
    assert upper(math.ceil(one_more * harmless) / harmless, harmless) > 0.05
    found = fit_threshold(score, happened, prompt, Aim(recall=0.9), certify=True)
    harmful = len(set(prompt[happened].tolist()))
    assert upper(math.ceil((1 - found.recall) * harmful - 1e-9) / harmful, harmful) <= 0.1


def test_too_few_prompts_for_a_certificate_are_counted() -> None:
    score, happened, prompt = scored(100, 0)
    count = len(set(prompt[~happened].tolist()))
    with pytest.raises(DataError) as caught:
        fit_threshold(score, happened, prompt, Aim(false_positive_rate=0.01), certify=True, what="loose")
    assert str(caught.value) == (
        f"loose: {count} prompts cannot show a false-positive rate of 0.01 with 95 % confidence;"
        " expected at least 268"
    )
    # with that many and no mistake it can be shown, with one fewer it cannot
    assert upper(0, 268) <= 0.01 < upper(0, 267)
    with pytest.raises(DataError, match=r"prompts cannot show a recall of 0\.99 .* at least 268"):
        fit_threshold(score, happened, prompt, Aim(recall=0.99), certify=True)


def test_what_no_threshold_can_do_is_said() -> None:
    score = np.array([1.0, 1.0, 0.2, 0.3])
    happened = np.array([False, True, False, True])
    with pytest.raises(DataError, match="no threshold up to 1 gives a false-positive rate of 0"):
        fit_threshold(score, happened, np.arange(4), Aim(false_positive_rate=0.0))


def read(n: int = 600, seed: int = 0, spread: float = 1.5) -> tuple[Reading, Truth]:
    """A reading whose probabilities are true, of prompts and responses."""
    rng = np.random.default_rng(seed)
    is_prompt = rng.random(n) < 0.5
    severity = rng.normal(0, spread, (n, 3))
    above = (rng.random((n, 3)) < expit(severity)).astype(int)
    above[:, 1][above[:, 0] == 0] = -1
    above[:, 2][above[:, 1] != 1] = -1
    categories = rng.normal(-2, spread, (n, len(PKU.names)))
    there = (rng.random(categories.shape) < expit(categories)).astype(int)
    there[above[:, 0] == 0] = 0
    logits = GuardLogits(torch.tensor(severity), torch.tensor(categories), torch.zeros(n, 3))
    card = GuardCard(
        taxonomy=PKU,
        backbone="none",
        layers=1,
        hidden=1,
        targets=("prompt", "response"),
        knows_refusals=False,
        unsafe_threshold=0.45,
    )
    reading = Reading(card, logits, [False] * n, targets=["prompt" if p else "response" for p in is_prompt])
    return reading, Truth(is_prompt, above, there, np.full(n, -1), np.arange(n))


def flagged(reading: Reading, policy: Policy) -> set[int]:
    return {row for row in range(len(reading.cut)) if not reading.verdict(row, policy).is_safe}


def test_the_presets_keep_to_their_aims_for_prompts_and_responses_apart() -> None:
    reading, truth = read(4000)
    found = fit_presets(reading, truth, Presets(), review=(0.3, 0.6))
    assert list(found) == ["moderate", "loose", "strict"]
    for name, aim in (("strict", 0.15), ("moderate", 0.05), ("loose", 0.01)):
        unsafe = np.array([not reading.verdict(row, found[name]).is_safe for row in range(4000)])
        for rows in (truth.is_prompt, ~truth.is_prompt):
            wrong = unsafe[rows & (truth.unsafe == 0)].mean()
            assert aim - 0.003 < wrong <= aim
        assert found[name].review == (0.3, 0.6)
        assert found[name].about == f"unsafe: false-positive rate at most {aim}"
        told: Any = found[name].fitted
        assert told["aims"] == {"unsafe": {"false_positive_rate": aim}}
        assert told["unsafe prompt"]["harmless"] == (truth.is_prompt & (truth.unsafe == 0)).sum()
        assert told["unsafe prompt"]["false_positive_rate"] <= aim


def test_a_recall_is_kept_of_each_category_and_each_severity() -> None:
    reading, truth = read(3000)
    aims = Preset(categories=Aim(recall=0.8), severity=Aim(recall=0.9))
    policy = fit_presets(reading, truth, Presets(loose=aims, moderate=aims, strict=aims))["loose"]
    assert policy.unsafe is None
    assert set(policy.categories) == set(PKU.names)
    assert set(policy.severity) == {2, 3}
    place = PKU.index(DRUGS)
    there = truth.categories[:, place] == 1
    reached = reading.categories[:, place].numpy() >= policy.categories[DRUGS]
    assert 0.8 <= reached[there].mean() < 0.83
    severe = truth.at_least[:, 2] == 1
    reached = reading.at_least[:, 2].numpy() >= policy.severity[3]
    assert 0.9 <= reached[severe].mean() < 0.92


def random_aim(rng: random.Random) -> Aim | None:
    kind, value = rng.choice(["false_positive_rate", "recall", ""]), round(rng.random(), 2)
    return Aim.model_validate({kind: value}) if kind else None


def random_preset(rng: random.Random) -> Preset:
    aims = {name: random_aim(rng) for name in ("unsafe", "categories", "severity")}
    return Preset(**aims) if any(aims.values()) else Preset(unsafe=Aim(recall=0.5))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_stricter_flags_whatever_the_looser_flags(seed: int) -> None:
    rng = random.Random(seed)
    presets = Presets(**{name: random_preset(rng) for name in ("strict", "moderate", "loose")})
    found = fit_presets(*read(400, seed % 7), presets, least=5)
    other, _ = read(60, seed + 1, spread=3.0)
    strict, moderate, loose = (flagged(other, found[name]) for name in ("strict", "moderate", "loose"))
    assert loose <= moderate <= strict
    for row in range(60):
        harsh, mild = (other.verdict(row, found[name]) for name in ("strict", "loose"))
        assert mild.severity <= harsh.severity
        assert set(mild.categories) <= set(harsh.categories)


def test_what_has_too_few_rows_gets_the_threshold_of_the_guard_or_none() -> None:
    reading, truth = read(800)
    lone = truth._replace(above=np.where(truth.is_prompt[:, None], -1, truth.above))
    lone.categories[:, PKU.index(DRUGS)] = -1
    aims = Preset(unsafe=Aim(recall=0.8), categories=Aim(recall=0.5))
    policy = fit_presets(reading, lone, Presets(strict=aims))["strict"]
    assert policy.unsafe is not None
    assert policy.unsafe.prompt == 0.45
    assert policy.unsafe.response != 0.45
    assert DRUGS not in policy.categories
    assert len(policy.categories) == len(PKU.names) - 1
    unknown = lone._replace(categories=np.full_like(lone.categories, -1))
    with pytest.raises(DataError, match="loose: too few labelled rows for any threshold; expected 25 of"):
        fit_presets(reading, unknown, Presets(loose=Preset(categories=Aim(recall=0.5))))


def test_an_aim_is_one_of_two() -> None:
    for both in ({}, {"recall": 0.5, "false_positive_rate": 0.5}):
        with pytest.raises(ValidationError, match="expected one of false_positive_rate and recall"):
            Aim.model_validate(both)
    with pytest.raises(ValidationError, match="expected an aim"):
        Preset()
