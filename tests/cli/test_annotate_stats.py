"""`annotate agreement`, `consensus` and `route` as a user types them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from typer.testing import CliRunner, Result

from equipoise.cli.annotate_stats import app
from equipoise.data.io import read_records, write_records
from equipoise.errors import ConfigError, DataError
from equipoise.records import Answer, Exchange, Judgement, Labels, Pair

SECRET = "marmalade"


def call(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert SECRET not in result.output
    return result


def result_of(*words: object) -> dict[str, Any]:
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output + repr(result.exception)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def judgement(
    subject: str, annotator: str, origin: str, confidence: float | None = None, **labels: object
) -> Judgement:
    return Judgement(
        id=f"{subject}@{annotator}",
        subject=subject,
        annotator=annotator,
        label_origin=origin,
        licence="MIT",
        confidence=confidence,
        labels=Labels(**labels),  # type: ignore[arg-type]
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Records, and what two people and a model say of them."""
    rng = np.random.default_rng(0)
    records = [
        Exchange(id=f"x{i}", prompt=f"{SECRET} {i}", response="r", licence="CC-BY-4.0") for i in range(40)
    ]
    truth = rng.random(40) < 0.5
    rows = [
        judgement(f"x{i}", name, origin, is_safe=bool(not u if rng.random() < skill else u))
        for name, origin, skill in (("ann", "human", 0.95), ("bob", "human", 0.9), ("m", "model:m", 0.8))
        for i, u in enumerate(truth[:35])
    ]
    write_records(tmp_path / "records.jsonl", records)
    write_records(tmp_path / "judgements.jsonl", rows)
    write_records(
        tmp_path / "gold.jsonl",
        [
            r.model_copy(update={"is_safe": bool(not u)})
            for r, u in zip(records[:10], truth[:10], strict=True)
        ],
    )
    return tmp_path / "judgements.jsonl", tmp_path / "records.jsonl"


