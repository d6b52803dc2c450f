"""The run that drops near-copies: records in, records out, and the list of what was dropped."""

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.curation.steps import DEDUP, DedupConfig, dropped_path, texts_in
from equipoise.data.io import read_records, write_records
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import Outcome, produce, read_manifest
from equipoise.records import Answer, Exchange, Message, Pair, Prompt, Record

LONG = (
    "The bridge by the old mill was closed last spring, so the baker now takes the longer road along the "
    "river, and his bread comes to the market an hour later than it used to, which nobody minds at all."
)
NEAR = LONG.replace("an hour", "one hour")


def exchange(number: int, prompt: str, response: str, **more: Any) -> Exchange:
    return Exchange(id=f"e{number}", prompt=prompt, response=response, licence="MIT", **more)


ROWS = [
    exchange(0, "Tell me a story.", LONG, provenance={"score": 1}),
    exchange(1, "Tell me a story.", NEAR, provenance={"score": 3.5}),
    exchange(2, "Tell me  a STORY.", "There was a baker.", provenance={"score": 2}),
    exchange(3, "tell me a story.", LONG, provenance={"score": 3.5}, severity=0),
]


def run(
    folder: Path, records: list[Record], **settings: Any
) -> tuple[Outcome, list[str], list[dict[str, Any]]]:
    write_records(folder / "in.jsonl", records)
    out = folder / "out.jsonl"
    outcome = produce(out, DEDUP, DedupConfig(files=(folder / "in.jsonl",), **settings), force=True)
    kept = [json.loads(line)["id"] for line in out.read_text("utf-8").splitlines()]
    dropped = [json.loads(line) for line in dropped_path(out).read_text("utf-8").splitlines()]
    return outcome, kept, dropped


def test_records_that_are_kept_are_as_they_were_and_the_others_are_listed(tmp_path: Path) -> None:
    outcome, kept, dropped = run(tmp_path, list(ROWS))
    assert kept == ["e0", "e2"]
    assert list(read_records(tmp_path / "out.jsonl", Exchange)) == [ROWS[0], ROWS[2]]
    place = str(tmp_path / "in.jsonl")
    assert [(line["id"], line["row"], line["of"], line["of_row"]) for line in dropped] == [
        ("e1", f"{place}:2", "e0", f"{place}:1"),
        ("e3", f"{place}:4", "e0", f"{place}:1"),
    ]
    assert dropped[1]["similarity"] == 1.0
    assert 0.8 < dropped[0]["similarity"] < 1.0
    assert LONG not in dropped_path(tmp_path / "out.jsonl").read_text("utf-8")
    manifest = read_manifest(tmp_path / "out.jsonl.manifest.json")
    assert manifest == outcome.manifest
    counts = {name: manifest.notes[name] for name in ("rows", "records", "dropped", "exact", "near")}
    assert counts == {"rows": 4, "records": 2, "dropped": 2, "exact": 1, "near": 1}
    assert (manifest.notes["bands"], manifest.notes["rows_per_band"]) == (18, 7)
    assert manifest.config["num_perm"] == 128
    assert manifest.licences == ["MIT"]


def test_a_list_of_near_copies_that_was_lost_is_made_again(tmp_path: Path) -> None:
    run(tmp_path, list(ROWS))
    out, config = tmp_path / "out.jsonl", DedupConfig(files=(tmp_path / "in.jsonl",))
    assert produce(out, DEDUP, config).skipped
    written = dropped_path(out).read_bytes()
    dropped_path(out).unlink()
    assert not produce(out, DEDUP, config).skipped
    assert dropped_path(out).read_bytes() == written


@pytest.mark.parametrize(
    ("field", "expected"), [("prompt", ["e0"]), ("response", ["e0", "e2"]), ("both", ["e0", "e2"])]
)
def test_a_field_is_compared(tmp_path: Path, field: str, expected: list[str]) -> None:
    assert run(tmp_path, list(ROWS), field=field)[1] == expected


