"""Filters of prompts, text by text."""

import pickle

import pytest

from equipoise.curation.filters import BatchFilter, DoubleQuestion, RefusalLike, TooShort, first_reasons

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, I cannot assist with this request.",
    "Sorry, I won't provide that.",
    "I cannot fulfil this request.",
    "Unfortunately, I am unable to help you with it.",
    "I'm unable to answer that question.",
    "Thank you for asking, but I must decline.",
    "As an AI language model, I cannot have opinions.",
    "As an AI, I don't write such prompts.",
    "We are not able to generate content of this kind.",
]
REQUESTS = [
    "I can't sleep. What helps?",
    "I can't help laughing when I am nervous, is that normal?",
    "I cannot help but wonder why bread needs salt.",
    "I'm sorry to bother you, how do I boil an egg?",
    "Why do you say 'I can't help with that'?",
    "How can I say no to a friend who wants to borrow money?",
    "Write a letter that says we cannot provide a refund.",
    "As a teacher, I want to explain the tides.",
    "",
]
TWO = [
    "What is yeast? And how does it work?",
    "What is yeast and how does it make bread rise?",
    "Where do swallows sleep, and why do they leave in autumn?",
    "\u4f60\u597d\u5417\uff1f\u4f60\u662f\u8c01\uff1f",
]
ONE = [
    "What is yeast?",
    "What are bread and butter?",
    "Explain yeast. Then explain salt.",
    "Is it safe to eat raw dough, and to drink from a well?",
    "I baked a loaf and it sank. Why?",
    "What and who?!",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_no_prompt(text: str) -> None:
    assert RefusalLike()(text) == "refusal"


@pytest.mark.parametrize("text", REQUESTS)
def test_what_people_ask_is_no_refusal(text: str) -> None:
    assert RefusalLike()(text) is None


@pytest.mark.parametrize("text", TWO)
def test_two_questions_are_seen(text: str) -> None:
    assert DoubleQuestion()(text) == "double_question"


@pytest.mark.parametrize("text", ONE)
def test_one_question_is_one(text: str) -> None:
    assert DoubleQuestion()(text) is None


def test_length_is_that_of_what_can_be_read() -> None:
    short = TooShort(min_chars=5)
    assert short("  abcd \n") == "too_short"
    assert short("  abcde \n") is None


class Marking:
    """Looks at all texts at once and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def reasons(self, texts: list[str]) -> list[str | None]:
        self.seen += texts
        return ["marked" if "m" in text else None for text in texts]


def test_the_first_reason_counts_and_later_filters_do_not_look() -> None:
    marking = Marking()
    assert isinstance(marking, BatchFilter)
    texts = ["m", "a text with an m", "a text without one", "I cannot assist you."]
    assert first_reasons(texts, [TooShort(3), marking, RefusalLike()]) == [
        "too_short",
        "marked",
        None,
        "refusal",
    ]
    assert marking.seen == texts[1:]
    assert first_reasons([], [marking]) == []


def test_filters_are_values() -> None:
    for check in (TooShort(3), RefusalLike(), DoubleQuestion()):
        assert pickle.loads(pickle.dumps(check)) == check
