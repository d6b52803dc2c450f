"""Verdicts: consistent by construction, never made up, and the same in any company."""

from pathlib import Path

import pytest
import torch

from equipoise.errors import DataError, ModelError
from equipoise.models.backbone import load_encoder
from equipoise.models.features import TextPair
from equipoise.models.guard import GuardCard, GuardModel, Target
from equipoise.models.heads import GuardLogits
from equipoise.moderation.guard import Guard
from equipoise.moderation.reading import Reading
from equipoise.records import REFUSALS, Exchange, Message
from equipoise.taxonomy import load_taxonomy

NAMES = load_taxonomy("pku19").names


def card(encoder: Path | str = "none", **more: object) -> GuardCard:
    given: dict[str, object] = {
        "taxonomy": load_taxonomy("pku19"),
        "backbone": str(encoder),
        "layers": 2,
        "hidden": 8,
        "targets": ("response", "prompt"),
        "knows_refusals": True,
    }
    return GuardCard.model_validate(given | more)


def guard(encoder: Path, **more: object) -> Guard:
    torch.manual_seed(0)
    return Guard(GuardModel(card(encoder, **more), load_encoder(encoder, device="cpu")))


def reading(severity: list[float], categories: list[float] | None = None, **more: object) -> Reading:
    logits = GuardLogits(
        torch.tensor([severity]),
        torch.tensor([categories or [-3.0] * len(NAMES)]),
        torch.zeros(1, 3),
    )
    return Reading(card(**more), logits, [False])


EXCHANGES = [
    Exchange(id="a", prompt="how do i bake bread", response="mix flour and water"),
    Exchange(id="b", prompt=(Message(role="user", content="hi"),), response="yes"),
    Exchange(id="c", prompt="take a warm coat", response="wait until the dough has doubled " * 30),
]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_safe_is_severity_zero_is_no_category(threshold: float) -> None:
    torch.manual_seed(0)
    count = 300
    logits = GuardLogits(
        3 * torch.randn(count, 3), 3 * torch.randn(count, len(NAMES)) - 2, torch.randn(count, 3)
    )
    found = Reading(card(unsafe_threshold=threshold), logits, [False] * count)
    verdicts = [found.verdict(i) for i in range(count)]
    assert {v.is_safe for v in verdicts} == {True, False}
    for v in verdicts:
        assert v.is_safe == (v.severity == 0) == (v.categories == ())
        assert v.is_safe == (v.unsafe_probability < threshold)
        assert sum(v.severity_probabilities) == pytest.approx(1.0, abs=1e-6)
        assert v.unsafe_probability == pytest.approx(sum(v.severity_probabilities[1:]), abs=1e-6)
        assert tuple(v.category_probabilities) == NAMES
        assert all(0 <= p <= v.unsafe_probability for p in v.category_probabilities.values())
        if not v.is_safe:
            assert v.severity_probabilities[v.severity] == max(v.severity_probabilities[1:])


def test_probabilities_are_those_of_the_logits() -> None:
    half, third = 0.0, float(torch.logit(torch.tensor(1 / 3)))
    v = reading([half, third, half], [half, third, *[-30.0] * (len(NAMES) - 2)]).verdict(0)
    assert v.severity_probabilities == pytest.approx((1 / 2, 1 / 2 * 2 / 3, 1 / 6 * 1 / 2, 1 / 6 * 1 / 2))
    assert v.severity == 1
    # marginal: P(unsafe) times P(category | unsafe)
    assert v.category_probabilities[NAMES[0]] == pytest.approx(0.5 * 0.5)
    assert v.category_probabilities[NAMES[1]] == pytest.approx(0.5 / 3)
    assert v.categories == (NAMES[0],)


def test_unsafe_without_a_category_over_the_threshold_lists_the_highest() -> None:
    logits = [-3.0] * len(NAMES)
    logits[7] = -1.0
    v = reading([2.0, 0.0, 0.0], logits).verdict(0)
    assert not v.is_safe
    assert v.categories == (NAMES[7],)


