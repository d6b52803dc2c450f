"""The built-in corpus: what its parts hold, and that none of them gives away another."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import cast

import pytest

from equipoise.data.corpus import PARTS, corpus
from equipoise.data.splits import normalise_prompt
from equipoise.records import Prompt, text_of
from equipoise.stats import auroc
from equipoise.taxonomy import load_taxonomy


def words_of(prompt: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w']+", normalise_prompt(prompt)))


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


@pytest.fixture(scope="module")
def look_alikes() -> list[Prompt]:
    return cast(list[Prompt], corpus("look_alikes"))


def test_look_alikes_are_mostly_harmless_and_even_over_their_kinds(look_alikes: list[Prompt]) -> None:
    harmful = Counter(row.provenance["kind"] for row in look_alikes if row.is_harmful)
    harmless = Counter(row.provenance["kind"] for row in look_alikes if row.is_harmful is False)
    assert len(harmless) == 16
    assert set(harmless.values()) == {30}
    assert harmful == dict.fromkeys(harmless, 10)
    lengths = sorted(len(text_of(row.prompt).split()) for row in look_alikes if not row.is_harmful)
    assert lengths[0] >= 4
    assert lengths[-1] <= 45


@pytest.fixture(scope="module")
def requests() -> list[Prompt]:
    return cast(list[Prompt], corpus("requests"))


@pytest.mark.parametrize(("part", "least"), [("look_alikes", 8), ("requests", 115), ("questions", 29)])
def test_labels_of_prompts_to_learn_from_agree_with_each_other(part: str, least: int) -> None:
    rows = cast(list[Prompt], corpus(part))
    assert len({normalise_prompt(text_of(row.prompt)) for row in rows}) == len(rows)
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        harmful = row.is_harmful is True
        assert bool(row.categories) is harmful, row.id
        assert (row.severity in (1, 2, 3)) if harmful else row.severity == 0, row.id
        assert (row.licence, row.label_origin) == ("Apache-2.0", "authors"), row.id
    counts = Counter(name for row in rows for name in row.categories or ())
    assert set(counts) == set(load_taxonomy("pku19").names)
    assert min(counts.values()) >= least
    assert {row.severity for row in rows} == {0, 1, 2, 3}


WAYS = """How to|How do I|How can I|Ways to|What is the best way to|What are some effective ways to|
Give me step-by-step instructions to|Write a tutorial on how to|Can you explain how to|I want to|
List five tips to|Write a short guide for people who want to|What are some strategies to|
What tactics do experts use to|Suggest a plan to|How can somebody|Describe the steps needed to|Help me|
Can you teach me to|What would it take to""".replace("\n", "").split("|")
OPENERS = """Is it true that|Did you know that|Do you think|Do you believe|Is it possible|Is there|Are there|
Why would|Why do|What is|What are|What happens|Who|When|Where can|Should I|Can|Could you|Did|Have you
""".replace("\n", "").split("|")


@pytest.mark.parametrize(
    ("part", "openings", "most"), [("requests", WAYS, 1.5), ("questions", OPENERS, 1.15)]
)
def test_harmless_and_harmful_prompts_begin_in_the_same_ways(
    part: str, openings: list[str], most: float
) -> None:
    openings = sorted(openings, key=len, reverse=True)
    counts: dict[bool | None, Counter[str]] = {True: Counter(), False: Counter()}
    for row in cast(list[Prompt], corpus(part)):
        text = text_of(row.prompt)
        counts[row.is_harmful][next(opening for opening in openings if text.startswith(opening))] += 1
    for opening in openings:
        harmful, harmless = (counts[kind][opening] / counts[kind].total() for kind in (True, False))
        assert 1 / most < harmful / harmless < most, opening


def test_the_verb_of_a_request_tells_little_of_its_harm(requests: list[Prompt]) -> None:
    """By how many of the other requests with its verb are harmful; the share of all counts as one of them."""
    openings = sorted(WAYS, key=len, reverse=True)
    verbs, harmful = [], [row.is_harmful is True for row in requests]
    for row in requests:
        text = text_of(row.prompt)
        opening = next(opening for opening in openings if text.startswith(opening))
        verbs.append(text[len(opening) :].split()[0].lower().strip(".,?"))
    counts, harms = Counter(verbs), Counter(v for v, bad in zip(verbs, harmful, strict=True) if bad)
    share = sum(harmful) / len(harmful)
    told = [(harms[v] - bad + share) / counts[v] for v, bad in zip(verbs, harmful, strict=True)]
    assert auroc(told, harmful) < 0.7


def test_no_request_is_nearly_another_or_a_prompt_for_evaluation(requests: list[Prompt]) -> None:
    asking = words_of(" ".join(WAYS)) | words_of("where start without much money in their free time")
    words = {row.id: words_of(text_of(row.prompt)) - asking for row in requests}
    evaluated = [words_of(text_of(row.prompt)) - asking for row in corpus("prompts")]
    for name, one in words.items():
        assert max(overlap(one, other) for other in evaluated) < 0.6, name
    for (first, one), (second, other) in combinations(words.items(), 2):
        if len(one & other) > 1:
            assert overlap(one, other) < 0.75, (first, second)


def test_the_form_of_a_question_does_not_tell_whether_it_is_harmful() -> None:
    rows = cast(list[Prompt], corpus("questions"))
    harmful = [row.is_harmful is True for row in rows]
    texts = [text_of(row.prompt) for row in rows]
    person = re.compile(r"\b(i|my|me|mine|we|our|us)\b", re.IGNORECASE)
    for has in (person.search, re.compile(r"[.?!] ").search):
        rates = [
            sum(bool(has(text)) for text, one in zip(texts, harmful, strict=True) if one is kind)
            / harmful.count(kind)
            for kind in (True, False)
        ]
        assert abs(rates[0] - rates[1]) < 0.1
    assert abs(auroc([len(text.split()) for text in texts], harmful) - 0.5) < 0.1


def near(
    words: Mapping[str, frozenset[str]], others: Mapping[str, frozenset[str]], bound: float
) -> list[tuple[str, str]]:
    """Those that overlap with one of `others` by `bound` or more, which is above one half."""
    holding = defaultdict(list)
    for name, one in others.items():
        for word in one:
            holding[word].append(name)
    found = []
    for name, one in words.items():
        rare = sorted(one, key=lambda word: len(holding[word]))[
            : len(one) // 2 + 1
        ]  # they share one of these
        for other in {other for word in rare for other in holding[word]} - {name}:
            if overlap(one, others[other]) >= bound:
                found.append((name, other))
    return found


def words_of_parts(*parts: str) -> dict[str, frozenset[str]]:
    return {row.id: words_of(text_of(row.prompt)) for part in parts for row in corpus(part)}


def test_no_question_is_nearly_another_or_a_prompt_of_another_part() -> None:
    assert near(words_of_parts("questions"), words_of_parts(*PARTS), 0.65) == []


def test_what_is_near_is_found() -> None:
    words = {"a": frozenset(["one", "two", "three", "four"]), "b": frozenset(["one", "two", "three", "five"])}
    assert near(words, words, 0.6) == [("a", "b"), ("b", "a")]
    assert near(words, words, 0.61) == []


@pytest.mark.parametrize("part", ["prompts", "look_alikes"])
def test_twins_point_at_each_other_and_differ_in_harm(part: str) -> None:
    rows = {row.id: row for row in cast(list[Prompt], corpus(part))}
    assert len(rows) == len(corpus(part))
    harmful = [row for row in rows.values() if row.is_harmful]
    assert len({row.twin for row in harmful}) == len(harmful)
    for row in rows.values():
        if row.twin is None:
            assert row.is_harmful is False, row.id
            continue
        twin = rows[row.twin]
        assert (twin.twin, twin.is_harmful) == (row.id, not row.is_harmful), row.id
        assert twin.provenance == row.provenance, row.id


def test_no_prompt_of_one_part_stands_in_another() -> None:
    prompts = {part: {normalise_prompt(text_of(row.prompt)) for row in corpus(part)} for part in PARTS}
    for one, other in combinations(PARTS, 2):
        assert not prompts[one] & prompts[other], (one, other)


def test_no_look_alike_is_nearly_a_prompt_of_another_part() -> None:
    others = words_of_parts(*(part for part in PARTS if part != "look_alikes"))
    assert near(words_of_parts("look_alikes"), others, 0.7) == []


def test_no_look_alike_is_nearly_another(look_alikes: list[Prompt]) -> None:
    words = {row.id: words_of(text_of(row.prompt)) for row in look_alikes}
    twins = {row.id: row.twin for row in look_alikes}
    for one, other in combinations(words, 2):
        assert overlap(words[one], words[other]) < (0.85 if twins[one] == other else 0.7), (one, other)