def test_agreement_writes_both_reports_and_prints_the_tables(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    result = call("agreement", files[0], "--out", tmp_path / "out", "--set", "draws=100")
    assert result.exit_code == 0, result.output
    assert "## is_safe" in result.stdout
    assert (tmp_path / "out" / "agreement.md").read_text("utf-8") in result.stdout
    report = json.loads((tmp_path / "out" / "agreement.json").read_text("utf-8"))
    found = {row["between"]: row for row in report["agreement"] if row["question"] == "is_safe"}
    assert {"all", "person-person", "person-model", "ann / bob"} <= set(found)
    assert found["person-person"]["coefficients"]["cohen"]["n"] == 35
    again = result_of("agreement", files[0], "--out", tmp_path / "out", "--set", "draws=100")
    assert again["was_done"]
    assert again["annotators"] == {"person": 2, "model": 1}


def test_consensus_labels_the_records_and_reports_on_annotators(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "labelled.jsonl"
    words = ("consensus", files[0], "--records", files[1], "--gold", tmp_path / "gold.jsonl", "--out", out)
    found = result_of(*words)
    assert (found["records"], found["judged"], found["single"]) == (40, 35, 0)
    records = list(read_records(out, Exchange))
    assert [r.is_safe is None for r in records] == [False] * 35 + [True] * 5
    assert {r.label_origin for r in records} == {"consensus of 3: 1 model, 2 person", None}
    assert {r.licence for r in records} == {"CC-BY-4.0"}
    assert [r["name"] for r in found["raters"]] == ["ann", "bob", "m"]
    assert found["raters"][0]["gold"]["is_safe"]["n"] == 10
    text = call(*words).stdout
    assert "ann (person): 35 subjects" in text
    assert "right on 10 gold items" in text
    manifest = json.loads((tmp_path / "labelled.jsonl.manifest.json").read_text("utf-8"))
    assert manifest["licences"] == ["CC-BY-4.0", "MIT"]


def test_consensus_of_pairs_makes_an_overall_preference_by_policy_and_reports_conflicts(
    tmp_path: Path,
) -> None:
    pairs = [
        Pair(id=f"p{i}", prompt=f"q{i // 3}", answers=(Answer(response=a), Answer(response=b)))
        for i, (a, b) in enumerate([("a", "b"), ("b", "c"), ("a", "c")] * 4)
    ]
    rows = [
        Judgement(id=f"{p.id}{n}", subject=p.id, annotator=n, label_origin="human", better=0, safer=1)
        for p in pairs
        for n in ("ann", "bob")
    ]
    write_records(tmp_path / "pairs.jsonl", pairs)
    write_records(tmp_path / "rows.jsonl", rows)
    words = (
        "consensus",
        tmp_path / "rows.jsonl",
        "--records",
        tmp_path / "pairs.jsonl",
        "--out",
        tmp_path / "o.jsonl",
    )
    found = result_of(*words, "--set", "overall=lexicographic")
    assert found["preferences"]["all"]["conflict"]["value"] == 1.0
    first = next(read_records(tmp_path / "o.jsonl", Pair))
    assert (first.better, first.safer, first.overall) == (0, 1, 1)
    assert first.provenance["overall_by"] == "lexicographic"
    better, worse = first.provenance["utility"]["better"]  # type: ignore[index, call-overload]
    assert better > worse
    with pytest.raises(ConfigError, match=r"no policy 'helpfull' \(did you mean 'helpful'\?\)"):
        raise call(*words, "--force", "--set", "overall=helpfull").exception  # type: ignore[misc]


def test_judgements_of_other_records_are_a_mistake(files: tuple[Path, Path], tmp_path: Path) -> None:
    write_records(tmp_path / "other.jsonl", [Exchange(id="z", prompt="p", response="r")])
    result = call("consensus", files[0], "--records", tmp_path / "other.jsonl", "--out", tmp_path / "o.jsonl")
    assert isinstance(result.exception, DataError)
    assert "none is about one of the 1 records, got subjects such as 'x0'" in str(result.exception)
    assert not (tmp_path / "o.jsonl").exists()


def test_an_id_that_stands_twice_is_a_mistake(files: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("consensus", files[0], "--records", files[1], "--records", tmp_path / "gold.jsonl")
    result = call(*words, "--out", tmp_path / "o.jsonl")
    assert isinstance(result.exception, DataError)
    assert "gold.jsonl:1: id: 'x0' stands already at" in str(result.exception)


@pytest.fixture
def routing(tmp_path: Path) -> tuple[Path, Path, Path]:
    """900 records, 400 of them labelled by people; a model that knows how sure it may be."""
    rng = np.random.default_rng(1)
    records, rows, known = [], [], []
    for i in range(900):
        record = Exchange(id=f"x{i}", prompt=f"{SECRET} {i}", response="r", source="ab"[i % 2])
        sure = expit(rng.normal(2.5, 2.0))
        truth = bool(rng.random() < 0.5)
        said = truth if rng.random() < sure else not truth
        records.append(record)
        if i != 899:
            rows.append(
                judgement(f"x{i}", "m", "model:m", float(expit(2 * np.log(sure / (1 - sure)))), is_safe=said)
            )
        if i < 400:
            known.append(record.model_copy(update={"is_safe": truth, "label_origin": "human"}))
    write_records(tmp_path / "records.jsonl", records)
    write_records(tmp_path / "model.jsonl", rows)
    write_records(tmp_path / "known.jsonl", known)
    return tmp_path / "records.jsonl", tmp_path / "model.jsonl", tmp_path / "known.jsonl"


def test_route_parts_the_records_in_settled_queue_and_audit(
    routing: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    records, model, known = routing
    words = ("route", records, "--judgements", model, "--labelled", known, "--set", "target=0.9")
    found = result_of(*words, "--out", tmp_path / "out", "--set", "audit=50")
    parts = {
        name: list(read_records(tmp_path / "out" / f"{name}.jsonl", Exchange))
        for name in ("settled", "queue", "audit")
    }
    ids = [record.id for rows in parts.values() for record in rows]
    assert sorted(ids, key=lambda name: int(name[1:])) == [f"x{i}" for i in range(400, 900)]
    assert found["labelled"] == 400
    assert len(parts["audit"]) == 50 == found["audit"]
    assert len(parts["settled"]) > 100
    assert {r.label_origin for r in parts["settled"]} == {"model:m"}
    assert all(r.is_safe is not None for r in parts["settled"])
    assert all(r.is_safe is None and "consensus" not in r.provenance for r in parts["audit"])
    assert all(r.provenance["route"]["probability"] >= found["threshold"] for r in parts["settled"])  # type: ignore[index, call-overload, operator]
    notes = [r.provenance["route"] for r in parts["queue"]]
    assert next(r for r in parts["queue"] if r.id == "x899").provenance["route"]["reason"] == "unjudged"  # type: ignore[index, call-overload]
    priorities = [note["priority"] for note in notes]  # type: ignore[index, call-overload]
    assert priorities == sorted(priorities, reverse=True)  # type: ignore[type-var]
    assert found["ece_after"] < found["ece_before"]
    report = json.loads((tmp_path / "out" / "curve.json").read_text("utf-8"))
    assert report["curve"][0]["settled"]["value"] == 1.0
    assert {"threshold", "settled", "agreement", "lower", "overall"} == set(report["curve"][0])


def test_the_audit_sample_does_not_depend_on_the_model(
    routing: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    records, model, known = routing
    words = ("route", records, "--labelled", known)
    result_of(*words, "--judgements", model, "--out", tmp_path / "one")
    turned = [
        j.model_copy(update={"confidence": 1 - (j.confidence or 0)}) for j in read_records(model, Judgement)
    ]
    write_records(tmp_path / "turned.jsonl", turned)
    result_of(*words, "--judgements", tmp_path / "turned.jsonl", "--out", tmp_path / "two")
    one, two = ((tmp_path / name / "audit.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_text_that_the_model_labels_in_two_ways_is_seen_by_a_person(
    routing: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    records, model, known = routing
    rows = list(read_records(records, Exchange))
    rows[500] = rows[500].model_copy(update={"prompt": f"{SECRET.upper()}  501"})
    judgements = {j.subject: j for j in read_records(model, Judgement)}
    for name, safe in (("x500", True), ("x501", False)):
        judgements[name] = judgements[name].model_copy(
            update={"labels": Labels(is_safe=safe), "confidence": 1.0}
        )
    write_records(records, rows)
    write_records(model, judgements.values())
    words = ("route", records, "--judgements", model, "--labelled", known, "--set", "audit=0")
    result_of(*words, "--out", tmp_path / "out", "--set", "threshold=0.5")
    queue = {
        r.id: r.provenance["route"]["reason"]
        for r in read_records(tmp_path / "out" / "queue.jsonl", Exchange)
    }  # type: ignore[index, call-overload]
    assert (queue["x500"], queue["x501"]) == ("conflict", "conflict")


def test_a_persons_judgements_are_not_routed(files: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("route", files[1], "--judgements", files[0], "--labelled", tmp_path / "gold.jsonl")
    result = call(*words, "--out", tmp_path / "out")
    assert isinstance(result.exception, DataError)
    assert "'ann' is a person" in str(result.exception)
