"""Which answers a policy learns from: who is chosen, what is left out and why, and what a pair counts for."""

from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import DataError
from equipoise.models.backbone import load_causal
from equipoise.records import Answer, Choice, Pair
from equipoise.training.pair_order import PairSettings, label_answers, order_pairs, told

GOOD, OTHER = "mix flour and water", "wait until the dough has doubled"


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return load_causal(tiny_llama, device="cpu").tokenizer


def pair(
    name: str,
    better: Choice | None = 0,
    safe: tuple[bool | None, bool | None] = (True, True),
    severity: tuple[int | None, int | None] = (None, None),
    texts: tuple[str, str] = (GOOD, OTHER),
    **more: Any,
) -> Pair:
    answers = tuple(
        Answer(response=text, is_safe=s, severity=level)
        for text, s, level in zip(texts, safe, severity, strict=True)
    )
    given = {"id": name, "prompt": f"how do i bake bread {name}", "answers": answers, "better": better}
    return Pair(**(given | more), licence="CC0-1.0")


# (better, is_safe of both) -> index chosen by SafeDPO and by DPO, None where left out
ORDERS: list[tuple[Choice | None, tuple[bool | None, bool | None], int | None, int | None]] = [
    (0, (True, True), 0, 0),
    (1, (True, True), 1, 1),
    (0, (False, True), 1, 0),  # the safe one, whatever is more helpful
    (1, (True, False), 0, 1),
    (None, (True, False), 0, None),
    ("tie", (False, True), 1, None),
    ("tie", (True, True), None, None),
    (0, (False, False), None, 0),
    (0, (None, True), None, 0),
    (None, (True, True), None, None),
]


@pytest.mark.parametrize("objective", ["safe_dpo", "dpo"])
def test_the_chosen_response_comes_first(tokenizer: Any, objective: str) -> None:
    settings = PairSettings(objective=objective)
    for better, safe, *chosen in ORDERS:
        expected = chosen[objective == "dpo"]
        kept, left_out = order_pairs(tokenizer, [pair("x", better, safe)], settings, seed=0)
        assert len(kept) == (expected is not None)
        assert sum(left_out.values()) == (expected is None)
        if expected is not None:
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in kept[0].row.responses]
            assert texts == [(GOOD, OTHER)[expected], (GOOD, OTHER)[1 - expected]]
            assert kept[0].chosen_unsafe == (safe[expected] is False)
            assert kept[0].rejected_unsafe == (safe[1 - expected] is False)


def test_what_is_left_out_is_counted_by_reason(tokenizer: Any) -> None:
    pairs = [
        *(pair(name, 0) for name in "abcd"),
        pair("u", 0, (False, False)),
        pair("t", "tie"),
        pair("n", None),
        pair("long", prompt="water " * 100),
        pair("same", texts=(GOOD, GOOD)),
        pair("empty", texts=(GOOD, " ")),
    ]
    kept, left_out = order_pairs(tokenizer, pairs, PairSettings(max_tokens=100), seed=0)
    assert len(kept) == 4
    shared = {"over 100 tokens": 1, "with equal responses": 1, "with an empty response": 1}
    assert left_out == {"both unsafe": 1, "no preference or safety label": 2} | shared
    kept, left_out = order_pairs(tokenizer, pairs, PairSettings(objective="dpo", max_tokens=100), seed=0)
    assert len(kept) == 5
    assert left_out == {"no preference, or a tie": 2} | shared
    assert all(len(pair.row.responses[0]) > 1 and pair.row.length <= 100 for pair in kept)
    assert "1 with equal responses" in told(left_out)


def test_max_pairs_takes_a_seeded_choice(tokenizer: Any) -> None:
    pairs = [pair(str(i)) for i in range(30)]

    def chosen(seed: int, most: int | None) -> list[list[int]]:
        return [p.row.prompt for p in order_pairs(tokenizer, pairs, PairSettings(max_pairs=most), seed)[0]]

    assert len(chosen(0, 7)) == 7
    assert chosen(0, 7) == chosen(0, 7) == chosen(0, None)[:7]
    assert chosen(0, 7) != chosen(1, 7)
    assert len(chosen(0, None)) == 30


@pytest.mark.parametrize(("label", "first"), [("better", GOOD), ("safer", OTHER), ("overall", OTHER)])
def test_a_pair_may_follow_another_label(tokenizer: Any, label: Any, first: str) -> None:
    settings = PairSettings(objective="dpo", preference=label)
    kept, _ = order_pairs(tokenizer, [pair("x", 0, safer=1, overall=1)], settings, seed=0)
    assert tokenizer.decode(kept[0].row.responses[0], skip_special_tokens=True) == first