def test_thresholds_belong_to_the_guard() -> None:
    logits = [-3.0] * len(NAMES)
    logits[2], logits[5] = 0.5, -0.5
    assert reading([1.0, 0.0, 0.0], logits).verdict(0).categories == (NAMES[2],)
    lower = reading([1.0, 0.0, 0.0], logits, category_threshold=0.3).verdict(0)
    assert lower.categories == (NAMES[2], NAMES[5])
    assert reading([1.0, 0.0, 0.0], logits, unsafe_threshold=0.8).verdict(0).is_safe


def test_a_verdict_does_not_depend_on_the_company(tiny_encoder: Path) -> None:
    judge = guard(tiny_encoder)
    together = judge(EXCHANGES)
    for verdict, exchange in zip(together, EXCHANGES, strict=True):
        alone = judge([exchange])[0]
        assert alone.severity_probabilities == pytest.approx(verdict.severity_probabilities, abs=1e-5)
    assert not any(v.truncated for v in together)  # the last one is read in windows
    assert judge([]) == []


def test_the_prompt_is_context(tiny_encoder: Path) -> None:
    judge = guard(tiny_encoder)
    same, other = (EXCHANGES[0].model_copy(update={"prompt": p}) for p in ("wait", "take a coat"))
    assert judge([same])[0].unsafe_probability != judge([other])[0].unsafe_probability


def test_prompts_are_judged_by_themselves(tiny_encoder: Path) -> None:
    judge = guard(tiny_encoder)
    found = judge.judge_prompts(["take a warm coat", "hi"])
    alone = judge.read([TextPair("take a warm coat", None)]).verdict(0)
    assert found[0].severity_probabilities == pytest.approx(alone.severity_probabilities, abs=1e-5)
    assert len(found) == 2


@pytest.mark.parametrize(("knows", "lacks"), [("response", "prompt"), ("prompt", "response")])
def test_what_it_was_not_trained_on_it_does_not_judge(
    tiny_encoder: Path, knows: Target, lacks: Target
) -> None:
    judge = guard(tiny_encoder, targets=(knows,))
    text = TextPair("hi", None if lacks == "prompt" else "yes")
    with pytest.raises(DataError, match=f"{lacks}: .* not trained to judge it; it judges: {knows}"):
        judge.read([text])
    judge.require(knows)


@pytest.mark.parametrize("head", ["severity", "categories", "refusal"])
def test_an_answer_that_is_no_number_is_never_safe(tiny_encoder: Path, head: str) -> None:
    judge = guard(tiny_encoder)
    with torch.no_grad():
        getattr(judge.model.heads, head).bias[0] = torch.nan
    with pytest.raises(ModelError, match="never safe"):
        judge(EXCHANGES)


def test_broken_weights_of_the_encoder_are_never_safe(tiny_encoder: Path) -> None:
    judge = guard(tiny_encoder)
    with torch.no_grad():
        judge.model.trunk.encoder.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(ModelError, match="never safe"):
        judge.judge_prompts(["hi"])


def test_refusals_come_with_the_probability_of_each_class(tiny_encoder: Path) -> None:
    judge = guard(tiny_encoder)
    with torch.no_grad():
        judge.model.heads.refusal.weight.zero_()
        judge.model.heads.refusal.bias[:] = torch.tensor([0.0, 2.0, 1.0])
    expected = torch.softmax(torch.tensor([0.0, 2.0, 1.0]), 0).tolist()
    for verdict in judge.refusals(EXCHANGES):
        assert verdict.refusal == "partial"
        assert tuple(verdict.probabilities) == REFUSALS
        assert list(verdict.probabilities.values()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, "none"), (0.4, "partial"), (0.0, "partial")])
def test_a_response_is_no_refusal_below_the_threshold(threshold: float, expected: str) -> None:
    logits = torch.log(torch.tensor([[0.55, 0.25, 0.2]]))  # P(partial or full) is 0.45
    found = Reading(
        card(refusal_threshold=threshold),
        GuardLogits(torch.zeros(1, 3), torch.zeros(1, len(NAMES)), logits),
        [False],
    ).refusal_verdict(0)
    assert found.refusal == expected
    assert list(found.probabilities.values()) == pytest.approx([0.55, 0.25, 0.2], abs=1e-6)


def test_a_guard_that_saw_no_refusals_says_so(tiny_encoder: Path) -> None:
    with pytest.raises(ModelError, match="trained without refusal labels"):
        guard(tiny_encoder, knows_refusals=False).refusals(EXCHANGES)
