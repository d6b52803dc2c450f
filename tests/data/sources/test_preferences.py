"""HH-RLHF and the format of RewardBench on rows of our own."""

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.data.io import read_rows
from equipoise.data.rows import LineError, Row
from equipoise.data.sources import import_records
from equipoise.errors import DataError
from equipoise.records import Message, Pair

SHARED = "\n\nHuman: Where do I park?\n\nAssistant: In which town?\n\nHuman: In ours.\n\nAssistant:"
DIALOGUE = {"chosen": f"{SHARED} By the church.", "rejected": f"{SHARED} Anywhere!"}


def read(name: str, *rows: dict[str, Any], **options: Any) -> list[Any]:
    return list(import_records(name, [Row("x.jsonl", n, row) for n, row in enumerate(rows, 1)], **options))


def preferred(pair: Pair, field: str) -> str:
    place = getattr(pair, field)
    assert place in (0, 1)
    return pair.answers[place].response


@pytest.mark.parametrize(
    ("source", "field"),
    [("hh-rlhf", "overall"), ("hh-rlhf-harmless", "safer"), ("hh-rlhf-helpful", "better")],
)
def test_the_common_prefix_is_the_prompt_and_the_last_turn_the_answer(source: str, field: str) -> None:
    (pair,) = read(source, DIALOGUE)
    assert pair.prompt == (
        Message(role="user", content="Where do I park?"),
        Message(role="assistant", content="In which town?"),
        Message(role="user", content="In ours."),
    )
    assert {answer.response for answer in pair.answers} == {"By the church.", "Anywhere!"}
    assert preferred(pair, field) == "By the church."
    assert [getattr(pair, f) is None for f in ("better", "safer", "overall")].count(True) == 2
    assert (pair.source, pair.licence, pair.label_origin) == ("hh-rlhf", "MIT", "human")


def test_one_question_is_a_plain_prompt_and_line_breaks_inside_a_turn_stay() -> None:
    start = "\n\nHuman: A list\n\nwith a gap\n\nAssistant:"
    (pair,) = read("hh-rlhf", {"chosen": f"{start} One.\n\nTwo.", "rejected": f"{start}"})
    assert pair.prompt == "A list\n\nwith a gap"
    assert {answer.response for answer in pair.answers} == {"One.\n\nTwo.", ""}


def test_the_order_of_the_answers_does_not_tell_which_was_chosen() -> None:
    rows = [{"chosen": f"{SHARED} a{n}", "rejected": f"{SHARED} b{n}"} for n in range(200)]
    turned = [{"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    one, other = read("hh-rlhf", *rows), read("hh-rlhf", *turned)
    assert [pair.answers for pair in one] == [pair.answers for pair in other]
    assert [pair.overall for pair in one] == [1 - pair.overall for pair in other]
    assert 70 <= sum(pair.overall for pair in one) <= 130  # a fair coin leaves this range once in 40,000


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": f"{SHARED} a", "rejected": SHARED.replace("ours", "yours") + " b"},
            r"rejected: the transcripts part before the last turn, at turn 3 of 4 and 4",
        ),
        (
            {"chosen": f"{SHARED} a\n\nHuman: And?\n\nAssistant: b", "rejected": f"{SHARED} c"},
            r"rejected: the transcripts part before the last turn, at turn 4 of 6 and 4",
        ),
        ({"chosen": "\n\nHuman: Hi", "rejected": f"{SHARED} b"}, "chosen: .*got 1 turns, the last by user"),
        (
            {"chosen": "\n\nAssistant: Hi", "rejected": f"{SHARED} b"},
            "chosen: .*got 1 turns, the last by assis",
        ),
        ({"chosen": "Hello there", "rejected": f"{SHARED} b"}, "chosen: .*got a text of 11 characters first"),
        ({"chosen": None, "rejected": f"{SHARED} b"}, "chosen: expected a text, got null"),
        ({"transcript": "x"}, "chosen: no such column"),
    ],
)
def test_a_pair_that_cannot_be_cut_at_the_last_turn_is_reported(row: dict[str, Any], message: str) -> None:
    bad: list[LineError] = []
    assert len(read("hh-rlhf", DIALOGUE, row, on_bad=bad.append)) == 1
    (error,) = bad
    with pytest.raises(DataError, match=f"x.jsonl:2: {message}"):
        raise error
    assert "park" not in str(error)


BENCH = {
    "prompt": "Where do I park?",
    "chosen": "By the church.",
    "chosen_model": "model-a",
    "rejected": "Anywhere!",
    "rejected_model": "model-b",
    "subset": "own",
    "id": 7,
}


def test_reward_bench_is_an_overall_preference(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(BENCH), "utf-8")
    (pair,) = import_records("reward-bench", read_rows(path))
    assert isinstance(pair, Pair)
    assert preferred(pair, "overall") == "By the church."
    assert pair.provenance == {
        "chosen_model": "model-a",
        "rejected_model": "model-b",
        "subset": "own",
        "id": 7,
    }
    assert (pair.licence, pair.better, pair.safer) == ("ODC-BY-1.0", None, None)


def test_reward_bench_with_lists_is_another_format() -> None:
    with pytest.raises(DataError, match=r"x.jsonl:1: rejected: expected a text, got a list of 2"):
        read("reward-bench", BENCH | {"rejected": ["a", "b"]})
