"""`moderate`, `refusals` and `score` as a user types them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from equipoise.errors import ConfigError, DataError, ModelError
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.models.scorer import ScorerCard, ScorerModel
from equipoise.taxonomy import load_taxonomy

SECRET = "marmalade"
Call = Callable[..., Result]
NAMES = load_taxonomy("pku19").names


@pytest.fixture
def call(call: Call) -> Call:
    """Run a command; texts never show."""

    def run(*words: object) -> Result:
        result = call(*words)
        assert SECRET not in result.output
        return result

    return run


def save_guard(folder: Path, encoder: Path, severity: tuple[float, float, float]) -> None:
    """Write a guard that gives every text the same severity logits."""
    torch.manual_seed(0)
    card = GuardCard(
        taxonomy=load_taxonomy("pku19"),
        backbone=str(encoder),
        layers=2,
        hidden=4,
        targets=("response", "prompt"),
        knows_refusals=True,
    )
    model = GuardModel(card, load_encoder(encoder, device="cpu"))
    model.trunk.requires_grad_(False)
    with torch.no_grad():
        for head in (model.heads.severity, model.heads.categories, model.heads.refusal):
            head.weight.zero_()
            head.bias.fill_(-5.0)
        model.heads.severity.bias[:] = torch.tensor(severity)
        model.heads.categories.bias[3] = 2.0
        model.heads.refusal.bias[1] = 5.0
    folder.mkdir()
    model.save(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Folders `strict` (everything is unsafe of level 2), `kind` (all is safe) and `scorer`."""
    place = tmp_path_factory.mktemp("models")
    save_guard(place / "strict", tiny_encoder, (3.0, 3.0, -3.0))
    save_guard(place / "kind", tiny_encoder, (-3.0, 0.0, 0.0))
    card = ScorerCard(
        backbone=str(tiny_encoder), trunk="pooled", layers=2, hidden=4, trained=("reward", "cost")
    )
    scorer = ScorerModel(card, load_encoder(tiny_encoder, device="cpu"))
    scorer.trunk.requires_grad_(False)
    (place / "scorer").mkdir()
    scorer.save(place / "scorer")
    return place


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    lines = [
        {"id": "a", "prompt": f"{SECRET} please", "response": "I'm sorry, I can't."},
        {"id": "b", "prompt": "hi", "response": f"more {SECRET}"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_text_gets_a_verdict_and_is_not_repeated(call: Call, models: Path) -> None:
    shown = call("moderate", f"{SECRET} please", "--guard", models / "strict")
    assert shown.exit_code == 0
    first, second = shown.stdout.splitlines()
    assert first == "prompt: unsafe, severity 2 (P(unsafe) 0.953)"
    assert second.split(" 0.")[0] == f"  {NAMES[3]}"
    assert call("moderate", SECRET, "--guard", models / "kind").stdout == "prompt: safe (P(unsafe) 0.047)\n"


def test_one_text_as_json(call: Call, models: Path) -> None:
    words = ["moderate", "hi", "--response", SECRET, "--guard", models / "strict", "--json"]
    found = json.loads(call(*words).stdout)
    assert found["target"] == "response"
    assert (found["is_safe"], found["severity"], found["harm_categories"]) == (False, 2, [NAMES[3]])
    assert list(found["category_probabilities"]) == list(NAMES)
    assert found["truncated"] is False


def test_a_policy_decides_over_one_text(call: Call, models: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("{name: mine, unsafe: 0.99, review: [0.9, 0.99]}")
    words = ["moderate", SECRET, "--guard", models / "strict", "--policy"]
    first, second = call(*words, mine).stdout.splitlines()
    assert first == "prompt: for review (P(unsafe) 0.953)"
    assert second == "  the policy is not sure: a person should look"
    found = json.loads(call(*words, mine, "--json").stdout)
    assert (found["policy"], found["is_safe"], found["review"]) == ("mine", True, True)
    assert json.loads(call(*words, "default", "--json").stdout)["policy"] == "default"


def test_a_file_is_judged_by_a_policy(call: Call, models: Path, rows: Path) -> None:
    mine = rows.with_name("mine.yaml")
    mine.write_text("{name: mine, severity: {3: 0.5}}")
    out = rows.with_name("out.jsonl")
    call("moderate", "--file", rows, "--out", out, "--guard", models / "strict", "--policy", mine)
    assert [(row["policy"], row["is_safe"]) for row in read(out)] == [("mine", True)] * 2


def test_a_text_that_was_cut_is_said_to_be(call: Call, models: Path) -> None:
    shown = call("moderate", f"{SECRET} " * 300, "--guard", models / "kind").stdout
    assert "the text was too long and was judged in part" in shown


COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "moderate": (["--guard", "strict"], ["target", "is_safe"]),
    "refusals": (["--guard", "strict"], ["refusal", "refusal_probabilities"]),
    "score": (["--scorer", "scorer"], ["reward", "cost"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_is_answered_row_by_row(call: Call, name: str, models: Path, rows: Path) -> None:
    (option, folder), fields = COMMANDS[name]
    out = rows.with_name("out.jsonl")
    words = [name, "--file", rows, "--out", out, option, models / folder]
    first = json.loads(call(*words, "--json").stdout)
    assert (first["out"], first["skipped"], first["rows"], first["errors"]) == (str(out), False, 2, 0)
    found = read(out)
    assert [row["id"] for row in found] == ["a", "b"]
    assert all(list(row)[3:5] == fields for row in found)
    assert json.loads(call(*words, "--json").stdout) == first | {"skipped": True}
    assert call(*words).stdout == f"2 rows, 0 errors\nwrote {out}\n"
    assert (out.with_name("out.jsonl.manifest.json")).exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_lines_stay_in_place_and_the_command_ends_with_one(
    call: Call, name: str, models: Path, rows: Path
) -> None:
    (option, folder), _ = COMMANDS[name]
    rows.write_text('{"id": "bad"}\n' + rows.read_text())
    out = rows.with_name("out.jsonl")
    result = call(name, "--file", rows, "--out", out, option, models / folder)
    assert result.exit_code == 1
    assert result.stdout.startswith("2 rows, 1 errors\n")
    assert [list(row)[:2] for row in read(out)] == [["id", "error"], ["id", "prompt"], ["id", "prompt"]]


def test_refusals_by_prefix_need_no_guard(call: Call, rows: Path) -> None:
    out = rows.with_name("out.jsonl")
    call("refusals", "--file", rows, "--out", out, "--set", "method=prefix")
    assert [row["refusal"] for row in read(out)] == ["full", "none"]


def test_refusals_of_the_guard_may_be_partial(call: Call, models: Path, rows: Path) -> None:
    out = rows.with_name("out.jsonl")
    call("refusals", "--file", rows, "--out", out, "--guard", models / "kind")
    assert [row["refusal"] for row in read(out)] == ["partial", "partial"]


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["moderate", "hi"], ModelError, "'minilm' is not installed; run: equipoise models install minilm"),
        (["moderate", "--guard", "strict"], ConfigError, "moderate: expected --file IN and --out OUT"),
        (["moderate", "hi", "--guard", "nowhere"], ModelError, r"nowhere: no model\.json"),
        (["moderate", "hi", "--guard", "scorer"], ModelError, "holds equipoise-scorer; expected"),
        (["moderate", "hi", "--guard", "strict", "--file", "in.jsonl"], ConfigError, "one or the other"),
        (["moderate", " ", "--guard", "strict"], ConfigError, "the text is empty"),
        (["moderate", "hi", "--guard", "strict", "--policy", "harsh"], ConfigError, "no policy 'harsh'"),
        (["moderate", "hi", "--guard", "strict", "--policy", "no.yaml"], ConfigError, "no.yaml: No such"),
        (["refusals", "--file", "in.jsonl", "--out", "o.jsonl"], ModelError, "'minilm' is not installed"),
        (["refusals", "--file", "in.jsonl"], ConfigError, "refusals: expected --file IN and --out OUT"),
        (["score", "--file", "in.jsonl", "--out", "o.jsonl"], ConfigError, "scorer: expected a scorer"),
        (
            ["score", "--file", "in.jsonl", "--out", "o.jsonl", "--scorer", "scorer", "--set", "chunck=2"],
            ConfigError,
            r"chunck: no such setting \(did you mean 'chunk'\?\)",
        ),
        (["score", "--file", "none.jsonl", "--out", "o", "--scorer", "scorer"], DataError, "none.jsonl"),
    ],
)
def test_mistakes_are_one_line(
    *,
    call: Call,
    models: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    kind: type[Exception],
    says: str,
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("EQUIPOISE_CACHE", "empty")
    (models / "in.jsonl").write_text(rows.read_text())
    with pytest.raises(kind, match=says) as caught:
        call(*words)
    assert "\n" not in str(caught.value)