def test_the_record_with_the_best_score_stays(tmp_path: Path) -> None:
    _, kept, dropped = run(tmp_path, list(ROWS), score="score")
    assert kept == ["e1", "e2"]
    assert [(line["id"], line["of"]) for line in dropped] == [("e0", "e1"), ("e3", "e1")]


def test_a_score_that_is_missing_names_the_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in.jsonl:3: provenance.score: missing or no number"):
        run(tmp_path, [*ROWS[:2], exchange(2, "?", "!", provenance={"score": "high"})], score="score")


def test_the_threshold_decides(tmp_path: Path) -> None:
    assert run(tmp_path, ROWS[:2], threshold=0.95)[1] == ["e0", "e1"]
    assert run(tmp_path, ROWS[:2], threshold=0.5)[1] == ["e0"]
    assert run(tmp_path, ROWS[:2], unit="word", shingle=1)[1] == ["e0"]


def test_a_chain_names_the_record_between(tmp_path: Path) -> None:
    end = NEAR.replace("spring", "autumn").replace("longer", "dusty")
    rows = [Prompt(id=name, prompt=text) for name, text in (("a", LONG), ("b", NEAR), ("c", end))]
    _, kept, dropped = run(tmp_path, list(rows), threshold=0.78)
    assert kept == ["a"]
    assert "through" not in dropped[0]
    assert (dropped[1]["of"], dropped[1]["through"]) == ("a", "b")
    assert dropped[1]["through_row"].endswith("in.jsonl:2")
    assert dropped[1]["similarity"] < 0.78


def test_several_files_are_one_and_of_one_kind(tmp_path: Path) -> None:
    one, two, other = (tmp_path / f"{name}.jsonl" for name in ("one", "two", "other"))
    write_records(one, ROWS[:1])
    write_records(two, ROWS[1:])
    write_records(other, [Prompt(id="p", prompt="Tell me a story.")])
    produce(tmp_path / "out.jsonl", DEDUP, DedupConfig(files=(one, two)))
    assert [r.id for r in read_records(tmp_path / "out.jsonl", Exchange)] == ["e0", "e2"]
    with pytest.raises(DataError, match=r"other.jsonl:1: line: got Prompt after Exchange"):
        produce(tmp_path / "mixed.jsonl", DEDUP, DedupConfig(files=(one, other)))


def test_a_prompt_has_no_response(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in.jsonl:1: response: missing, got a prompt"):
        run(tmp_path, [Prompt(id="p", prompt="Tell me a story.")], field="response")


def test_texts_of_chats_and_pairs() -> None:
    chat = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))
    pair = Pair(id="p", prompt=chat, answers=(Answer(response="one"), Answer(response="two")))
    assert texts_in("prompt", pair) == ("user: Hi\nassistant: Hello",)
    assert texts_in("response", pair) == ("one", "two")
    assert texts_in("both", pair) == ("user: Hi\nassistant: Hello", "one", "two")


@pytest.mark.parametrize("settings", [{"threshold": 0}, {"threshold": 1.1}, {"workers": 0}, {"field": "id"}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    from equipoise.config import parse_config

    with pytest.raises(ConfigError, match=next(iter(settings))):
        parse_config(DedupConfig, {"files": ["x.jsonl"], **settings}, "command line")


@pytest.mark.tools
@pytest.mark.filterwarnings("default")
def test_ray_keeps_and_drops_the_same(tmp_path: Path) -> None:
    rows = [
        exchange(i, f"Question {i}?", LONG if i % 3 else NEAR + f" And {i} more of it.") for i in range(1500)
    ]
    outputs = []
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        write_records(tmp_path / engine / "in.jsonl", rows)
        run(tmp_path / engine, list(rows), engine=engine, workers=2)
        files = (tmp_path / engine / "out.jsonl", dropped_path(tmp_path / engine / "out.jsonl"))
        outputs.append([f.read_text("utf-8").replace(str(tmp_path / engine), "") for f in files])
    assert outputs[0] == outputs[1]
    assert outputs[0][1]
