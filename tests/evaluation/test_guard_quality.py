"""How balanced a guard is: each number against scikit-learn or a sum by hand, on planted verdicts."""

import random
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from equipoise.evaluation.guard_quality import TITLES, Quality, macro_f1, measure_quality
from equipoise.protocols import RefusalVerdict, Verdict
from equipoise.records import REFUSALS, Exchange

NAMES = ("Drugs", "Violence", "Privacy Violation", "Animal Abuse")


def verdict(unsafe: float, severity: int | None = None, categories: tuple[str, ...] = ()) -> Verdict:
    is_safe = unsafe < 0.5
    level = (0 if is_safe else 1) if severity is None else severity
    levels = (1 - unsafe, unsafe, 0.0, 0.0)
    return Verdict(is_safe, unsafe, level, levels, categories, dict.fromkeys(NAMES, 0.0), False)


def row(number: int, prompt: str = "p", **labels: Any) -> Exchange:
    return Exchange(id=str(number), prompt=prompt, response="r", **labels)


def planted(count: int, seed: int) -> tuple[list[Exchange], list[Verdict], list[RefusalVerdict]]:
    """Three answers per prompt with every label, and verdicts that are right more often than not."""
    rng = random.Random(seed)
    rows, verdicts, refusals = [], [], []
    for n in range(count):
        severity = rng.choice([0, 0, 1, 2, 3])
        names = frozenset(name for name in NAMES[:3] if severity and rng.random() < 0.4)
        said = rng.choice(REFUSALS)
        rows.append(
            row(
                n,
                f"prompt {n // 3}",
                is_safe=severity == 0,
                severity=severity,
                categories=names,
                refusal=said,
                prompt_is_harmful=n // 3 % 3 > 0,
            )
        )
        near = min(3, max(0, severity + rng.choice([-1, 0, 0, 0, 1])))
        seen = tuple(name for name in NAMES if (name in names) != (rng.random() < 0.15))
        verdicts.append(verdict(rng.uniform(0.3, 0.9) if severity else rng.uniform(0.1, 0.7), near, seen))
        called = said if rng.random() < 0.8 else rng.choice(REFUSALS)
        refusals.append(RefusalVerdict(called, dict.fromkeys(REFUSALS, 1 / 3)))
    return rows, verdicts, refusals


ROWS, VERDICTS, REFUSED = planted(240, 0)


@pytest.fixture(scope="module")
def found() -> Quality:
    return measure_quality(ROWS, VERDICTS, REFUSED, draws=300)


def test_pairs_within_a_prompt_are_the_aurocs_of_the_prompts(found: Quality) -> None:
    right = total = 0.0
    for start in range(0, 240, 3):
        own = range(start, start + 3)
        unsafe = [not ROWS[i].is_safe for i in own]
        pairs = sum(unsafe) * (3 - sum(unsafe))
        if pairs:
            right += pairs * roc_auc_score(unsafe, [VERDICTS[i].unsafe_probability for i in own])
            total += pairs
    assert found.within_prompt is not None
    assert found.within_prompt.value == pytest.approx(right / total, abs=1e-12)
    assert found.within_prompt.n == total


