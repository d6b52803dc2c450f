"""What users get wrong before a training: one clear line each, that says where."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from equipoise.config import Config
from equipoise.data.io import write_records
from equipoise.errors import DataError, EquipoiseError, ModelError
from equipoise.lineage import Step, produce
from equipoise.models.backbone import load_causal
from equipoise.models.scorer import ScorerCard, load_scorer_model
from equipoise.records import Answer, Exchange, Pair
from equipoise.training.guard import TRAIN_GUARD, GuardConfig, GuardOptim
from equipoise.training.preference import TRAIN_PREFERENCE, PreferenceConfig, PreferenceOptim
from equipoise.training.scorer import TRAIN_SCORER, ScorerConfig, ScorerOptim
from equipoise.training.sft import TRAIN_SFT, SftConfig, SftOptim

CATEGORY = "animal_abuse"
"""Of beavertails14, and under another name of pku19."""


def pair(*texts: str, prompt: str = "how do i bake bread", **fields: Any) -> Pair:
    answers = tuple(Answer(response=text, **fields.pop(f"a{i}", {})) for i, text in enumerate(texts))
    return Pair(id="p1", source="mine", prompt=prompt, answers=answers, **({"better": 0} | fields))  # type: ignore[arg-type]


def exchange(response: str = "mix flour", **fields: Any) -> Exchange:
    return Exchange(id="e1", source="mine", prompt="how do i bake bread", response=response, **fields)


def line_of(place: Path, step: Step, config: Config) -> str:
    with pytest.raises(EquipoiseError) as caught:
        produce(place / "out", step, config)
    assert not (place / "out").exists()
    return str(caught.value)


def aligned(place: Path, model: Path, rows: list[Pair], **settings: Any) -> PreferenceConfig:
    write_records(place / "pairs.jsonl", rows)
    optim = PreferenceOptim(device="cpu")
    given = {"objective": "dpo"} | settings
    return PreferenceConfig(pairs=(place / "pairs.jsonl",), model=str(model), optim=optim, **given)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (pair("mix flour", "wait", prompt="bread and " * 40), "1 over 60 tokens"),
        (pair("mix flour", " "), "1 with an empty response"),
        (pair("mix flour", "mix flour"), "1 with equal responses"),
        (pair("mix flour", "wait", better="tie"), "1 no preference, or a tie"),
    ],
    ids=["prompt beyond the limit", "empty response", "equal responses", "tie"],
)
def test_pairs_that_teach_nothing(tmp_path: Path, tiny_llama: Path, one: Pair, why: str) -> None:
    said = line_of(tmp_path, TRAIN_PREFERENCE, aligned(tmp_path, tiny_llama, [one], max_tokens=60))
    assert said == f"pairs: none is left to train on ({why})"


def test_a_preference_of_the_wrong_polarity(tmp_path: Path, tiny_llama: Path, tiny_encoder: Path) -> None:
    wrong = pair("mix flour", "wait", a0={"is_safe": False}, a1={"is_safe": True}, safer=0)
    said = line_of(tmp_path, TRAIN_PREFERENCE, aligned(tmp_path, tiny_llama, [wrong], preference="safer"))
    assert said.startswith("mine: p1: safer names the unsafe answer of a pair with a safe one; see")
    config = ScorerConfig(
        pairs=(tmp_path / "pairs.jsonl",), backbone=str(tiny_encoder), optim=ScorerOptim(device="cpu")
    )
    said = line_of(tmp_path, TRAIN_SCORER, config)
    assert f"{tmp_path / 'pairs.jsonl'}:1: safer: a safe answer ranks above an unsafe one" in said
    assert "\n" not in said


def test_a_scorer_of_the_wrong_polarity(tmp_path: Path) -> None:
    card = ScorerCard(backbone="minilm", trunk="pooled", layers=1, hidden=1, trained=("cost",))
    text = card.model_dump_json().replace("higher_is_worse", "higher_is_better")
    (tmp_path / "model.json").write_text(text, "utf-8")
    with pytest.raises(ModelError) as caught:
        load_scorer_model(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'model.json'}: cost_polarity: ")
    assert "'higher_is_worse'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mixed_taxonomies(tmp_path: Path, tiny_encoder: Path) -> None:
    mixed = exchange(is_safe=False, categories=frozenset({CATEGORY}), taxonomy="beavertails14")
    write_records(tmp_path / "rows.jsonl", [mixed])
    config = GuardConfig(
        exchanges=(tmp_path / "rows.jsonl",), backbone=str(tiny_encoder), optim=GuardOptim(device="cpu")
    )
    said = line_of(tmp_path, TRAIN_GUARD, config)
    assert said.startswith(f"mine: e1: no category '{CATEGORY}' among the 19 categories of 'pku19'")
    assert said.endswith("; it is labelled by beavertails14")
    assert "\n" not in said
    harmful = {"is_safe": False, "categories": frozenset({CATEGORY})}
    rows = [
        pair("a", "b", a0=harmful, taxonomy="beavertails14"),
        pair("c", "d").model_copy(update={"id": "p2"}),
    ]
    write_records(tmp_path / "pairs.jsonl", rows)
    scorer = ScorerConfig(
        pairs=(tmp_path / "pairs.jsonl",),
        backbone=str(tiny_encoder),
        category_weight=1.0,
        optim=ScorerOptim(device="cpu"),
    )
    said = line_of(tmp_path, TRAIN_SCORER, scorer)
    assert said == "category_weight: records of taxonomies beavertails14, pku19; expected one"


def test_exchanges_without_a_response_and_a_tokenizer_without_chat_template(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_llama.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = None
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(model)
    write_records(tmp_path / "rows.jsonl", [exchange(" ")])
    config = SftConfig(exchanges=(tmp_path / "rows.jsonl",), model=str(model), optim=SftOptim(device="cpu"))
    said = line_of(tmp_path, TRAIN_SFT, config)
    assert said == "exchanges: none is left to train on (1 with an empty response)"
    rows = [exchange(), exchange("wait").model_copy(update={"id": "e2"})]
    write_records(tmp_path / "rows.jsonl", rows)
    produce(tmp_path / "out", TRAIN_SFT, config)
    line = f"{model}: no chat template; a plain 'user: ... assistant:' is used\n"
    assert capsys.readouterr().err.count(line) == 1


def test_files_without_rows(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("", "utf-8")
    config = SftConfig(
        exchanges=(tmp_path / "rows.jsonl",), model=str(tiny_llama), optim=SftOptim(device="cpu")
    )
    with pytest.raises(DataError, match="the files are empty"):
        produce(tmp_path / "out", TRAIN_SFT, config)


def test_a_pair_beyond_the_models_positions(tmp_path: Path, tiny_llama: Path) -> None:
    positions = load_causal(tiny_llama, device="cpu").model.config.max_position_embeddings
    long = pair("mix flour", "bread and " * positions)
    why = rf".*: a prompt and its response have \d+ tokens; expected at most the {positions} that"
    aligning = aligned(tmp_path, tiny_llama, [long], max_tokens=10**6)
    assert re.match(why, line_of(tmp_path, TRAIN_PREFERENCE, aligning))
    optim = ScorerOptim(device="cpu")
    scoring = ScorerConfig(pairs=aligning.pairs, backbone=str(tiny_llama), trunk="last", optim=optim)
    assert re.match(why, line_of(tmp_path, TRAIN_SCORER, scoring))


NONE_LEFT = "none is left to train on (1 with an empty response, 1 with equal responses)"


def test_scorers_leave_empty_and_equal_answers_out(tmp_path: Path, tiny_encoder: Path) -> None:
    rows = [pair("mix flour", " "), pair("mix flour", "mix flour")]
    write_records(tmp_path / "pairs.jsonl", rows)
    given = {
        "backbone": str(tiny_encoder),
        "layers": 2,
        "hidden": 4,
        "optim": ScorerOptim(device="cpu", epochs=1),
    }
    config = ScorerConfig(pairs=(tmp_path / "pairs.jsonl",), **given)
    said = line_of(tmp_path, TRAIN_SCORER, config)
    assert said == f"pairs, exchanges: {NONE_LEFT}"
    more = [pair("mix flour and water", "wait " * 300), pair("wait", "mix flour")]
    write_records(tmp_path / "pairs.jsonl", [*rows, *more])
    notes = produce(tmp_path / "scorer", TRAIN_SCORER, config).manifest.notes
    assert notes["left_out"] == {"with an empty response": 1, "with equal responses": 1}
    assert (notes["rows"], notes["truncated"]) == (2, 1)
    assert "- texts that do not fit their windows, read in part: 1" in (
        tmp_path / "scorer" / "card.md"
    ).read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tensorbord", r"got 'tensorbord' \(did you mean 'tensorboard'\?\); expected one of"),
        ("comet_ml", "is not installed"),
    ],
)
def test_a_place_to_report_to_that_there_is_not(name: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        SftOptim(report_to=(name,))
