"""`equipoise annotate judge` as a user types it."""

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from equipoise.cli.annotate import app
from equipoise.data.io import read_records, write_records
from equipoise.errors import ConfigError, DataError, ModelError, RunStoppedError, TaxonomyError
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.models.scorer import ScorerCard, ScorerModel
from equipoise.records import Answer, Exchange, Judgement, Pair
from equipoise.taxonomy import load_taxonomy

SECRET = "marmalade"
main = typer.Typer()
main.add_typer(app, name="annotate")


def call(*words: object) -> Result:
    """Run the command; its mistakes are raised, texts never show."""
    result = CliRunner().invoke(main, ["annotate", *(str(word) for word in words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert SECRET not in result.output
    return result


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Folders `gate` (a guard) and `scale` (a scorer), with random heads."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    card = GuardCard(
        taxonomy=load_taxonomy("pku19"),
        backbone=str(tiny_encoder),
        layers=2,
        hidden=4,
        targets=("response",),
        knows_refusals=False,
    )
    about = {"backbone": str(tiny_encoder), "trunk": "pooled", "layers": 2, "hidden": 4}
    scale = ScorerCard.model_validate({**about, "trained": ("reward", "cost")})
    for name, model in (
        ("gate", GuardModel(card, load_encoder(tiny_encoder, device="cpu"))),
        ("scale", ScorerModel(scale, load_encoder(tiny_encoder, device="cpu"))),
    ):
        model.trunk.requires_grad_(False)
        (place / name).mkdir()
        model.save(place / name)
    return place


@pytest.fixture
def exchanges(tmp_path: Path) -> Path:
    path = tmp_path / "exchanges.jsonl"
    write_records(path, [Exchange(id=i, prompt="hi", response=f"{SECRET} {i}", licence="MIT") for i in "ab"])
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    answers = Answer(response=SECRET), Answer(response="take a warm coat")
    write_records(path, [Pair(id="p", prompt="hi", answers=answers)])
    return path


def test_a_guard_judges_exchanges(models: Path, exchanges: Path) -> None:
    out = exchanges.with_name("out.jsonl")
    words = ["judge", exchanges, "--judge", f"guard:{models / 'gate'}", "--out", out]
    shown = call(*words)
    assert shown.exit_code == 0
    assert shown.stdout == f"wrote {out}\n2 rows judged by gate, 2 judgements. missing: none\n"
    found = list(read_records(out, Judgement))
    assert [(row.subject, row.annotator, row.licence) for row in found] == [
        ("a", "gate", "MIT"),
        ("b", "gate", "MIT"),
    ]
    again = json.loads(call(*words, "--json").stdout)
    assert (again["skipped"], again["rows"], again["missing"], again["position_bias"]) == (True, 2, {}, {})
    assert call(*words).stdout.startswith(f"{out} was complete already\n")


def test_a_scorer_judges_pairs_by_a_name_of_ones_own(models: Path, pairs: Path) -> None:
    out = pairs.with_name("out.jsonl")
    call("judge", pairs, "--judge", f"scorer:{models / 'scale'}", "--name", "scale-2", "--out", out)
    found = list(read_records(out, Judgement))
    assert [row.subject for row in found] == ["p#0", "p#1", "p"]
    assert {row.annotator for row in found} == {"scale-2"}
    assert found[2].better in {0, 1}


def test_a_language_model_says_what_is_missing_and_its_bias_last(tiny_llama: Path, pairs: Path) -> None:
    out = pairs.with_name("out.jsonl")
    words = ["judge", pairs, "--judge", f"model:{tiny_llama}", "--out", out, "--set", "device=cpu"]
    shown = call(*words, "--question", "is_safe", "--question", "better").stdout.splitlines()
    # the safety question is too long for this model, the shorter one about help is not
    assert shown[-1].startswith("1 rows judged by tiny-llama, 3 judgements. missing: is_safe 2 no_answer")


def test_settings_come_from_a_file_and_the_judge_from_the_line(models: Path, exchanges: Path) -> None:
    config, out = exchanges.with_name("run.yaml"), exchanges.with_name("out.jsonl")
    config.write_text(f"file: {exchanges}\nname: night-shift\nchunk: 1\n")
    words = ["judge", "--config", config, "--judge", f"guard:{models / 'gate'}", "--out", out]
    assert json.loads(call(*words, "--json").stdout)["judge"] == "night-shift"


def test_a_server_that_is_not_there_stops_the_run(exchanges: Path) -> None:
    words = ["judge", exchanges, "--judge", "endpoint:http://127.0.0.1:9/v1#some/model"]
    words += ["--out", exchanges.with_name("out.jsonl"), "--set", "endpoint.tries=1"]
    with pytest.raises(
        RunStoppedError, match=r"http://127.0.0.1:9/v1: model 'some/model': the server is dead"
    ):
        call(*words)


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (
            ["--judge", "gard:x"],
            ConfigError,
            r"--judge: got 'gard:x' \(did you mean 'guard'\?\); expected guard:DIR",
        ),
        (["--judge", "guard"], ConfigError, "--judge: got 'guard'"),
        (
            ["--judge", "endpoint:http://localhost:1/v1"],
            ConfigError,
            "no model in .* expected endpoint:URL#MODEL",
        ),
        (["--judge", "endpoint:ftp://x#m"], ConfigError, "endpoint.url: expected an address"),
        ([], ConfigError, "expected one of guard, scorer and model, got none"),
        (["--judge", "guard:nowhere"], DataError, "guard: nowhere: no such file or folder"),
        (["--judge", "guard:scale"], ModelError, "holds equipoise-scorer; expected"),
        (
            ["--judge", "guard:gate", "--question", "is_safe"],
            ConfigError,
            "questions: is for a language model",
        ),
        (["--judge", "model:m", "--question", "better"], ConfigError, "'better' compares two answers"),
        (
            ["--judge", "model:m", "--taxonomy", "pku91"],
            TaxonomyError,
            r"no taxonomy 'pku91' \(did you mean 'pku19'",
        ),
    ],
)
def test_mistakes_are_one_line(
    *,
    models: Path,
    exchanges: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    kind: type[Exception],
    says: str,
) -> None:
    monkeypatch.chdir(models)
    with pytest.raises(kind, match=says) as caught:
        call("judge", exchanges, "--out", exchanges.with_name("out.jsonl"), *words)
    assert "\n" not in str(caught.value)
