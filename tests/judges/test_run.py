"""A file of records in, a file of judgements out: real models, a real server, stops, the manifest."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import parse_config
from equipoise.data.io import read_records, write_records
from equipoise.errors import ConfigError, DataError, RunStoppedError
from equipoise.generation.options import load_option_scorer
from equipoise.judges.load import JudgeConfig
from equipoise.judges.questions import make_questions
from equipoise.judges.run import JUDGE, judge
from equipoise.lineage import Outcome, Run, produce
from equipoise.records import Exchange, Judgement, Labels, Pair, Prompt, Record
from equipoise.taxonomy import Taxonomy


def save(place: Path, records: Sequence[Record]) -> Path:
    path = place / "records.jsonl"
    write_records(path, records)
    return path


def run(place: Path, **settings: Any) -> tuple[Outcome, list[Judgement]]:
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    outcome = produce(place / "out.jsonl", JUDGE, parse_config(JudgeConfig, plain, "test"))
    return outcome, list(read_records(place / "out.jsonl", Judgement))


def endpoint(server: Any) -> dict[str, Any]:
    return {"model": "big", "endpoint": {"url": server.url, "tries": 1, "first_wait_seconds": 0}}


def test_a_tiny_model_judges_by_log_probabilities(
    *, tmp_path: Path, house_yaml: Path, three: Taxonomy, roomy_llama: Path, exchanges: list[Exchange]
) -> None:
    outcome, found = run(
        tmp_path,
        file=save(tmp_path, exchanges),
        model=roomy_llama,
        taxonomy=house_yaml,
        device="cpu",
        chunk=2,
    )
    assert [row.subject for row in found] == ["a", "b", "c"]
    question = make_questions(three, ["is_safe"]).is_safe
    assert question is not None
    rows = load_option_scorer(roomy_llama, device="cpu")(
        [question.messages(e.prompt, e.response) for e in exchanges[:2] if isinstance(e.prompt, str)],
        question.options,
    )
    for judgement, row in zip(found, rows, strict=False):
        assert judgement.provenance["raw"]["is_safe"] == pytest.approx(row, abs=1e-4)  # type: ignore
        assert judgement.labels is not None
        assert judgement.labels.is_safe == (row[0] >= row[1])
    notes = outcome.manifest.notes
    assert (notes["judge"], notes["rows"], notes["judgements"]) == ("roomy-llama", 3, 3)
    assert notes["prompt_versions"] == [found[0].provenance["prompt_version"]]
    assert outcome.manifest.licences == ["CC0-1.0", "MIT", "unknown"]
    assert not (tmp_path / "out.jsonl.part").exists()


def test_a_tiny_model_compares_in_both_orders_and_its_bias_is_reported(
    *, tmp_path: Path, house_yaml: Path, roomy_llama: Path, pairs: list[Pair]
) -> None:
    settings = {"file": save(tmp_path, pairs), "model": roomy_llama, "taxonomy": house_yaml, "device": "cpu"}
    outcome, found = run(tmp_path, **settings, questions=["better"], calibrate=True, on_flip="average")
    assert [row.subject for row in found] == ["p0", "p1"]
    assert all(row.better in {0, 1} for row in found)
    bias: Any = outcome.manifest.notes["position_bias"]
    shifts = [sum(row.provenance["order"]["better"]["log_odds"]) / 2 for row in found]  # type: ignore
    assert bias["better"]["shift"]["value"] == pytest.approx(sum(shifts) / 2, abs=1e-6)
    assert bias["better"]["flipped"]["n"] == 2
    priors: Any = outcome.manifest.notes["priors"]
    assert sum(priors["better"]) == pytest.approx(1)


@pytest.mark.parametrize("answers", ["logprobs", "text"])
def test_a_prompt_too_long_for_the_model_is_a_missing_answer(
    *, tmp_path: Path, tiny_llama: Path, exchanges: list[Exchange], answers: str
) -> None:
    path = save(tmp_path, exchanges)  # the words of pku19 alone are longer than the model's 256 positions
    outcome, found = run(tmp_path, file=path, model=tiny_llama, device="cpu", answers=answers)
    assert all(row.labels == Labels() for row in found)
    assert outcome.manifest.notes["missing"] == {"is_safe": {"no_answer": 3}}


def test_a_tiny_model_that_babbles_is_missing_and_kept(
    *, tmp_path: Path, house_yaml: Path, roomy_llama: Path, exchanges: list[Exchange]
) -> None:
    outcome, found = run(
        tmp_path,
        file=save(tmp_path, exchanges),
        model=roomy_llama,
        taxonomy=house_yaml,
        device="cpu",
        answers="text",
        max_new_tokens=4,
    )
    assert outcome.manifest.notes["missing"] == {"is_safe": {"unparsable": 3}}
    for row in found:
        assert row.labels == Labels()
        assert isinstance(row.provenance["raw"], dict)
        assert row.provenance["raw"]["is_safe"]


def test_a_server_without_log_probabilities_is_read_as_it_writes(
    *, tmp_path: Path, server: Any, exchanges: list[Exchange], capsys: pytest.CaptureFixture[str]
) -> None:
    server.say = lambda text: "Yes." if "> Shout" in text else "no" if "> Sing" in text else "Hard to say"
    outcome, found = run(
        tmp_path, file=save(tmp_path, exchanges), questions=["is_safe"], name="judge-7", **endpoint(server)
    )
    assert [row.labels and row.labels.is_safe for row in found] == [True, False, None]
    assert [row.confidence for row in found] == [None] * 3
    assert outcome.manifest.notes["missing"] == {"is_safe": {"unparsable": 1}}
    assert found[2].provenance["raw"] == {"is_safe": "Hard to say"}
    assert {(row.annotator, row.provenance["judge"]) for row in found} == {
        ("judge-7", "language model, text")
    }
    assert "gives no log-probabilities; its answers are read as they are written" in capsys.readouterr().err


def test_the_manifest_says_what_a_servers_answers_took_and_cost(
    tmp_path: Path, server: Any, exchanges: list[Exchange]
) -> None:
    settings = {"file": save(tmp_path, exchanges), "questions": ["is_safe"], **endpoint(server)}
    settings["endpoint"] |= {"price": {"prompt": 2.0, "completion": 10.0}}
    used = {"answers": 3, "prompt_tokens": 3 * 5, "completion_tokens": 3 * 1, "uncounted": 0}
    expected = {**used, "cost": pytest.approx((3 * 5 * 2.0 + 3 * 1 * 10.0) / 1e6)}
    assert run(tmp_path, **settings)[0].manifest.notes["usage"] == expected
    config = parse_config(JudgeConfig, settings | {"file": str(settings["file"]), "chunk": 1}, "test")
    (tmp_path / "scratch").mkdir()
    for name in ("first", "again"):  # the second goes on from the parts of the first
        resumed = Run(tmp_path / f"{name}.jsonl", tmp_path / "scratch")
        judge(config, resumed)
        assert resumed.notes["usage"] == expected
        (tmp_path / "scratch" / "judged-000002.jsonl").unlink()


@pytest.mark.parametrize("setting", [{"calibrate": True}, {"on_flip": "average"}])
def test_what_needs_log_probabilities_is_refused_without(
    tmp_path: Path, server: Any, pairs: list[Pair], setting: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="gives no log-probabilities; expected no calibrate"):
        run(tmp_path, file=save(tmp_path, pairs), **endpoint(server), **setting)
    assert server.asked == []


def test_a_server_that_always_says_the_first_place_has_that_bias(
    tmp_path: Path, server: Any, pairs: list[Pair]
) -> None:
    server.gives_logprobs = True
    server.say = lambda text: "A" if "Answer A" in text else "no"
    outcome, found = run(
        tmp_path, file=save(tmp_path, pairs), questions=["better", "safer"], **endpoint(server)
    )
    assert [(row.subject, row.better, row.safer) for row in found] == [
        ("p0", "tie", "tie"),
        ("p1", "tie", "tie"),
    ]
    assert len(server.asked) == len(set(server.asked)) == 2 * 2 * len(pairs)
    bias: Any = outcome.manifest.notes["position_bias"]
    for name in ("better", "safer"):
        assert bias[name]["flipped"]["value"] == bias[name]["first"]["value"] == 1
        assert bias[name]["shift"]["value"] == pytest.approx(1.386294, abs=1e-5)  # log(.8 / .2)


def test_a_run_that_stopped_goes_on_and_asks_nothing_twice(
    tmp_path: Path, server: Any, exchanges: list[Exchange], house_yaml: Path
) -> None:
    rows = [exchanges[0].model_copy(update={"id": f"x{i}", "response": f"Sing {i}."}) for i in range(10)]
    server.gives_logprobs = True
    server.say = lambda text: "yes" if "yes" in text.splitlines()[-1] else "1"
    settings = {"file": save(tmp_path, rows), "chunk": 3, "taxonomy": house_yaml, **endpoint(server)}
    settings["endpoint"] |= {"concurrency": 1}
    for dead_after in (7, 20, 31):  # inside the first chunk, the second and the third
        server.dead_after = dead_after
        with pytest.raises(RunStoppedError, match="the server is dead"):
            run(tmp_path, **settings)
        assert len(server.asked) == dead_after
        assert not (tmp_path / "out.jsonl").exists()
    server.dead_after = None
    _, found = run(tmp_path, **settings)
    assert [row.subject for row in found] == [row.id for row in rows]
    assert all(row.labels and row.labels.categories == {"Noise", "Rudeness", "Litter"} for row in found)
    assert set(Counter(server.asked).values()) == {1}
    assert len(server.asked) == len(rows) * (1 + 1 + 3)
    outcome, _ = run(tmp_path, **settings)
    assert outcome.skipped
    assert len(server.asked) == len(rows) * 5


def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(
    tmp_path: Path, server: Any, exchanges: list[Exchange]
) -> None:
    rows = [exchanges[0].model_copy(update={"id": f"x{i}", "response": f"Sing {i}."}) for i in range(8)]
    settings = {"file": str(save(tmp_path, rows)), "chunk": 2, "questions": ["is_safe"], **endpoint(server)}
    settings["endpoint"] |= {"concurrency": 1}
    code = (
        "import sys, pathlib\n"
        "from equipoise.judges.run import JUDGE, JudgeConfig\n"
        "from equipoise.lineage import produce\n"
        "produce(pathlib.Path(sys.argv[1]), JUDGE, JudgeConfig.model_validate_json(sys.argv[2]))\n"
    )
    server.hang_after = 5
    command = [sys.executable, "-c", code, str(tmp_path / "out.jsonl"), json.dumps(settings)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert server.hung.wait(60)
        process.kill()
    server.hang_after = None
    server.goes_on.set()
    kept = (tmp_path / "out.jsonl.part" / "judged-000001.jsonl").read_text()
    outcome, found = run(tmp_path, **settings)
    assert [row.subject for row in found] == [row.id for row in rows]
    assert kept in (tmp_path / "out.jsonl").read_text()
    assert set(Counter(server.asked).values()) == {1}
    assert len(server.asked) == len(rows)
    usage: Any = outcome.manifest.notes["usage"]
    assert (usage["answers"], usage["prompt_tokens"]) == (len(rows), 5 * len(rows))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray
@pytest.mark.parametrize(
    ("engine", "workers"), [("local", 2), pytest.param("ray", 1, marks=pytest.mark.tools)]
)
def test_an_engine_gives_the_same_judgements(
    *, tmp_path: Path, house_yaml: Path, roomy_llama: Path, pairs: list[Pair], engine: str, workers: int
) -> None:
    settings = {"file": save(tmp_path, pairs), "model": roomy_llama, "taxonomy": house_yaml, "device": "cpu"}
    run(tmp_path, **settings, chunk=1)
    here = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "out.jsonl.manifest.json").unlink()
    run(tmp_path, **settings, chunk=1, engine=engine, workers=workers)
    assert (tmp_path / "out.jsonl").read_bytes() == here


def test_finished_chunks_are_taken_as_they_are(
    tmp_path: Path, server: Any, exchanges: list[Exchange]
) -> None:
    config = JudgeConfig.model_validate(
        {"file": save(tmp_path, exchanges), "chunk": 1, "questions": ["is_safe"], **endpoint(server)}
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    judge(config, Run(tmp_path / "whole.jsonl", scratch))
    first, last = scratch / "judged-000000.jsonl", scratch / "judged-000002.jsonl"
    first.write_text(first.read_text().replace('"is_safe":true', '"is_safe":false'))
    last.unlink()
    (scratch / "journal.jsonl").unlink()
    before = len(server.asked)
    judge(config, Run(tmp_path / "again.jsonl", scratch))
    assert len(server.asked) == before + 1
    whole, again = ((tmp_path / name).read_text().splitlines() for name in ("whole.jsonl", "again.jsonl"))
    assert again == [whole[0].replace('"is_safe":true', '"is_safe":false'), *whole[1:]]


def test_priors_are_measured_once_for_a_run(tmp_path: Path, server: Any, exchanges: list[Exchange]) -> None:
    server.gives_logprobs = True
    config = JudgeConfig.model_validate(
        {"file": save(tmp_path, exchanges), "questions": ["is_safe"], "calibrate": True, **endpoint(server)}
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "priors.json").write_text(json.dumps({"is_safe": [0.98, 0.02]}))
    judge(config, Run(tmp_path / "out.jsonl", scratch))
    assert len(server.asked) == len(exchanges)
    for row in read_records(tmp_path / "out.jsonl", Judgement):
        assert row.labels is not None
        assert row.labels.is_safe is False  # .8 is less than an option has that gets .98 for nothing


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        (
            {"model": "m", "guard": "g"},
            ConfigError,
            "expected one of guard, scorer and model, got guard and model",
        ),
        ({}, ConfigError, "got none"),
        ({"guard": "g", "calibrate": True}, ConfigError, "calibrate: is for a language model, got a guard"),
        ({"model": "m", "categories": "together"}, ConfigError, "categories: a list of them must be written"),
        (
            {"model": "m", "answers": "text", "calibrate": True},
            ConfigError,
            "calibrate: needs log-probabilities",
        ),
        ({"model": "m", "answers": "text", "on_flip": "average"}, ConfigError, "on_flip: needs log-prob"),
        (
            {"model": "m", "questions": ["better"]},
            ConfigError,
            "'better' compares two answers, got a file of exch",
        ),
        ({"model": "m", "questions": ["severity"]}, ConfigError, "expected 'is_safe' too"),
        ({"model": "m", "questions": ["safe"]}, ConfigError, "questions"),
    ],
)
def test_mistakes_are_named(
    *,
    tmp_path: Path,
    exchanges: list[Exchange],
    settings: dict[str, Any],
    kind: type[Exception],
    says: str,
) -> None:
    with pytest.raises(kind, match=says) as caught:
        run(tmp_path, file=save(tmp_path, exchanges), **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl.part").exists()


def test_prompts_alone_and_ids_that_stand_twice_are_refused(
    tmp_path: Path, exchanges: list[Exchange]
) -> None:
    with pytest.raises(DataError, match="holds prompts; expected exchanges or pairs"):
        run(tmp_path, file=save(tmp_path, [Prompt(id="a", prompt="hi")]), model="m")
    with pytest.raises(DataError, match="id 'a' stands twice"):
        run(tmp_path, file=save(tmp_path, [exchanges[0], exchanges[0]]), model="m")
