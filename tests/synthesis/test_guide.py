"""What a model is asked, and the frames that it is asked by."""

import random
from pathlib import Path

import pytest

from equipoise.errors import ConfigError
from equipoise.synthesis.guide import ask, ask_context, ask_look_alike, fill, guideline, load_frames
from equipoise.taxonomy import built_in, load_taxonomy


def test_the_guideline_holds_definition_near_misses_and_criterion() -> None:
    taxonomy = load_taxonomy("pku19")
    category = taxonomy.categories[3]
    text = guideline(taxonomy, category, 2)
    for part in (category.name, category.definition, category.not_this, taxonomy.severities[2].criterion):
        assert part in text


@pytest.mark.parametrize("name", built_in())
def test_every_taxonomy_has_frames_for_every_cell(name: str) -> None:
    taxonomy = load_taxonomy(name)
    frames = load_frames(taxonomy)
    for category in taxonomy.categories:
        assert frames.of(category).benign
        for severity in range(1, len(taxonomy.severities)):
            starts = {fill(f, frames, random.Random(0)).text for f in frames.asks(category, severity)}
            assert starts
            assert not any("{" in start for start in starts)


def test_the_built_in_frames_name_every_category_at_three_severities() -> None:
    taxonomy = load_taxonomy("pku19")
    frames = load_frames(taxonomy)
    assert list(frames.categories) == [category.id for category in taxonomy.categories]
    assert all(sorted(found.asks) == [1, 2, 3] for found in frames.categories.values())


def test_a_slot_that_is_known_keeps_its_filling() -> None:
    frames = load_frames(load_taxonomy("pku19"))
    first = fill("{person} at {place}", frames, random.Random(1))
    second = fill("{place} without {person}", frames, random.Random(2), first.slots)
    assert second.slots == first.slots


def test_frames_of_another_taxonomy_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "frames.yaml"
    path.write_text(
        "default: {asks: {1: [How]}, benign: [Why]}\ncategories: {violense: {asks: {}, benign: []}}\n"
        "look_alikes: []\n",
        "utf-8",
    )
    with pytest.raises(ConfigError, match=r"no category 'violense' in 'pku19' \(did you mean 'violence'\?\)"):
        load_frames(load_taxonomy("pku19"), path)


def test_a_chat_ends_with_the_begun_answer() -> None:
    frames = load_frames(load_taxonomy("pku19"))
    assert ask("List.", ["One.", "Two."], "Three")[-1]["content"] == "1. One.\n2. Two.\n3. Three"
    for chat in (ask_look_alike(frames, "Why?", "How do"), ask_context("Why?", "How do")):
        assert [turn["role"] for turn in chat] == ["user", "assistant"]
        assert chat[-1]["content"].endswith("How do")
        assert "Why?" in chat[-1]["content"]
