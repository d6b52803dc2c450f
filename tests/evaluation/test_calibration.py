"""What is measured of calibration and policies: counts in plain Python, and scikit-learn."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score

from equipoise.evaluation.calibration import Decisions, Predictions, measure_calibration
from equipoise.evaluation.calibration_card import HEADING, calibration_text
from equipoise.evaluation.reliability import reliability
from equipoise.moderation.fitting import Truth
from equipoise.moderation.policies import Policy

N, K, C = 900, 3, 4
DRAWS = 100


def planted() -> tuple[Predictions, Truth]:
    """Probabilities that are true, of prompts and responses, three rows of a prompt."""
    rng = np.random.default_rng(0)
    steps = rng.normal(0.5, 1.5, (N, K))
    above = (rng.random((N, K)) < expit(steps)).astype(int)
    above[:, 1][above[:, 0] == 0] = -1
    above[:, 2][above[:, 1] != 1] = -1
    above[rng.random(N) < 0.1] = -1  # nobody said
    above[rng.random(N) < 0.1, 1:] = -1  # nobody said how severe
    categories = rng.normal(-1, 1, (N, C))
    there = (rng.random((N, C)) < expit(categories)).astype(int)
    there[above[:, 0] == 0] = 0
    there[above[:, 0] == -1] = -1
    refusal = rng.random(N)
    said = np.where(rng.random(N) < refusal, rng.integers(1, 3, N), 0)
    said[rng.random(N) < 0.3] = -1
    at_least = expit(steps).cumprod(1)
    found = Predictions(at_least, at_least[:, :1] * expit(categories), refusal)
    return found, Truth(rng.random(N) < 0.4, above, there, said, np.arange(N) // 3)


TRUE, TRUTH = planted()
SURE = expit(3.0 * np.log(TRUE.at_least[:, :1] / (1 - TRUE.at_least[:, :1])))
RAW = Predictions(
    np.hstack([SURE, SURE * np.sqrt(TRUE.at_least[:, 1:] / TRUE.at_least[:, :1])]),
    SURE * np.sqrt(TRUE.categories / TRUE.at_least[:, :1]),
    np.sqrt(TRUE.declines),
)
"""Wrong in every head."""
BY_POLICY = {
    name: Decisions(TRUE.at_least[:, 0] >= cut, np.abs(TRUE.at_least[:, 0] - 0.5) < 0.1)
    for name, cut in (("moderate", 0.5), ("loose", 0.8), ("strict", 0.2))
}


@pytest.fixture(scope="module")
def measured() -> Any:
    return measure_calibration(RAW, TRUE, BY_POLICY, TRUTH, draws=DRAWS)


def test_each_kind_of_probability_is_held_against_its_own_labels(measured: Any) -> None:
    unsafe, severe = TRUTH.unsafe, TRUTH.at_least[:, 2]
    if_unsafe = TRUE.at_least[:, 2] / TRUE.at_least[:, 0]
    expected = {
        "unsafe prompts": (TRUE.at_least[:, 0], unsafe == 1, TRUTH.is_prompt & (unsafe >= 0)),
        "unsafe responses": (TRUE.at_least[:, 0], unsafe == 1, ~TRUTH.is_prompt & (unsafe >= 0)),
        "severity 3 or more, if unsafe": (if_unsafe, severe == 1, (unsafe == 1) & (severe >= 0)),
        "refusal": (TRUE.declines, TRUTH.refusal > 0, TRUTH.refusal >= 0),
    }
    assert set(measured.heads) == {*expected, "severity 2 or more, if unsafe", "categories, if unsafe"}
    for name, (p, happened, rows) in expected.items():
        assert measured.heads[name].after == reliability(
            p[rows], happened[rows], TRUTH.prompt[rows], draws=DRAWS
        )
    cells = [(i, c) for i in range(N) for c in range(C) if unsafe[i] == 1]
    found = measured.heads["categories, if unsafe"].after
    assert (found.squared.n, found.squared.clusters) == (len(cells), len({i // 3 for i, _ in cells}))
    assert sum(b.n * b.observed for b in found.bins) == pytest.approx(
        sum(TRUTH.categories[i, c] for i, c in cells)
    )


def test_what_was_made_too_sure_is_seen_to_be_so(measured: Any) -> None:
    for name, head in measured.heads.items():
        assert head.before.corrected > head.after.corrected + 0.02, name
        assert head.before.squared.low > head.after.squared.value


def test_the_rates_of_a_policy_are_those_counted(measured: Any) -> None:
    for name, cut in (("moderate", 0.5), ("loose", 0.8), ("strict", 0.2)):
        for target in ("prompt", "response"):
            rows = [i for i in range(N) if TRUTH.is_prompt[i] == (target == "prompt")]
            flagged = {i: TRUE.at_least[i, 0] >= cut for i in rows}
            safe = [i for i in rows if TRUTH.unsafe[i] == 0]
            unsafe = [i for i in rows if TRUTH.unsafe[i] == 1]
            asked = [i for i in rows if abs(TRUE.at_least[i, 0] - 0.5) < 0.1]
            left = [i for i in (*safe, *unsafe) if i not in asked]
            rates = measured.policies[name][target]
            counted = {
                "flagged": sum(flagged.values()) / len(rows),
                "false_positive_rate": sum(flagged[i] for i in safe) / len(safe),
                "recall": sum(flagged[i] for i in unsafe) / len(unsafe),
                "review": len(asked) / len(rows),
                "wrong": sum(flagged[i] != (TRUTH.unsafe[i] == 1) for i in left) / len(left),
            }
            for rate, value in counted.items():
                found = getattr(rates, rate)
                assert found.value == pytest.approx(value)
                assert found.low <= value <= found.high
            assert rates.recall.clusters == len({i // 3 for i in unsafe})


def test_strictness_is_f1_at_each_severity_with_its_mean_and_its_worst(measured: Any) -> None:
    rows = (TRUTH.at_least >= 0).all(1)
    columns = {name: [said.flagged] * K for name, said in BY_POLICY.items()}
    columns["matched"] = [BY_POLICY[name].flagged for name in ("strict", "moderate", "loose")]
    assert set(measured.strictness) == set(columns)
    for name, flagged in columns.items():
        each = [f1_score(TRUTH.at_least[rows, k] == 1, flagged[k][rows]) for k in range(K)]
        found = measured.strictness[name]
        assert found.f1 == pytest.approx(each)
        assert found.average.value == pytest.approx(np.mean(each))
        assert found.worst.value == pytest.approx(min(each))
        assert found.worst.low <= found.worst.value <= found.worst.high
    assert measured.strictness["moderate"].average.n == rows.sum()


def test_what_has_no_labels_is_left_out() -> None:
    none = np.full(N, -1)
    bare = TRUTH._replace(
        above=np.where(np.arange(K) > 0, -1, TRUTH.above),
        categories=np.full((N, C), -1),
        refusal=none,
        is_prompt=none > 0,
    )
    found = measure_calibration(RAW, TRUE, BY_POLICY, bare, draws=DRAWS)
    assert set(found.heads) == {"unsafe responses"}
    assert found.strictness == {}
    assert {tuple(by_target) for by_target in found.policies.values()} == {("response",)}


def test_the_card_shows_every_number_once(measured: Any) -> None:
    policies = {
        name: Policy.model_validate({"name": name, "unsafe": 0.25, "severity": {3: 0.125}})
        for name in BY_POLICY
    }
    text = calibration_text(measured, policies, ["fitted to nothing"])
    assert text.startswith(f"{HEADING}\n\n- fitted to nothing\n\n|")
    assert text.count("| strict |  | 0.250 | 0.250 | severity 3 0.125 |") == 1
    assert "to a person" not in text
    banded = {name: p.model_copy(update={"review": (0.1, 0.2)}) for name, p in policies.items()}
    assert "| to a person | wrong among the others |" in calibration_text(measured, banded, [])
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.strip().splitlines()}) == 1
    head = measured.heads["unsafe prompts"]
    assert f"| unsafe prompts | {head.before.naive:.3f} | {head.after.naive:.3f} |" in text
    assert text.count("| moderate | prompts |") == 1
