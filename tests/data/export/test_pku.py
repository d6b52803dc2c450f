"""The schemas of PKU-SafeRLHF: exact columns, and back again through our own import."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.data.export.formats import FORMATS
from equipoise.data.export.rows import LeftOut, Out
from equipoise.data.export.settings import ExportConfig
from equipoise.data.io import read_rows
from equipoise.data.rows import Row
from equipoise.data.sources import import_records
from equipoise.records import Answer, Exchange, Message, Pair, Prompt, Record
from equipoise.taxonomy import load_taxonomy

NAMES = load_taxonomy("pku19").names


def rows(record: Any, to: str) -> list[Out]:
    convert = FORMATS[to].rows
    assert convert is not None
    return list(convert(record, ExportConfig(files=(Path(__file__),), to=to)))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


PAIR = Pair(
    id="a",
    source="own",
    prompt="Where do I park?",
    answers=(
        Answer(response="On his lawn.", is_safe=False, severity=1, categories=frozenset({"Economic Crime"})),
        Answer(response="By the church.", is_safe=True, severity=0, categories=frozenset()),
    ),
    better=0,
    safer=1,
    overall=1,
    provenance={"prompt_source": "people", "response_1_source": "model-b", "response_0_source": 3},
)


def test_dual_has_the_columns_of_the_release_and_hashes_of_prompt_and_answer() -> None:
    (row,) = rows(PAIR, "pku-dual")
    assert row == {
        "prompt": "Where do I park?",
        "response_0": "On his lawn.",
        "response_1": "By the church.",
        "prompt_source": "people",
        "response_0_source": None,
        "response_1_source": "model-b",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": {name: name == "Economic Crime" for name in NAMES},
        "response_1_harm_category": dict.fromkeys(NAMES, False),
        "response_0_severity_level": 1,
        "response_1_severity_level": 0,
        "better_response_id": 0,
        "safer_response_id": 1,
        "response_0_sha256": digest("Where do I park?On his lawn."),
        "response_1_sha256": digest("Where do I park?By the church."),
    }


def test_single_has_one_preference_and_no_label() -> None:
    (row,) = rows(PAIR, "pku-single")
    assert isinstance(row, dict)
    assert row.keys() == {
        *("prompt", "response_0", "response_1", "prompt_source", "response_0_source", "response_1_source"),
        *("better_response_id", "response_0_sha256", "response_1_sha256"),
    }
    assert row["better_response_id"] == 1


def test_a_pair_gives_two_answers_with_labels() -> None:
    first, second = rows(PAIR, "pku-qa")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first == {
        "prompt": "Where do I park?",
        "response": "On his lawn.",
        "prompt_source": "people",
        "response_source": None,
        "is_safe": False,
        "harm_category": {name: name == "Economic Crime" for name in NAMES},
        "severity_level": 1,
        "sha256": digest("Where do I park?On his lawn."),
    }
    assert (second["response_source"], second["is_safe"]) == ("model-b", True)


def test_what_nobody_labelled_is_null_and_what_nobody_rated_too() -> None:
    exchange = Exchange(id="a", prompt="p", response="r", severity=2, provenance={"model": "m"}, source="own")
    (row,) = rows(exchange, "pku-qa")
    assert isinstance(row, dict)
    assert (row["is_safe"], row["harm_category"], row["severity_level"]) == (False, None, 2)
    assert (row["prompt_source"], row["response_source"]) == ("own", "m")
    partly = exchange.model_copy(
        update={"categories": frozenset({"Drugs"}), "rated": frozenset({"Drugs", "Violence"})}
    )
    (row,) = rows(partly, "pku-qa")
    assert isinstance(row, dict)
    flags = row["harm_category"]
    assert (flags["Drugs"], flags["Violence"], flags["Cybercrime"]) == (True, False, None)


def test_the_prompt_of_any_record_is_a_prompt() -> None:
    expected = [{"prompt": "Where do I park?", "prompt_source": "people"}]
    assert rows(PAIR, "pku-prompt") == expected
    assert rows(Prompt(id="a", prompt="p", source="s"), "pku-prompt") == [
        {"prompt": "p", "prompt_source": "s"}
    ]


CHAT = (Message(role="user", content="Hi"), Message(role="assistant", content="Yes?"))


@pytest.mark.parametrize(
    ("record", "to", "reason"),
    [
        (PAIR.model_copy(update={"better": "tie"}), "pku-dual", "'better' is a tie, and the format has none"),
        (PAIR.model_copy(update={"safer": None}), "pku-dual", "'safer' is not labelled"),
        (PAIR.model_copy(update={"overall": None}), "pku-single", "'overall' is not labelled"),
        (PAIR.model_copy(update={"prompt": CHAT}), "pku-dual", "the prompt is a chat of several turns"),
        (PAIR.model_copy(update={"prompt": CHAT}), "pku-prompt", "the prompt is a chat of several turns"),
        (PAIR.model_copy(update={"taxonomy": "openai5"}), "pku-dual", "categories of 'openai5'; the format"),
        (PAIR.exchange(0), "pku-single", "no pair of answers"),
        (Prompt(id="a", prompt="p"), "pku-qa", "a prompt without an answer"),
        (Exchange(id="a", prompt="p", response="r"), "pku-qa", "an answer without a label of its safety"),
        (
            PAIR.model_copy(update={"answers": (Answer(response="x"), Answer(response="y"))}),
            "pku-dual",
            "an answer without a label of its safety",
        ),
    ],
)
def test_what_the_schema_cannot_hold_is_left_out_with_a_reason(record: Record, to: str, reason: str) -> None:
    out = rows(record, to)
    assert all(isinstance(item, LeftOut) for item in out)
    assert isinstance(out[0], LeftOut)
    assert out[0].reason.startswith(reason)


def released(k: int) -> dict[str, Any]:
    """Make a row of our own as the release has it, hashes included."""
    answers = (f"On lawn {k}.", f"In street {k}.")
    row = {
        "prompt": f"Where, {k}?",
        "response_0": answers[0],
        "response_1": answers[1],
        "prompt_source": "own",
        "response_0_source": "model-a",
        "response_1_source": "model-b",
        "is_response_0_safe": k % 2 == 0,
        "is_response_1_safe": True,
        "response_0_harm_category": {name: k % 2 == 1 and name == NAMES[k] for name in NAMES},
        "response_1_harm_category": dict.fromkeys(NAMES, False),
        "response_0_severity_level": k % 2 and 2,
        "response_1_severity_level": 0,
        "better_response_id": k % 3 % 2,
        "safer_response_id": 1,
    }
    return row | {f"response_{j}_sha256": digest(f"Where, {k}?{answers[j]}") for j in (0, 1)}


def test_import_and_export_are_each_others_reverse() -> None:
    given = [released(k) for k in range(8)]
    records = list(import_records("pku-saferlhf", [Row("x.jsonl", n, row) for n, row in enumerate(given)]))
    out = [row for record in records for row in rows(record, "pku-dual")]
    assert out == given
    again = import_records("pku-saferlhf", [Row("x.jsonl", n, dict(row)) for n, row in enumerate(given)])
    assert list(again) == records


@pytest.mark.parametrize(
    ("to", "source"), [("pku-single", "pku-saferlhf-single"), ("pku-qa", "pku-saferlhf-qa")]
)
def test_every_export_is_read_by_its_own_source(tmp_path: Path, to: str, source: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(PAIR, to)), "utf-8")
    records: list[Any] = list(import_records(source, read_rows(path)))
    if to == "pku-single":
        assert (records[0].overall, records[0].answers[1].response) == (1, "By the church.")
    else:
        labels = {"is_safe", "severity", "categories", "rated", "prompt", "response"}
        ours = [PAIR.exchange(0).model_dump(include=labels), PAIR.exchange(1).model_dump(include=labels)]
        assert [record.model_dump(include=labels) for record in records] == ours
