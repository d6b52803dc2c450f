"""A model's text as one clean prompt."""

import pytest

from equipoise.synthesis.texts import end_of, first_sentence, holds, odd


@pytest.mark.parametrize(
    ("start", "rest", "expected"),
    [
        ("How do I bake", " bread at home? Then I eat.", "How do I bake bread at home?"),
        ("How do I bake", " bread at home.", "How do I bake bread at home?"),
        ("Write a note", " to my aunt. She is ill.", "Write a note to my aunt."),
        ("I have flour and", " time. How do I start?", "I have flour and time."),
        ("How do I bake", " bread at", None),  # broke off
        ("How do I bake", "?", None),  # nothing was added
        ("How do I bake", " bread\nat home?", None),  # the line ended first
        ("How do I bake", " 3.5 loaves of bread?", "How do I bake 3.5 loaves of bread?"),
    ],
)
def test_a_begun_sentence_ends_where_the_model_ends_it(start: str, rest: str, expected: str | None) -> None:
    assert first_sentence(start, rest) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("can I come in and", "Can I come in?"),
        ("Tell me about the", "Tell me about."),
        ("Stop it!", "Stop it."),
    ],
)
def test_a_sentence_gets_its_mark_and_loses_what_hangs_over(text: str, expected: str) -> None:
    assert end_of(text) == expected


@pytest.mark.parametrize(
    "text", ["a <b> c", "see https://x", 'he said "yes', "a_b", "wait.. what", "call 123456"]
)
def test_marks_of_a_page_are_odd(text: str) -> None:
    assert odd(text) == "odd_characters"


def test_plain_text_is_not_odd_unless_it_is_long() -> None:
    assert odd('Where\'s the "old" mill (near the lake), and is it open?') is None
    assert odd("word " * 46) == "too_long"


def test_a_forbidden_word_counts_as_a_word_only() -> None:
    assert holds("My young guest", ("young",))
    assert not holds("My youngest guest", ("young",))
