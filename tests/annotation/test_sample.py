"""Records drawn for people, and what was said of them before."""

from collections import Counter
from pathlib import Path

import pytest

from equipoise.annotation.raters import collect
from equipoise.annotation.sample import SAMPLE, SampleConfig, labels_as_judgements
from equipoise.data.io import read_records, write_records
from equipoise.errors import DataError
from equipoise.lineage import produce
from equipoise.records import Answer, Exchange, Judgement, Labels, Pair

UNSAFE = Labels(is_safe=False, severity=2, categories=frozenset({"Violence"}))


def release(path: Path, count: int = 40) -> list[Exchange]:
    records = [
        Exchange(
            id=f"e{n}",
            prompt=f"question {n}",
            response="an answer",
            prompt_is_harmful=n % 4 == 0,
            source="made",
            licence="MIT",
            label_origin="model:guard",
            annotators=("guard",),
            provenance={"model": "small"},
            is_safe=n % 2 == 0,
        )
        for n in range(count)
    ]
    write_records(path, records)
    return records


def test_a_sample_keeps_the_records_and_says_what_each_stands_for(tmp_path: Path) -> None:
    records = {record.id: record for record in release(tmp_path / "all.jsonl")}
    config = SampleConfig(records=(tmp_path / "all.jsonl",), count=8)
    outcome = produce(tmp_path / "out", SAMPLE, config)
    drawn = list(read_records(tmp_path / "out" / "records.jsonl", Exchange))
    assert Counter(record.prompt_is_harmful for record in drawn) == {True: 2, False: 6}
    for record in drawn:
        audit = {"stratum": f"made, harmful prompt: {record.prompt_is_harmful}", "weight": 5.0}
        before = records[record.id]
        assert record == before.model_copy(update={"provenance": {"model": "small", "audit": audit}})
    said = list(read_records(tmp_path / "out" / "labels.jsonl", Judgement))
    assert {j.subject: j.labels for j in said} == {r.id: Labels(is_safe=r.is_safe) for r in drawn}
    assert collect(said).kinds == {"guard": "model"}
    assert outcome.manifest.licences == ["MIT"]
    assert outcome.manifest.notes == {"records": 40, "drawn": 8, "labelled_before": 8}


def test_more_than_there_are_cannot_be_drawn(tmp_path: Path) -> None:
    release(tmp_path / "all.jsonl", 3)
    config = SampleConfig(records=(tmp_path / "all.jsonl",), count=4)
    with pytest.raises(DataError, match=r"^records: 3 to draw from; expected count=4 at least$"):
        produce(tmp_path / "out", SAMPLE, config)
    assert not (tmp_path / "out").exists()


def test_labels_of_a_pair_are_judgements_of_both_answers_and_of_the_pair() -> None:
    answers = (Answer(response="one", **UNSAFE.model_dump()), Answer(response="two"))
    shared = {"prompt": "question", "answers": answers}
    pairs = [
        Pair(id="p", **shared, safer=1, overall="tie", label_origin="human", annotators=("ann",)),
        Pair(id="q", **shared, label_origin="consensus of 2: 2 person", annotators=("ann", "bo")),
        Pair(id="nobody", **shared, safer=1),
    ]
    found = {j.subject: j for j in labels_as_judgements(pairs)}
    assert list(found) == ["p#0", "p", "q#0"]  # of the second answer nothing was said
    assert found["p#0"].labels == UNSAFE
    assert (found["p"].better, found["p"].safer, found["p"].overall, found["p"].labels) == (
        None,
        1,
        "tie",
        None,
    )
    assert (found["p"].annotator, found["q#0"].annotator) == ("ann", "consensus of 2: 2 person")
