"""Training a guard: it finds what was planted, and a label that is missing teaches nothing."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from equipoise.data.io import write_records
from equipoise.errors import DataError, TaxonomyError
from equipoise.lineage import Outcome, produce
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import load_guard_model
from equipoise.models.heads import GuardHeads
from equipoise.moderation.guard import Guard, load_guard
from equipoise.records import Exchange
from equipoise.taxonomy import load_taxonomy
from equipoise.training.guard import (
    TRAIN_GUARD,
    GuardBatch,
    GuardConfig,
    GuardLosses,
    GuardOptim,
    GuardTargets,
    guard_rows,
)

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
    assert outcome.manifest.notes == {"rows": 240 + prompts, "truncated": 0}
    assert outcome.manifest.licences == ["CC0-1.0"]
    card = (folder / "card.md").read_text()
    assert card.startswith("# Guard on ")
    assert "19 categories of pku19" in card.lower()
    model = load_guard_model(folder, "cpu").card
    assert set(model.targets) == {"prompt", "response"}
    assert model.knows_refusals
    assert not model.own_encoder


def one(**labels: Any) -> Exchange:
    return Exchange(**({"id": "x", "prompt": "ask", "response": "answer"} | labels))


def targets_of(*rows: Exchange) -> GuardTargets:
    return guard_rows(rows, load_taxonomy("pku19"))[1]


def gradients(targets: GuardTargets) -> GuardHeads:
    """Heads after one backward pass over rows with these targets."""
    torch.manual_seed(0)
    heads = GuardHeads(6, 4, categories=19, thresholds=3, dropout=0.0)
    GuardLosses(heads)(GuardBatch(torch.randn(len(targets.level), 6), targets)).sum().backward()
    return heads


def is_zero(*tensors: torch.Tensor | None) -> bool:
    return all(tensor is not None and torch.equal(tensor, torch.zeros_like(tensor)) for tensor in tensors)


@pytest.mark.parametrize("safe", [True, False])
def test_a_row_with_only_is_safe_trains_the_first_threshold_alone(safe: bool) -> None:
    heads = gradients(targets_of(one(is_safe=safe)))
    weight, bias = heads.severity.weight.grad, heads.severity.bias.grad
    assert weight is not None
    assert bias is not None
    assert bias[0] != 0
    assert (bias[0] > 0) == safe  # a step against the gradient lowers P(unsafe) of a safe row
    assert is_zero(weight[1:], bias[1:])
    assert is_zero(heads.categories.weight.grad, heads.categories.bias.grad)
    assert is_zero(heads.refusal.weight.grad, heads.refusal.bias.grad)


def test_a_row_with_only_a_refusal_trains_that_head_alone() -> None:
    heads = gradients(targets_of(one(refusal="partial")))
    assert is_zero(heads.severity.weight.grad, heads.severity.bias.grad)
    assert is_zero(heads.categories.weight.grad, heads.categories.bias.grad)
    assert heads.refusal.bias.grad is not None
    assert [bool(g < 0) for g in heads.refusal.bias.grad] == [False, True, False]


def test_only_rated_categories_get_a_gradient() -> None:
    kinds = load_taxonomy("pku19")
    row = one(is_safe=False, categories=frozenset({DRUGS}), rated=frozenset({DRUGS, FRAUD}))
    heads = gradients(targets_of(row))
    assert heads.categories.bias.grad is not None
    moved = {name for name, g in zip(kinds.names, heads.categories.bias.grad, strict=True) if g != 0}
    assert moved == {DRUGS, FRAUD}
    assert heads.categories.bias.grad[kinds.index(DRUGS)] < 0 < heads.categories.bias.grad[kinds.index(FRAUD)]


def test_labels_become_targets() -> None:
    targets = targets_of(
        one(is_safe=False, severity=2, categories=frozenset({DRUGS}), refusal="none"),
        one(is_safe=True, severity=0, categories=frozenset()),
        one(severity=3),
        one(is_safe=False),
        one(refusal="full"),
    )
    assert targets.level.tolist() == [2, 0, 3, -1, -1]
    assert targets.unsafe.tolist() == [1, 0, 1, 1, -1]
    assert targets.refusal.tolist() == [0, -1, -1, -1, 2]
    assert targets.category_mask.sum(1).tolist() == [19, 0, 0, 0, 0]  # the head is P(category | unsafe)
    assert targets.categories.sum(1).tolist() == [1, 0, 0, 0, 0]


def test_a_labelled_prompt_is_one_row_that_takes_the_worst_response() -> None:
    rows = [
        one(id="a", is_safe=False, severity=1, categories=frozenset({FRAUD}), prompt_is_harmful=True),
        one(id="b", is_safe=False, severity=3, categories=frozenset({DRUGS}), prompt_is_harmful=True),
        one(id="c", prompt="other", is_safe=True, severity=0, categories=frozenset(), prompt_is_harmful=True),
        one(id="d", prompt="kind", is_safe=False, severity=2, prompt_is_harmful=False),
    ]
    texts, targets, kinds = guard_rows(rows, load_taxonomy("pku19"))
    assert kinds == ("response", "prompt")
    assert [(t.prompt, t.response) for t in texts[4:]] == [("ask", None), ("other", None), ("kind", None)]
    assert targets.level[4:].tolist() == [3, -1, 0]
    assert targets.unsafe[4:].tolist() == [1, 1, 0]
    drugs = load_taxonomy("pku19").index(DRUGS)
    assert targets.categories[4:].nonzero().tolist() == [[0, drugs]]
    assert targets.refusal[4:].tolist() == [-1, -1, -1]


def test_only_prompts_give_a_guard_for_prompts() -> None:
    texts, _, kinds = guard_rows([one(prompt_is_harmful=True)], load_taxonomy("pku19"))
    assert kinds == ("prompt",)
    assert len(texts) == 1


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
        one(
            id=str(i),
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


def test_labels_that_the_taxonomy_lacks_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "kitchen.yaml"
    path.write_text(TAXONOMY)
    kitchen = load_taxonomy(str(path))
    with pytest.raises(DataError, match=r"x: severity is not on the scale of kitchen, got 2; exp"):
        guard_rows([one(severity=2)], kitchen)
    with pytest.raises(TaxonomyError, match=r"no category 'Rwa' .* \(did you mean 'Raw'\?\)"):
        guard_rows([one(is_safe=False, categories=frozenset({"Rwa"}))], kitchen)


def test_rows_without_any_label_are_an_error(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(DataError, match="prompts: no row has a label; expected is_safe"):
        train(tmp_path, [one(), one(id="y")], tiny_encoder)
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


def test_a_threshold_is_a_probability() -> None:
    with pytest.raises(ValidationError, match="unsafe_threshold"):
        GuardConfig(unsafe_threshold=1.5)
