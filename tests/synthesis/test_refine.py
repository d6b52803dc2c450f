"""Refining prompts: what is changed, why, and that the original is kept."""

import pytest

from equipoise.records import Message, Prompt
from equipoise.synthesis.refine import Change, complete, normalise, refine, split


def prompt(text: str, id_: str = "a", twin: str | None = None) -> Prompt:
    return Prompt(id=id_, prompt=text, twin=twin)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  1) how  do I\u00a0bake bread?", "How do I bake bread?"),
        ("Question 3: Why is the sky blue?", "Why is the sky blue?"),
        ("- user: Tell me a story.", "Tell me a story."),
        ('"What is yeast?"', "What is yeast?"),
        ("It\u2019s cold.\n\n\nWhat helps?", "It's cold.\nWhat helps?"),
        ("3 eggs are left, what now?", "3 eggs are left, what now?"),
    ],
)
def test_normalising_removes_marks_and_keeps_words(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How do I bake bread", "How do I bake bread?"),
        ("Tell me a story", "Tell me a story."),
        ("I like bread. How do I bake it", "I like bread. How do I bake it?"),
        ("How do I bake bread? I have flour and", "How do I bake bread?"),
        ("How do I bake bread for my", "How do I bake bread?"),
        ("Done already!", "Done already!"),
    ],
)
def test_a_sentence_that_broke_off_ends(text: str, expected: str) -> None:
    assert complete(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is yeast?", ["What is yeast?"]),
        ("What is yeast? Also how is it made?", ["What is yeast?", "How is it made?"]),
        (
            "I have flour. How do I bake? And where do I buy yeast?",
            ["I have flour. How do I bake?", "I have flour. Where do I buy yeast?"],
        ),
        ("What is yeast and how does it work?", ["What is yeast?", "How does it work?"]),
        (
            "I live near a bakery, what is yeast? How does it work?",
            ["I live near a bakery, what is yeast?", "How does it work?"],
        ),
        ('He asked "What is yeast? How does it work?"', ['He asked "What is yeast? How does it work?"']),
        (
            "What is yeast? How does it work? Be brief.",
            ["What is yeast? How does it work? Be brief."],
        ),
    ],
)
def test_every_question_becomes_a_prompt(text: str, expected: list[str]) -> None:
    assert split(text) == expected


def test_every_change_is_kept_beside_its_original() -> None:
    found = refine([prompt("2. how do I bake bread")])
    assert [p.prompt for p in found.prompts] == ["How do I bake bread?"]
    assert found.changes == [
        Change("a", "normalised", "2. how do I bake bread", "How do I bake bread"),
        Change("a", "completed", "How do I bake bread", "How do I bake bread?"),
    ]


def test_the_parts_of_a_split_have_ids_of_their_own_and_one_link() -> None:
    rows = [
        prompt("What is yeast? Where do I buy good yeast?", "a", twin="b"),
        prompt("How do I store flour?", "b", twin="a"),
    ]
    found = refine(rows)
    assert [(p.id, p.twin) for p in found.prompts] == [("a", "b"), ("a/2", None), ("b", "a")]
    assert {c.reason for c in found.changes} == {"split"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hey.", "too_short"),
        ("I'm sorry, but I can't help with that request.", "refusal"),
        ("Bitte erkl\u00e4re mir, warum das Wetter in den Bergen so schnell umschl\u00e4gt.", "language:de"),
        ("and so it goes " * 10, "repetitive"),
        ("dough flour the has with until wait Mix water doubled and warm. the", "gibberish"),
    ],
)
def test_what_is_no_prompt_is_dropped_with_its_reason(text: str, reason: str) -> None:
    found = refine([prompt(text), prompt("How do I bake bread at home?", "b")])
    assert [p.id for p in found.prompts] == ["b"]
    dropped = found.changes[-1]
    assert (dropped.id, dropped.reason, dropped.after) == ("a", reason, None)


def test_of_near_copies_the_first_stays_and_its_name_is_told() -> None:
    rows = [
        prompt("How do I bake a loaf of dark bread in a small oven at home?", "a"),
        prompt("how do i bake a loaf of dark bread in a small oven at home", "b"),
    ]
    found = refine(rows)
    assert [p.id for p in found.prompts] == ["a"]
    assert (found.changes[-1].id, found.changes[-1].reason, found.changes[-1].of) == (
        "b",
        "near_duplicate",
        "a",
    )


def test_a_prompt_whose_look_alike_is_dropped_loses_the_link() -> None:
    found = refine([prompt("How do I bake bread at home?", "a", twin="b"), prompt("Hey.", "b", twin="a")])
    assert [(p.id, p.twin) for p in found.prompts] == [("a", None)]
    assert found.changes[-1].reason == "look_alike_dropped"


def test_a_chat_is_left_as_it_is() -> None:
    chat = Prompt(
        id="c", prompt=(Message(role="user", content="hi"), Message(role="assistant", content="yo"))
    )
    found = refine([chat])
    assert found.prompts == [chat]
    assert not found.changes


def test_refining_what_is_refined_changes_nothing() -> None:
    once = refine([prompt("2. how do I bake bread"), prompt("What is yeast? And how is it made?", "b")])
    twice = refine(once.prompts)
    assert twice.prompts == once.prompts
    assert not twice.changes
