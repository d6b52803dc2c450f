"""Both orders: what they say together, and a planted bias towards a place recovered."""

import itertools
import math
import random

import pytest

from equipoise.judges.asking import Answer
from equipoise.judges.preferences import Compared, OnFlip, Settled, opinion_of, position_bias, settle
from equipoise.records import Judgement


def by_logps(log_odds: float) -> Answer:
    """Answer with these log-odds for the first place."""
    total = math.log1p(math.exp(-abs(log_odds))) + max(log_odds, 0.0)
    logps = (log_odds - total, -total)
    return Answer((0,) if log_odds >= 0 else (1,), logps, list(logps))


def compared(quality: float, bias: float) -> Compared:
    """Both orders of a judge that adds a bias towards the first place to what it thinks of the answers."""
    return Compared(by_logps(quality + bias), by_logps(-quality + bias))


def written(place: str | None) -> Answer:
    picked = None if place is None else ("AB".index(place),)
    return Answer(picked, None, place, None if place else "unparsable")


@pytest.mark.parametrize("on_flip", ["tie", "missing", "average"])
@pytest.mark.parametrize(("quality", "choice"), [(1.5, 0), (-1.5, 1)])
def test_an_answer_that_holds_in_both_orders_is_the_preference(
    quality: float, choice: int, on_flip: OnFlip
) -> None:
    found = settle(compared(quality, bias=0.5), on_flip)
    assert found.choice == choice
    assert found.missing is None
    assert found.probability == pytest.approx(1 / (1 + math.exp(-quality)))  # the bias cancels


@pytest.mark.parametrize("bias", [3.0, -3.0])
def test_an_answer_that_flips_is_a_tie_or_missing_or_the_mean(bias: float) -> None:
    both = compared(1.0, bias)
    p = pytest.approx(1 / (1 + math.exp(-1.0)))
    assert settle(both, "tie") == Settled("tie", p, None)
    assert settle(both, "missing") == Settled(None, p, "flipped")
    assert settle(both, "average") == Settled(0, p, None)


def test_two_equal_answers_are_a_tie() -> None:
    assert settle(compared(0.0, 0.0), "tie").choice == "tie"
    assert settle(compared(0.0, 1.0), "average").choice == "tie"


@pytest.mark.parametrize(
    ("places", "choice", "missing"),
    [
        ("AB", 0, None),
        ("BA", 1, None),
        ("AA", "tie", None),
        ("BB", "tie", None),
        (("A", None), None, "unparsable"),
        ((None, "B"), None, "unparsable"),
    ],
)
def test_written_answers_settle_the_same_way(places: str, choice: object, missing: str | None) -> None:
    found = settle(Compared(*map(written, places)), "tie")
    assert found == (choice, None, missing)


def test_the_least_sure_preference_is_the_confidence_and_ties_have_none() -> None:
    found = opinion_of({"better": compared(2.0, 0.1), "safer": compared(-0.4, 0.1)}, "tie", {"judge": "j"})
    assert found.preferences == {"better": 0, "safer": 1}
    assert found.confidence == pytest.approx(1 / (1 + math.exp(-0.4)))
    assert found.details["judge"] == "j"
    assert found.details["probabilities"] == {"better": 0.880797, "safer": 0.401312}
    assert found.details["order"]["better"] == {"places": ["A", "B"], "log_odds": [2.1, -1.9]}  # type: ignore
    assert opinion_of({"better": compared(0.1, 2.0)}, "tie", {}).confidence is None


def judged(number: int, both: Compared) -> tuple[str, Judgement]:
    details = dict(opinion_of({"better": both}, "tie", {}).details)
    row = Judgement(id=str(number), subject=str(number), annotator="j", provenance=details)
    return f"prompt {number // 2}", row


@pytest.mark.parametrize("planted", [0.8, 0.0, -0.5])
def test_a_planted_bias_is_recovered(planted: float) -> None:
    rng = random.Random(0)
    qualities = [rng.gauss(0, 1.5) for _ in range(400)]
    biases = [planted + rng.gauss(0, 0.3) for _ in qualities]
    rows = [judged(i, compared(q, b)) for i, (q, b) in enumerate(zip(qualities, biases, strict=True))]
    bias = position_bias(rows)["better"]
    assert bias.shift is not None
    assert bias.shift.value == pytest.approx(sum(biases) / len(biases), abs=1e-6)
    assert bias.shift.low < planted < bias.shift.high
    assert bias.shift.high - bias.shift.low < 0.1
    assert (bias.shift.n, bias.shift.clusters) == (400, 200)
    flips = sum(abs(q) <= abs(b) for q, b in zip(qualities, biases, strict=True))
    assert bias.flipped.value == flips / 400
    assert bias.flipped.low < flips / 400 < bias.flipped.high
    firsts = sum((q + b >= 0) + (-q + b >= 0) for q, b in zip(qualities, biases, strict=True))
    assert bias.first.value == firsts / 800
    assert (bias.first.value - 0.5) * planted >= 0


def test_written_answers_have_shares_and_no_shift() -> None:
    places = [*["AB"] * 3, *["BA"] * 2, *["AA"] * 4, "BB"]
    rows = [judged(i, Compared(*map(written, p))) for i, p in enumerate(places)]
    rows.append(judged(99, Compared(written("A"), written(None))))  # one that is missing says nothing
    bias = position_bias(rows)["better"]
    assert bias.flipped.value == pytest.approx(0.5)
    assert bias.first.value == pytest.approx((5 + 8) / 20)
    assert bias.flipped.n == bias.first.n == 10
    assert bias.shift is None


def test_without_preferences_there_is_no_bias_to_report() -> None:
    assert position_bias([("p", Judgement(id="1", subject="1", annotator="j"))]) == {}


def test_the_decomposition_is_exact() -> None:
    for quality, bias in itertools.product((-2.0, 0.3), (-1.0, 0.0, 1.7)):
        odds = compared(quality, bias).log_odds
        assert odds is not None
        assert (sum(odds) / 2, (odds[0] - odds[1]) / 2) == pytest.approx((bias, quality))
