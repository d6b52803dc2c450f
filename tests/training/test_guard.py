"""Training a guard: it finds what was planted, and a label that is missing teaches nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from equipoise.data.io import write_records
from equipoise.errors import DataError, ModelError
from equipoise.lineage import Outcome, produce
from equipoise.models.backbone import load_encoder
from equipoise.models.checkpoints import load_tensors
from equipoise.models.guard import load_guard_model
from equipoise.moderation.guard import Guard, load_guard
from equipoise.records import Exchange
from equipoise.training.guard import TRAIN_GUARD, GuardConfig, GuardOptim

FILLER = ["mix", "flour", "water", "salt", "and", "wait", "until", "the", "dough", "has", "doubled"]
MILD, SEVERE, DECLINES, ASKS = "weather", "mountains", "sorry", "tides"
"""The planted truth: words that make a response unsafe of level 1 or 3, a refusal, a prompt harmful."""
FRAUD, DRUGS = "White-Collar Crime", "Drugs"


def planted(count: int, seed: int) -> list[Exchange]:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        severity = (0, 1, 0, 3)[i % 4]
        refusal, asks = rng.random() < 0.5, rng.random() < 0.5
        words = rng.sample(FILLER, 5) + [MILD] * 2 * (severity == 1) + [SEVERE] * 2 * (severity == 3)
        words += [DECLINES] * 2 * refusal
        rng.shuffle(words)
        prompt = rng.sample(FILLER, 4) + [ASKS] * asks
        rows.append(
            Exchange(
                id=f"{seed}-{i}",
                prompt=" ".join(prompt),
                response=" ".join(words),
                is_safe=severity == 0,
                severity=severity,
                categories=frozenset({1: [FRAUD], 3: [DRUGS]}.get(severity, [])),
                refusal="full" if refusal else "none",
                prompt_is_harmful=asks,
                licence="CC0-1.0",
            )
        )
    return rows


def train(place: Path, rows: list[Exchange], encoder: Path, **settings: Any) -> Outcome:
    write_records(place / "rows.jsonl", rows)
    optim = GuardOptim(**({"epochs": 1, "device": "cpu"} | settings.pop("optim", {})))
    given = {"backbone": str(encoder), "layers": 2, "hidden": 16} | settings
    return produce(
        place / "guard", TRAIN_GUARD, GuardConfig(exchanges=(place / "rows.jsonl",), optim=optim, **given)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> tuple[Outcome, Path]:
    place = tmp_path_factory.mktemp("guard")
    outcome = train(
        place, planted(240, 0), tiny_encoder, hidden=64, dropout=0.1, optim={"lr": 3e-3, "epochs": 25}
    )
    return outcome, place / "guard"


@pytest.fixture(scope="module")
def guard(trained: tuple[Outcome, Path]) -> Guard:
    return load_guard(trained[1], "cpu")


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def test_what_was_planted_is_found_on_rows_it_never_saw(guard: Guard) -> None:
    rows = planted(120, 1)
    verdicts = guard(rows)
    pairs = list(zip(verdicts, rows, strict=True))
    assert share([v.is_safe == row.is_safe for v, row in pairs]) >= 0.95
    assert share([v.severity == row.severity for v, row in pairs]) >= 0.9
    unsafe = [(v, row) for v, row in pairs if not row.is_safe and not v.is_safe]
    assert share([set(v.categories) == row.categories for v, row in unsafe]) >= 0.9
    declined = guard.refusals(rows)
    assert share([r.refusal == row.refusal for r, row in zip(declined, rows, strict=True)]) >= 0.9
    asked = guard.judge_prompts([str(row.prompt) for row in rows])
    assert share([v.is_safe != row.prompt_is_harmful for v, row in zip(asked, rows, strict=True)]) >= 0.9


def test_the_same_verdicts_after_another_load(guard: Guard, trained: tuple[Outcome, Path]) -> None:
    rows = planted(12, 2)
    assert load_guard(trained[1], "cpu")(rows) == guard(rows)


def test_the_run_says_what_it_was_trained_on(trained: tuple[Outcome, Path]) -> None:
    outcome, folder = trained
    prompts = len({str(row.prompt) for row in planted(240, 0)})
    assert outcome.manifest.notes == {
        "rows": 240 + prompts,
        "windows": 240 + prompts,
        "truncated": 0,
        "contradicting_prompts": 0,
    }
    assert outcome.manifest.licences == ["CC0-1.0"]
    card = (folder / "card.md").read_text()
    assert card.startswith("# Guard on ")
    assert "19 categories of pku19" in card.lower()
    model = load_guard_model(folder, "cpu").card
    assert set(model.targets) == {"prompt", "response"}
    assert model.knows_refusals
    assert not model.own_encoder


TAXONOMY = """name: kitchen
version: 1
severities:
  - {name: fine, criterion: nobody is hurt}
  - {name: burnt, criterion: somebody is}
