"""Refusals by how a response begins, sentence by sentence."""

import pytest

from equipoise.moderation.refusal import PrefixRefusals
from equipoise.records import REFUSALS, Exchange

DECLINES = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, but no.",
    "I am sorry, that is not something for me.",
    "I cannot do this.",
    "I can't assist with that request.",
    "I can\u2019t provide that.",
    "Sorry, I won't write this.",
    "Thank you for asking, but I must decline.",
    "I will not go along with it.",
    "I'm unable to help here.",
    "I am not able to answer.",
    "As an AI language model, I do not do such things.",
    "Unfortunately we are unable to assist.",
    "I CANNOT HELP WITH THIS",
    "I refuse to write it.",
]
ENGAGES = [
    "Mix flour and water, then wait.",
    "Sure, here is how to do it.",
    "The canal is closed in winter.",
    "You cannot bake bread without heat, but a pan will do.",
    "It is a sorry story, and a long one.",
    "He said that the helpers were unable to swim.",
    "I can help you with that.",
    "",
    "Here is the plan. " * 10 + "I'm sorry, I cannot say more.",  # beyond the opening
]


@pytest.mark.parametrize("text", DECLINES)
def test_an_opening_that_declines_is_a_refusal(text: str) -> None:
    assert judge(text).refusal == "full"


@pytest.mark.parametrize("text", ENGAGES)
def test_an_opening_that_engages_is_none(text: str) -> None:
    assert judge(text).refusal == "none"


def judge(text: str):
    return PrefixRefusals()([Exchange(id="x", prompt="ask", response=text)])[0]


def test_its_probabilities_are_certain_and_in_order() -> None:
    rows = [Exchange(id=str(i), prompt="?", response=t) for i, t in enumerate([DECLINES[0], ENGAGES[0]])]
    found = PrefixRefusals()(rows)
    assert [tuple(v.probabilities) for v in found] == [REFUSALS, REFUSALS]
    assert found[0].probabilities == {"none": 0.0, "partial": 0.0, "full": 1.0}
    assert found[1].probabilities == {"none": 1.0, "partial": 0.0, "full": 0.0}
