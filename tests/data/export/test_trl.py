"""The formats of trl, in both styles, and the choices that they need."""

from pathlib import Path
from typing import Any

import pytest

from equipoise.data.export.formats import FORMATS
from equipoise.data.export.rows import LeftOut, Out
from equipoise.data.export.settings import ExportConfig
from equipoise.records import Answer, Exchange, Message, Pair, Prompt

PAIR = Pair(
    id="a",
    prompt="q",
    answers=(Answer(response="bad", is_safe=False), Answer(response="good", is_safe=True)),
    better=0,
    safer=1,
    overall="tie",
)
UNSAFE = PAIR.model_copy(
    update={"answers": (Answer(response="bad", severity=2), Answer(response="worse", severity=3)), "safer": 0}
)
CHAT = PAIR.model_copy(
    update={
        "prompt": (
            Message(role="system", content="Be kind."),
            Message(role="user", content="Hi"),
            Message(role="assistant", content="Yes?"),
            Message(role="user", content="q"),
        )
    }
)


def rows(record: Any, to: str, **choices: str) -> list[Out]:
    convert = FORMATS[to].rows
    assert convert is not None
    return list(convert(record, ExportConfig(files=(Path(__file__),), to=to, **choices)))


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def test_a_preference_in_both_styles() -> None:
    assert rows(PAIR, "trl-preference", preference="safer") == [
        {
            "prompt": said("user", "q"),
            "chosen": said("assistant", "good"),
            "rejected": said("assistant", "bad"),
        }
    ]
    plain = [{"prompt": "q", "chosen": "bad", "rejected": "good"}]
    assert rows(PAIR, "trl-preference", preference="better", style="standard") == plain


def test_a_chat_keeps_its_turns_and_does_not_fit_plain_text() -> None:
    (row,) = rows(CHAT, "trl-preference", preference="safer")
    assert isinstance(row, dict)
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user", "assistant", "user"]
    (out,) = rows(CHAT, "trl-preference", preference="safer", style="standard")
    assert isinstance(out, LeftOut)
    assert out.reason.startswith("the prompt is a chat of several turns")


def test_a_tie_is_left_out_or_given_in_either_order() -> None:
    assert rows(PAIR, "trl-preference", preference="overall") == [LeftOut("'overall' is a tie")]
    both = rows(PAIR, "trl-preference", preference="overall", ties="both", style="standard")
    assert both == [
        {"prompt": "q", "chosen": "bad", "rejected": "good"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
    ]


def test_pairs_of_two_unsafe_answers_stay_unless_told() -> None:
    kept = [{"prompt": "q", "chosen": "bad", "rejected": "worse"}]
    assert rows(UNSAFE, "trl-preference", preference="safer", style="standard") == kept
    dropped = rows(UNSAFE, "trl-preference", preference="safer", both_unsafe="drop")
    assert dropped == [LeftOut("both answers are unsafe")]
    assert len(rows(PAIR, "trl-preference", preference="safer", both_unsafe="drop")) == 1


def test_what_has_no_preference_is_left_out() -> None:
    unlabelled = PAIR.model_copy(update={"safer": None})
    assert rows(unlabelled, "trl-preference", preference="safer") == [LeftOut("'safer' is not labelled")]
    assert rows(PAIR.exchange(0), "trl-preference", preference="safer") == [LeftOut("no pair of answers")]


def test_kto_labels_each_answer_by_its_safety() -> None:
    assert rows(PAIR, "trl-kto", style="standard") == [
        {"prompt": "q", "completion": "bad", "label": False},
        {"prompt": "q", "completion": "good", "label": True},
    ]
    one = Exchange(id="a", prompt="q", response="r", severity=0)
    assert rows(one, "trl-kto") == [
        {"prompt": said("user", "q"), "completion": said("assistant", "r"), "label": True}
    ]


def test_kto_labels_the_preferred_answer_where_a_preference_is_named() -> None:
    found = rows(PAIR, "trl-kto", style="standard", label="better")
    assert [row["label"] for row in found if isinstance(row, dict)] == [True, False]
    assert rows(PAIR, "trl-kto", label="overall") == [LeftOut("'overall' is a tie")]
    assert rows(PAIR.exchange(0), "trl-kto", label="safer") == [LeftOut("no pair of answers")]
    assert rows(UNSAFE, "trl-kto", label="safer", both_unsafe="drop") == [LeftOut("both answers are unsafe")]


def test_an_answer_without_a_label_is_left_out_of_kto() -> None:
    unlabelled = Exchange(id="a", prompt="q", response="r", refusal="full")
    assert rows(unlabelled, "trl-kto") == [LeftOut("an answer without a label of its safety")]
    assert rows(Prompt(id="a", prompt="q"), "trl-kto") == [LeftOut("a prompt without an answer")]


@pytest.mark.parametrize("record", [PAIR, PAIR.exchange(1), Prompt(id="a", prompt="q")])
def test_any_record_has_a_prompt(record: Any) -> None:
    assert rows(record, "trl-prompt") == [{"prompt": said("user", "q")}]
    assert rows(record, "trl-prompt", style="standard") == [{"prompt": "q"}]