def test_a_safer_label_that_contradicts_the_safety_labels_stops_the_run(tokenizer: Any) -> None:
    settings = PairSettings(objective="dpo", preference="safer")
    with pytest.raises(
        DataError, match="unknown: x: safer names the unsafe answer of a pair with a safe one"
    ):
        order_pairs(tokenizer, [pair("x", 0, (False, True), safer=0)], settings, seed=0)


@pytest.mark.parametrize(
    ("objective", "given", "weights"),
    [
        ("dpo", None, {"s": 1.0, "u": 1.0}),  # kept
        ("dpo", 0.0, {"s": 1.0}),  # dropped
        ("dpo", 0.25, {"s": 1.6, "u": 0.4}),  # four to one, with mean 1
        ("safe_dpo", None, {"s": 1.0}),
        ("safe_dpo", 1.0, {"s": 1.0, "u": 1.0}),
    ],
)
def test_pairs_of_two_unsafe_answers_are_dropped_weighed_down_or_kept(
    tokenizer: Any, objective: str, given: float | None, weights: dict[str, float]
) -> None:
    pairs = [pair("s"), pair("u", 0, (False, False), safer=1)]
    settings = PairSettings(objective=objective, both_unsafe_weight=given)
    kept, left_out = order_pairs(tokenizer, pairs, settings, seed=0)
    found = {"u" if one.rejected_unsafe else "s": one.weight for one in kept}
    assert found == pytest.approx(weights)
    assert left_out == ({} if "u" in weights else {"both unsafe": 1})
    if objective == "safe_dpo" and "u" in weights:  # the less harmful one, not the more helpful one
        unsafe = next(one for one in kept if one.rejected_unsafe)
        assert tokenizer.decode(unsafe.row.responses[0], skip_special_tokens=True) == OTHER


@pytest.mark.parametrize(
    ("safe", "severity", "gap", "weight"),
    [
        ((True, False), (None, 3), 3, 2.5),  # safe is severity 0, whether the source says so or not
        ((False, False), (1, 2), 1, 1.5),
        ((False, True), (2, 0), -2, 1.0),  # the chosen one is worse: no weight for that
        ((False, False), (None, 2), None, 1.0),
        ((None, None), (None, None), None, 1.0),
    ],
)
def test_a_pair_counts_more_for_each_level_of_severity_between_its_answers(
    tokenizer: Any, safe: Any, severity: Any, gap: int | None, weight: float
) -> None:
    pairs = [pair("x", 0, safe, severity), *(pair(name) for name in "abc")]
    settings = PairSettings(objective="dpo", severity_weight=0.5)
    kept, _ = order_pairs(tokenizer, pairs, settings, seed=0)
    mean = (weight + 3) / 4
    assert sorted(one.weight for one in kept) == pytest.approx(sorted([weight / mean] + [1 / mean] * 3))
    assert gap in [one.severity_gap for one in kept]


def test_single_answers_are_labelled_by_the_preference_or_each_by_its_safety(tokenizer: Any) -> None:
    pairs = [pair("a", 1, (True, False)), pair("b", None, (None, True)), pair("c", 0, (None, None))]
    kept, left_out = label_answers(tokenizer, pairs, PairSettings(objective="kto"), seed=0)
    assert [one.desirable for one in kept] == [(True, False)] * 2
    assert left_out == {"no preference, or a tie": 1}
    settings = PairSettings(objective="kto", preference="is_safe")
    kept, left_out = label_answers(tokenizer, pairs, settings, seed=0)
    assert sorted(one.desirable for one in kept) == [(True,), (True, False)]
    assert all(len(one.row.responses) == len(one.desirable) for one in kept)
    assert left_out == {"no safety label": 1}


def test_an_answer_of_unknown_safety_is_not_taken_for_safe(tokenizer: Any) -> None:
    pairs = [pair("a", safe=(None, True)), pair("b", safe=(None, None)), pair("c", safe=(True, False))]
    ordered, left_out = order_pairs(tokenizer, pairs, PairSettings(objective="bfpo"), 0)
    assert (len(ordered), left_out["no safety label"]) == (1, 2)


def test_a_safer_label_that_contradicts_the_severities_stops_the_run(tokenizer: Any) -> None:
    given = pair("a", safe=(None, None), severity=(3, 0), safer=0)
    with pytest.raises(DataError, match="safer names the unsafe answer"):
        order_pairs(tokenizer, [given], PairSettings(objective="dpo", preference="safer"), 0)
