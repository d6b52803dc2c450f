"""No prompt on both sides, whatever the rows and their order."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.identity import AnyRecord
from equipoise.data.splits import normalise_prompt, split
from equipoise.errors import ConfigError
from equipoise.records import Answer, Exchange, Message, Pair, Prompt

HALVES = {"train": 0.5, "test": 0.5}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("How do I bake?", "  how do I\nBAKE"),
        ("\uff28ello", "hello"),  # a full-width letter
        ("stra\u00dfe", "STRASSE"),
        ("\u201cWhy not?!\u201d", "why not"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_texts_that_count_as_one_prompt(left: str, right: str) -> None:
    assert normalise_prompt(left) == normalise_prompt(right)


@pytest.mark.parametrize(
    ("left", "right"), [("a b", "ab"), ("?", "!"), ("is it c++", "is it c"), ("I am", "Am I")]
)
def test_texts_that_differ(left: str, right: str) -> None:
    assert normalise_prompt(left) != normalise_prompt(right)


@given(st.text(max_size=40))
def test_normalisation_settles(text: str) -> None:
    once = normalise_prompt(text)
    assert normalise_prompt(once) == once


@given(st.text(st.sampled_from("aZ 1.?!$+<~_\t\n\x1c'\"(-")))
def test_plain_texts_are_normalised_by_the_same_rule(text: str) -> None:
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    kept = [n for n, c in enumerate(words) if not (c.isspace() or unicodedata.category(c).startswith("P"))]
    assert normalise_prompt(text) == (words[kept[0] : kept[-1] + 1] if kept else words)
    assert normalise_prompt(text + "\u00e9") == normalise_prompt(text + "e\u0301")  # what is not plain


def records_of(seeds: Sequence[tuple[int, bool | None, int]]) -> list[AnyRecord]:
    """Records of three kinds over few prompts, written in several ways."""
    records: list[AnyRecord] = []
    for number, (prompt, safe, kind) in enumerate(seeds):
        text = [f"Question {prompt}", f"question  {prompt}?", f"\u201cQUESTION {prompt}\u201d"][number % 3]
        answer = Answer(
            response=f"r{number}", is_safe=safe, severity=None if safe is None else 2 * (not safe)
        )
        if kind == 0:
            records.append(Prompt(id=str(number), prompt=text, is_harmful=safe))
        elif kind == 1:
            turn = (Message(role="user", content=text),)
            records.append(Exchange(id=str(number), prompt=turn, response="r", is_safe=safe))
        else:
            records.append(Pair(id=str(number), prompt=text, answers=(answer, answer)))
    return records


SEEDS = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([True, False, None]), st.integers(0, 2)), max_size=60
)


@settings(deadline=None)
@given(SEEDS, st.integers(0, 3), st.booleans())
def test_no_prompt_is_on_both_sides(
    seeds: list[tuple[int, bool | None, int]], seed: int, stratify: bool
) -> None:
    records = records_of(seeds)
    parts = split(records, HALVES, seed=seed, stratify=stratify)
    sides: dict[int, set[str]] = {}
    for (prompt, _, _), part in zip(seeds, parts, strict=True):
        sides.setdefault(prompt, set()).add(part)
    assert len(parts) == len(records)
    assert all(len(side) == 1 for side in sides.values())


@settings(deadline=None)
@given(SEEDS, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(seeds: list[tuple[int, bool | None, int]], random: object) -> None:
    records = records_of(seeds)
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    sides = dict(zip([r.id for r in records], split(records, HALVES), strict=True))
    assert dict(zip([r.id for r in shuffled], split(shuffled, HALVES), strict=True)) == sides


def plain(count: int, rows_each: int = 1) -> list[Exchange]:
    return [
        Exchange(
            id=f"{n}-{k}",
            prompt=f"prompt {n}",
            response="r",
            is_safe=n % 3 == 0,
            severity=0 if n % 3 == 0 else n % 4,
        )
        for n in range(count)
        for k in range(rows_each)
    ]


@pytest.mark.parametrize("rows_each", [1, 4])
def test_shares_are_met_to_one_group_over_all_and_two_in_each_stratum(rows_each: int) -> None:
    records = plain(500, rows_each)
    fractions = {"train": 0.7, "validation": 0.1, "test": 0.2}
    parts = split(records, fractions, seed=3)
    for name, share in fractions.items():
        assert abs(parts.count(name) - share * len(records)) <= rows_each
        for safe in (True, False):
            for severity in range(4):
                inside = [
                    p
                    for r, p in zip(records, parts, strict=True)
                    if (r.is_safe, r.severity) == (safe, severity)
                ]
                assert abs(inside.count(name) - share * len(inside)) <= 2 * rows_each


def test_seed_changes_the_sides_and_repeats() -> None:
    records = plain(100)
    assert split(records, HALVES, seed=1) == split(records, HALVES, seed=1)
    assert split(records, HALVES, seed=1) != split(records, HALVES, seed=2)


def test_new_rows_of_known_prompts_follow_their_prompt() -> None:
    records = plain(50)
    sides = split(records, HALVES)
    doubled = split([*records, *records], HALVES)
    assert doubled[:50] == doubled[50:]
    assert Counter(sides)["train"] == 25


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 1.0}, "two parts or more, got train=1"),
        ({"train": 0.8, "test": 0.3}, "add up to 1, got train=0.8, test=0.3"),
        ({"train": 1.2, "test": -0.2}, "positive shares"),
        ({"train": float("nan"), "test": 0.5}, "positive shares"),
        ({"../x": 0.5, "test": 0.5}, "got '../x'"),
    ],
)
def test_shares_that_do_not_fit_are_refused(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split(plain(4), fractions)
