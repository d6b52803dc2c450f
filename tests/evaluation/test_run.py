"""A whole evaluation with small callables in the place of models; kill and resume."""

import json
from typing import NamedTuple

import pytest

from equipoise.errors import RunStoppedError
from equipoise.evaluation.files import read_lines, write_lines
from equipoise.evaluation.response import Response
from equipoise.evaluation.rows import EvaluatedRow, load_run
from equipoise.evaluation.run import EvaluateConfig, evaluate
from equipoise.lineage import Step, produce
from equipoise.protocols import RefusalVerdict, Verdict
from equipoise.records import Prompt, Score


class Scores(NamedTuple):
    reward: Score | None
    cost: Score | None


def generator(prompts, sampling, ids=None):
    return [
        [f"{turns[-1]['content']} {name} {s}\u2028" for s in range(sampling.samples)]
        for turns, name in zip(prompts, ids, strict=True)
    ]


def judge(exchanges):
    return [
        Verdict(
            "bad" not in e.response, 0.75, 2 * ("bad" in e.response), (0.0,) * 4, (), {"Drugs": 0.5}, False
        )
        for e in exchanges
    ]


def refusals(exchanges):
    return [RefusalVerdict("partial", {"none": 0.25, "partial": 0.5, "full": 0.25}) for _ in exchanges]


def scorer(exchanges):
    return [Scores(Score(1.5, "higher_is_better"), Score(-0.5, "higher_is_worse")) for _ in exchanges]


@pytest.fixture
def config(tmp_path) -> EvaluateConfig:
    texts = [
        "bad",
        "a fairly long question",
        "a question",
        "bad again",
        "short",
        "the longest of all questions",
    ]
    write_lines(
        tmp_path / "p.jsonl",
        [
            Prompt(
                id=f"p{i}", prompt=text, is_harmful=i < 3, licence="CC0-1.0", severity=1, categories=["Drugs"]
            )
            for i, text in enumerate(texts)
        ],
    )
    return EvaluateConfig(
        suite=str(tmp_path / "p.jsonl"), model="m", guard="g", scorer="s", samples=2, batch_size=4
    )


def step(**changes) -> Step:
    parts = {"generator": generator, "judge": judge, "refusals": refusals, "scorer": scorer} | changes
    return Step("evaluate", 1, lambda config, run: evaluate(config, run, **parts))


def test_a_run_writes_responses_rows_metrics_and_card(tmp_path, config) -> None:
    manifest = produce(tmp_path / "out", step(), config).manifest
    assert set(manifest.outputs) == {"responses.jsonl", "rows.jsonl", "metrics.json", "card.md"}
    assert manifest.licences == ["CC0-1.0"]
    responses = read_lines(tmp_path / "out" / "responses.jsonl", Response)
    assert [(r.id, r.sample) for r in responses] == [(f"p{i}", s) for i in range(6) for s in range(2)]
    row = load_run(tmp_path / "out").rows[0]
    assert (row.id, row.is_safe, row.severity, row.refusal) == ("p0", False, 2, "partial")
    assert (row.reward, row.cost, row.refusal_probability, row.words) == (1.5, -0.5, 0.75, 3)
    assert row.response == "bad p0 0\u2028"  # a line separator inside a text does not break the file
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["values"]["harmful_rate"]["value"] == pytest.approx(1 / 3)
    assert "| Benign prompts refused, partly or fully | 1.000 |" in (tmp_path / "out" / "card.md").read_text()


def test_scores_are_turned_by_their_polarity(tmp_path, config) -> None:
    def turned(exchanges):
        return [Scores(Score(-2.0, "higher_is_worse"), Score(3.0, "higher_is_better")) for _ in exchanges]

    produce(tmp_path / "out", step(scorer=turned), config)
    row = load_run(tmp_path / "out").rows[0]
    assert (row.reward, row.cost) == (2.0, -3.0)


def test_without_a_scorer_or_one_of_its_heads_the_score_is_missing_and_not_zero(tmp_path, config) -> None:
    produce(tmp_path / "a", step(scorer=None), config)
    assert load_run(tmp_path / "a").rows[0].reward is None
    cost_only = step(scorer=lambda es: [Scores(None, Score(1.0, "higher_is_worse")) for _ in es])
    produce(tmp_path / "b", cost_only, config)
    rows = load_run(tmp_path / "b").rows
    assert (rows[0].reward, rows[0].cost) == (None, 1.0)
    assert "reward" not in json.loads((tmp_path / "b" / "metrics.json").read_text())["values"]


def test_a_killed_run_resumes_after_its_last_chunk_to_the_same_rows(tmp_path, config) -> None:
    asked: list[str] = []

    def dies(prompts, sampling, ids=None):
        if asked:
            raise KeyboardInterrupt
        asked.extend(ids)
        return generator(prompts, sampling, ids)

    def goes_on(prompts, sampling, ids=None):
        asked.extend(ids)
        return generator(prompts, sampling, ids)

    with pytest.raises(KeyboardInterrupt):
        produce(tmp_path / "out", step(generator=dies), config)
    first = list(asked)
    assert len(first) == 2  # one chunk: a batch of four responses, two samples each
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = produce(tmp_path / "out", step(generator=goes_on), config).manifest
    assert sorted(asked) == [f"p{i}" for i in range(6)]  # nothing was asked twice
    assert manifest.attempts == 2
    whole = produce(tmp_path / "whole", step(), config).manifest
    assert manifest.outputs == whole.outputs


def test_a_score_that_is_no_number_stops_the_run(tmp_path, config) -> None:
    broken = step(scorer=lambda es: [Scores(Score(float("nan"), "higher_is_better"), None) for _ in es])
    with pytest.raises(RunStoppedError, match="the reward of 'p0' is nan"):
        produce(tmp_path / "out", broken, config)


def test_the_model_sees_chats_of_like_length_together(tmp_path, config) -> None:
    seen: list[list[int]] = []

    def watching(prompts, sampling, ids=None):
        seen.append([len(turns[-1]["content"]) for turns in prompts])
        return generator(prompts, sampling, ids)

    produce(tmp_path / "out", step(generator=watching), config)
    flat = [length for chunk in seen for length in chunk]
    assert flat == sorted(flat)


def test_rows_survive_writing_and_reading(tmp_path, make_row) -> None:
    rows = [make_row("h1", 3, reward=0.1 + 0.2), make_row("b1", response="a\u2028b\x85c\r\n")]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert read_lines(tmp_path / "rows.jsonl", EvaluatedRow) == rows