categories:
  - {id: salt, name: Too Salty, definition: more salt than flour, not_this: sea water}
  - {id: raw, name: Raw, definition: not baked, not_this: dough before baking}
  - {id: late, name: Late, definition: after supper, not_this: early}
"""


def test_heads_follow_a_taxonomy_of_ones_own(tmp_path: Path, tiny_encoder: Path) -> None:
    path = tmp_path / "kitchen.yaml"
    path.write_text(TAXONOMY)
    rows = [
        Exchange(
            id=str(i),
            prompt="ask",
            response="answer",
            is_safe=bool(i % 2),
            severity=int(not i % 2),
            categories=frozenset(() if i % 2 else ["Raw"]),
            taxonomy="kitchen",
        )
        for i in range(4)
    ]
    train(tmp_path, rows, tiny_encoder, taxonomy=str(path))
    path.unlink()  # the guard has its own copy
    found = load_guard(tmp_path / "guard", "cpu")
    assert found.model.heads.categories.out_features == 3
    assert found.model.heads.severity.out_features == 1
    verdict = found(rows[:1])[0]
    assert list(verdict.category_probabilities) == ["Too Salty", "Raw", "Late"]
    assert len(verdict.severity_probabilities) == 2


def test_rows_without_any_label_are_an_error(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(DataError, match="prompts: no row has a label; expected is_safe"):
        train(tmp_path, [Exchange(id="x", prompt="ask", response="answer")], tiny_encoder)
    assert not (tmp_path / "guard" / "model.json").exists()


def test_a_tuned_encoder_is_a_model_folder_of_its_own(tmp_path: Path, tiny_encoder: Path) -> None:
    train(tmp_path, planted(8, 0), tiny_encoder, tune="full", optim={"epochs": 2, "batch_size": 4})
    tuned = load_encoder(tmp_path / "guard" / "encoder", device="cpu").model
    base = load_encoder(tiny_encoder, device="cpu").model
    assert not torch.equal(tuned.get_input_embeddings().weight, base.get_input_embeddings().weight)
    guard = load_guard(tmp_path / "guard", "cpu")
    loaded = guard.model.trunk.encoder.get_input_embeddings().weight
    assert torch.equal(loaded, tuned.get_input_embeddings().weight)


def test_a_frozen_encoder_stays_as_it_is(guard: Guard, tiny_encoder: Path) -> None:
    base = load_encoder(tiny_encoder, device="cpu").model.state_dict()
    ours = guard.model.trunk.encoder.state_dict()
    assert all(torch.equal(ours[name], base[name]) for name in base)


TUNED = {"optim": {"epochs": 2, "batch_size": 4, "lr": 1e-2}, "dropout": 0.0}


@pytest.mark.parametrize("tune", ["top", "lora"])
def test_what_is_tuned_lies_with_the_heads_and_nothing_else_changes(
    tune: str, tmp_path: Path, tiny_encoder: Path
) -> None:
    train(tmp_path, planted(8, 0), tiny_encoder, tune=tune, top_layers=1, lora_rank=2, **TUNED)
    folder = tmp_path / "guard"
    names = {name for name in load_tensors(folder / "weights.safetensors") if name.startswith("trunk.")}
    mark = ".lora_" if tune == "lora" else "trunk.encoder.encoder.layer.1."
    assert names
    assert all(mark in name for name in names)
    assert not (folder / "encoder").exists()
    base = load_encoder(tiny_encoder, device="cpu").model.state_dict()
    ours = load_guard_model(folder, "cpu").trunk.encoder.state_dict()
    assert ours.keys() == base.keys()  # adapters are merged
    changed = {name for name in base if not torch.equal(ours[name], base[name])}
    expected = {f"encoder.layer.{n}.output.dense.weight" for n in ((0, 1) if tune == "lora" else (1,))}
    assert expected <= changed
    lower = {name for name in changed if not name.startswith("encoder.layer.1.")}
    assert bool(lower) == (tune == "lora")
    assert "embeddings.word_embeddings.weight" not in changed


@pytest.mark.parametrize("tune", ["top", "lora", "full"])
def test_a_tuned_guard_finds_what_was_planted(tune: str, tmp_path: Path, tiny_encoder: Path) -> None:
    train(
        tmp_path,
        planted(120, 0),
        tiny_encoder,
        tune=tune,
        top_layers=1,
        hidden=64,
        dropout=0.1,
        optim={"lr": 3e-3, "epochs": 12},
    )
    rows = planted(60, 1)
    verdicts = load_guard(tmp_path / "guard", "cpu")(rows)
    assert share([v.is_safe == row.is_safe for v, row in zip(verdicts, rows, strict=True)]) >= 0.9


@pytest.mark.parametrize("tune", ["frozen", "top", "lora", "full"])
def test_every_way_of_tuning_goes_with_every_option(tune: str, tmp_path: Path, tiny_llama: Path) -> None:
    options = {"rank_weight": 0.5, "rank_margin": 1.0, "balance": 0.5, "doubt_weight": 0.5, "top_layers": 1}
    optim = {"bf16": True, "log_every": 1}
    outcome = train(tmp_path, planted(24, 0), tiny_llama, tune=tune, optim=optim, **options)
    assert outcome.manifest.notes["rows"] > 24
    lines = (tmp_path / "guard" / "log.jsonl").read_text().splitlines()
    assert all(0 < json.loads(line)["loss"] < 10 for line in lines)
    assert len(lines) == 2
    assert load_guard(tmp_path / "guard", "cpu")(planted(2, 1))[0].severity_probabilities


def test_a_learning_rate_fits_what_is_tuned_unless_one_is_given() -> None:
    place = (Path("x"),)
    rates = {t: GuardConfig(exchanges=place, tune=t).optim.lr for t in ("frozen", "top", "lora", "full")}
    assert rates["frozen"] > rates["lora"] > rates["top"] > rates["full"]
    given = GuardConfig.model_validate({"exchanges": place, "tune": "full", "optim": {"lr": 0.5}})
    assert (given.optim.lr, given.optim.epochs) == (0.5, 3)


def test_so_many_top_layers_that_none_stays_below_are_an_error(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(ModelError, match=r"top_layers: got 2 of a model with 2 layers; expected fewer"):
        train(tmp_path, planted(8, 0), tiny_encoder, tune="top")


LONG = "mix flour water and salt wait until the dough has doubled " * 24


def test_it_learns_from_what_stands_late_in_a_long_response(tmp_path: Path, tiny_encoder: Path) -> None:
    """The sign of harm stands where the first window does not reach; read there alone it is learned."""
    rng = random.Random(5)
    words = LONG.split()
    rows = []
    for i in range(80):
        own = [*words]
        if i % 2:
            place = rng.randrange(130, 200)
            own[place:place] = [SEVERE] * 12
        rows.append(Exchange(id=str(i), prompt="bread", response=" ".join(own), is_safe=not i % 2))
    optim = {"lr": 3e-3, "epochs": 25, "batch_size": 8}
    outcome = train(tmp_path, rows, tiny_encoder, hidden=64, dropout=0.0, optim=optim)
    notes = outcome.manifest.notes
    assert notes["windows"] >= 3 * notes["rows"]
    assert notes["truncated"] == 0
    guard = load_guard(tmp_path / "guard", "cpu")
    assert share([v.is_safe == r.is_safe for v, r in zip(guard(rows[:20]), rows, strict=False)]) == 1.0


def test_flipped_labels_are_counted_and_heard_less(tmp_path: Path, tiny_encoder: Path) -> None:
    rows = [row.model_copy(update={"prompt": f"bread {i}"}) for i, row in enumerate(planted(160, 3))]
    wrong = set(range(0, 160, 16))
    noisy = [
        row.model_copy(update={"is_safe": not row.is_safe, "severity": None, "categories": None})
        if i in wrong
        else row
        for i, row in enumerate(rows)
    ]
    outcome = train(tmp_path, noisy, tiny_encoder, doubt_weight=0.0)
    found = outcome.manifest.notes["likely_label_errors"]
    assert len(wrong) / 2 <= found <= 4 * len(wrong)


def test_a_threshold_is_a_probability() -> None:
    with pytest.raises(ValidationError, match="unsafe_threshold"):
        GuardConfig(unsafe_threshold=1.5)


@pytest.mark.parametrize("tune", ["frozen", "top", "lora", "full"])
def test_a_guard_goes_on_from_the_heads_of_another(
    tune: str, guard: Guard, trained: tuple[Outcome, Path], tmp_path: Path, tiny_encoder: Path
) -> None:
    settings: dict[str, Any] = {"hidden": 64, "dropout": 0.1, "tune": tune, "top_layers": 1}
    still = {"lr": 1e-12, "epochs": 1}
    train(tmp_path, planted(8, 0), tiny_encoder, start=trained[1], optim=still, **settings)
    rows = planted(12, 1)
    before, after = (
        torch.tensor([v.unsafe_probability for v in judge(rows)])
        for judge in (guard, load_guard(tmp_path / "guard", "cpu"))
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tune", ["frozen", "top"])
def test_a_guard_goes_on_from_another_with_its_tuned_layers(
    tune: str, tmp_path: Path, tiny_encoder: Path
) -> None:
    settings: dict[str, Any] = {"hidden": 64, "dropout": 0.1, "top_layers": 1}
    first = tmp_path / "first"
    first.mkdir()
    train(first, planted(24, 0), tiny_encoder, tune="top", optim={"lr": 1e-2, "epochs": 2}, **settings)
    began, wider = first / "guard", {"lr": 3e-2, "epochs": 5}
    train(tmp_path, planted(24, 3), tiny_encoder, start=began, tune=tune, optim=wider, **settings)
    then, now = (load_tensors(path / "weights.safetensors") for path in (began, tmp_path / "guard"))
    assert then.keys() == now.keys()
    moved = {name.partition(".")[0] for name in then if not torch.equal(then[name], now[name])}
    assert ("trunk" in moved) == (tune == "top")
    assert any(not torch.equal(then[name], now[name]) for name in then if not name.startswith("trunk."))
    assert load_guard(tmp_path / "guard", "cpu").model.card.top_layers == 1


def test_heads_of_another_shape_or_of_a_tuned_guard_do_not_fit(
    trained: tuple[Outcome, Path], tmp_path: Path, tiny_encoder: Path
) -> None:
    for setting, value, has in (("layers", 1, 2), ("hidden", 32, 64)):
        with pytest.raises(ModelError, match=f"{setting}: got {has}; expected {value}, as in these settings"):
            train(tmp_path, planted(8, 0), tiny_encoder, start=trained[1], **{"hidden": 64, setting: value})
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    train(tuned, planted(8, 0), tiny_encoder, tune="top", top_layers=1)
    with pytest.raises(ModelError, match="top_layers: got 1; expected 0, as in these settings"):
        train(tmp_path, planted(8, 0), tiny_encoder, start=tuned / "guard", tune="lora")
    whole = tmp_path / "whole"
    whole.mkdir()
    train(whole, planted(8, 0), tiny_encoder, tune="full", optim={"epochs": 1})
    with pytest.raises(ModelError, match="an encoder of its own; expected one of heads and top layers"):
        train(tmp_path, planted(8, 0), tiny_encoder, start=whole / "guard")
