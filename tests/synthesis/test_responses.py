"""Which responses are kept: quality against similarity, and where each came from."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from equipoise.curation.gibberish import Repetitive
from equipoise.errors import DataError
from equipoise.records import Prompt
from equipoise.synthesis.responses import (
    Asked,
    Response,
    by_embeddings,
    by_shingles,
    exchanges_of,
    pairs_of,
    qualities,
    read_responses,
    select,
    sound,
)

PROMPT = Prompt(id="a", prompt="How do I bake?", is_harmful=False, source="model:x", licence="MIT")


def responses(*texts: str, default: int | None = None) -> list[Response]:
    return [Response(text, "m", place, place == default) for place, text in enumerate(texts)]


def test_shingles_in_common_are_the_jaccard_index() -> None:
    # abcde, bcdef against bcdef, cdefg: one of three in common
    assert by_shingles(["abcdef", "bcdefg"])[0, 1] == pytest.approx(1 / 3, rel=1e-12)
    assert by_shingles(["abc", "abd"])[0, 1] == 0.0


def test_embeddings_are_compared_by_their_angle() -> None:
    vectors = {"a": [1.0, 0.0], "b": [3.0, 4.0], "c": [-2.0, 0.0]}
    found = by_embeddings(lambda texts: np.array([vectors[t] for t in texts], dtype=np.float32))(
        ["a", "b", "c"]
    )
    np.testing.assert_allclose(found, [[1, 0.6, 0], [0.6, 1, 0], [0, 0, 1]], atol=1e-7)


def test_the_default_comes_first_and_then_quality_less_similarity() -> None:
    some = responses("a", "b", "c", "d", default=0)
    similarity = np.array([[1, 0.6, 0.1, 0.8], [0.6, 1, 0.2, 0], [0.1, 0.2, 1, 0], [0.8, 0, 0, 1]])
    # ranks of b, c, d are 1, 1/3, 2/3; d is too like a; b: 1/2 - .3 = .2, c: 1/6 - .05 = .117
    chosen = select(some, [-9.0, -1.0, -3.0, -2.0], similarity, keep=4)
    assert [one.response.text for one in chosen] == ["a", "b", "c"]
    assert [one.similarity for one in chosen] == [0.0, 0.6, 0.2]
    assert [one.quality for one in chosen] == [-9.0, -1.0, -3.0]


def test_the_weight_decides_between_quality_and_difference() -> None:
    some = responses("a", "b", "c")
    similarity = np.array([[1, 0.6, 0.0], [0.6, 1, 0], [0, 0, 1]])
    best = [one.response.text for one in select(some, [3, 2, 1], similarity, keep=2, weight=1.0)]
    different = [one.response.text for one in select(some, [3, 2, 1], similarity, keep=2, weight=0.4)]
    assert (best, different) == (["a", "b"], ["a", "c"])


def test_nothing_is_selected_of_nothing() -> None:
    assert select([], [], np.zeros((0, 0)), keep=2) == []


def test_empty_repeated_and_equal_responses_are_left_out() -> None:
    dropped: Counter[str] = Counter()
    asked = [Asked(PROMPT, responses("Mix flour and water.", "", "so it goes " * 20, "Mix flour and water."))]
    left = sound(asked, [Repetitive()], dropped)
    assert [r.sample for r in left[0].responses] == [0]
    assert dropped == {"empty": 1, "repetitive": 1, "again": 1}


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_rows_of_generate_are_read_with_their_prompts(tmp_path: Path) -> None:
    prompt = json.loads(PROMPT.model_dump_json(exclude_none=True))
    path = write(
        tmp_path / "rows.jsonl",
        {**prompt, "response": "One.", "model": "m", "sample": 0},
        {**prompt, "response": "Two.", "model": "m", "sample": 1},
        {**prompt, "response": "Three.", "model": "n", "sample": 2},
        {"id": "b", "error": "timed out"},
    )
    dropped: Counter[str] = Counter()
    (asked,) = read_responses(path, greedy_first=True, dropped=dropped)
    assert asked.prompt == PROMPT
    assert [(r.text, r.model, r.is_default) for r in asked.responses] == [
        ("One.", "m", True),
        ("Two.", "m", False),
        ("Three.", "n", True),
    ]
    assert dropped == {"error": 1}


def test_where_the_default_answer_failed_no_other_takes_its_place(tmp_path: Path) -> None:
    prompt = json.loads(PROMPT.model_dump_json(exclude_none=True))
    path = write(
        tmp_path / "rows.jsonl",
        {"id": "a", "model": "m", "sample": 0, "error": "429"},
        {**prompt, "response": "Two.", "model": "m", "sample": 1},
    )
    (asked,) = read_responses(path, greedy_first=True, dropped=Counter())
    assert [r.is_default for r in asked.responses] == [False]


def test_a_row_that_generate_did_not_write_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"id": "a", "prompt": "x", "response": "y"})
    with pytest.raises(DataError, match=r"rows\.jsonl:1: expected a prompt with response, model and sample"):
        list(read_responses(path, greedy_first=True, dropped=Counter()))


def test_exchanges_are_unlabelled_and_say_who_answered() -> None:
    chosen = select(responses("One.", "Two.", default=0), [1, 2], np.eye(2), keep=2)
    first, second = exchanges_of(PROMPT, chosen)
    assert (first.id, second.id, first.prompt_is_harmful) == ("a-r0", "a-r1", False)
    assert (first.is_safe, first.severity, first.label_origin) == (None, None, None)
    assert first.provenance["response_source"] == "m"
    assert [e.provenance["decoding"] for e in (first, second)] == ["default", "raised"]


def test_pairs_set_the_default_against_the_others_in_either_order() -> None:
    chosen = select(responses("One.", "Two.", "Three.", default=0), [1, 2, 3], np.eye(3), keep=3)
    places = []
    for seed in range(20):
        pairs = pairs_of(PROMPT, chosen, seed)
        assert [pair.id for pair in pairs] == ["a-p0", "a-p1"]
        assert all("One." in {answer.response for answer in pair.answers} for pair in pairs)
        places.append([answer.response for answer in pairs[0].answers].index("One."))
    assert set(places) == {0, 1}
    assert pairs_of(PROMPT, chosen, 3) == pairs_of(PROMPT, chosen, 3)


def test_an_empty_response_is_named_by_its_prompt() -> None:
    asked = [
        Asked(PROMPT, responses("Mix flour.")),
        Asked(PROMPT.model_copy(update={"id": "b"}), responses(" ")),
    ]
    assert qualities(asked, None) == [[0.0], [0.0]]
    with pytest.raises(DataError, match="model:x: b: an empty response; expected min_chars 1 at least"):
        qualities(asked, lambda texts: [0.0] * len(texts))