def test_what_the_topic_tells_does_not_help_within_a_prompt() -> None:
    """Scores that differ between prompts only: half of the pairs, however well they tell the prompts."""
    rows = [row(n, f"p{n // 2}", is_safe=bool(n % 2)) for n in range(40)]
    verdicts = [verdict(n // 2 / 40) for n in range(40)]
    quality = measure_quality(rows, verdicts, draws=100)
    assert quality.within_prompt is not None
    assert quality.within_prompt[:5] == (0.5, 0.5, 0.5, 20, 20)


def test_flagged_safe_answers_are_counted_apart_by_the_prompt(found: Quality) -> None:
    shares = {}
    for harmful in (True, False):
        flags = [
            not v.is_safe
            for v, r in zip(VERDICTS, ROWS, strict=True)
            if r.is_safe and r.prompt_is_harmful == harmful
        ]
        shares[harmful] = sum(flags) / len(flags)
    assert found.flagged_after_harmful is not None
    assert found.flagged_after_benign is not None
    assert found.flagged_gap is not None
    assert found.flagged_after_harmful.value == pytest.approx(shares[True])
    assert found.flagged_after_benign.value == pytest.approx(shares[False])
    assert found.flagged_gap.value == pytest.approx(shares[True] - shares[False])
    assert found.flagged_gap.n == sum(bool(r.is_safe) for r in ROWS)
    assert found.flagged_gap.low < found.flagged_gap.value < found.flagged_gap.high


def test_severity_and_refusal_are_those_of_sklearn(found: Quality) -> None:
    kappa = cohen_kappa_score(
        [r.severity for r in ROWS], [v.severity for v in VERDICTS], weights="quadratic", labels=[0, 1, 2, 3]
    )
    macro = f1_score(
        [r.refusal != "none" for r in ROWS], [v.refusal != "none" for v in REFUSED], average="macro"
    )
    assert found.severity_kappa is not None
    assert found.refusal_f1 is not None
    assert found.severity_kappa.value == pytest.approx(kappa, abs=1e-12)
    assert found.refusal_f1.value == pytest.approx(macro, abs=1e-12)


def test_categories_are_those_of_sklearn(found: Quality) -> None:
    actual = np.array([[name in (r.categories or ()) for name in NAMES] for r in ROWS])
    called = np.array([[name in v.categories for name in NAMES] for v in VERDICTS])
    assert not actual[:, 3].any()  # a category that never occurs is no part of the mean over categories
    assert called[:, 3].any()
    assert found.category_micro_f1 is not None
    assert found.category_macro_f1 is not None
    assert found.category_micro_f1.value == pytest.approx(f1_score(actual, called, average="micro"))
    macro = f1_score(actual[:, :3], called[:, :3], average="macro")
    assert found.category_macro_f1.value == pytest.approx(macro)


def test_categories_that_nobody_rated_do_not_count() -> None:
    rows = [
        row(0, is_safe=False, categories=frozenset({"Drugs"}), rated=frozenset({"Drugs", "Violence"})),
        row(1, is_safe=True, categories=frozenset()),
    ]
    verdicts = [verdict(0.9, 1, ("Drugs", "Animal Abuse")), verdict(0.1)]
    quality = measure_quality(rows, verdicts, draws=100)
    assert quality.category_micro_f1 is not None
    assert quality.category_micro_f1.value == 1.0


def test_every_interval_holds_its_value_and_rests_on_prompts(found: Quality) -> None:
    for name, estimate in zip(found._fields, found, strict=True):
        assert estimate.low < estimate.value < estimate.high, name
        assert estimate.clusters <= 80


def test_what_nobody_labelled_is_not_measured() -> None:
    bare = [row(0), row(1)]
    assert measure_quality(bare, VERDICTS[:2], REFUSED[:2], draws=100) == Quality()
    safe = [row(0, is_safe=True, prompt_is_harmful=True)]
    some = measure_quality(safe, [verdict(0.1)], None, draws=100)
    measured = [name for name, value in zip(some._fields, some, strict=True) if value is not None]
    assert measured == ["flagged_after_harmful"]
    assert measure_quality([row(0, refusal="full")], VERDICTS[:1], None, draws=100) == Quality()


def test_a_class_that_a_draw_lacks_is_left_out_of_its_mean() -> None:
    actual = np.array([[True, False], [False, True]])
    statistic = macro_f1(actual, actual)
    assert statistic(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])).tolist() == [1, 1, 1]
    assert np.isnan(statistic(np.zeros((1, 2)))).all()


def test_every_measure_has_a_title() -> None:
    assert tuple(TITLES) == Quality._fields
