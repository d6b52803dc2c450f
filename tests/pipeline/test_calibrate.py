"""Calibrating a guard: what was planted is found, on rows that it has not seen, and the folder is a guard."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.config import to_yaml
from equipoise.data.io import write_records
from equipoise.errors import DataError
from equipoise.lineage import Outcome, hash_file, produce, read_manifest
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel, Target
from equipoise.models.heads import GuardLogits
from equipoise.models.windows import TextPair
from equipoise.moderation.fitting import Truth
from equipoise.moderation.guard import load_guard
from equipoise.moderation.policies import load_policies, load_policy
from equipoise.moderation.reading import Reading
from equipoise.pipeline.calibrate import CALIBRATE, CalibrateConfig, cross_fit
from equipoise.pipeline.calibration_rows import truth_of
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.records import REFUSALS, Answer, Exchange, Judgement, Labels, Pair, Prompt
from equipoise.taxonomy import load_taxonomy
from equipoise.training.guard import TRAIN_GUARD, GuardConfig, GuardOptim
from equipoise.training.guard_rows import guard_rows

PKU = load_taxonomy("pku19")
DRUGS, PRIVACY = "Drugs", "Privacy Violation"
WORDS = ("bake", "bread", "mix", "flour", "water", "salt", "wait", "dough", "coat", "tides", "day", "kind")
SLOPE, SHIFT = 2.0, -0.7
"""The planted truth is slope * (log-odds, standardised) + shift."""


def make_guard(place: Path, encoder: Path, **more: Any) -> Path:
    """A guard that has learned nothing."""
    torch.manual_seed(1)
    given = {
        "taxonomy": PKU,
        "backbone": str(encoder),
        "layers": 2,
        "hidden": 8,
        "targets": ("response", "prompt"),
        "knows_refusals": True,
        "refusal_threshold": 0.9,
    }
    place.mkdir()
    model = GuardModel(GuardCard(**(given | more)), load_encoder(encoder, device="cpu"))
    model.trunk.requires_grad_(False)
    model.save(place)
    return place


def texts(count: int, name: str) -> list[tuple[str, str]]:
    """Prompts and responses, two of a prompt."""
    rng = random.Random(name)
    prompts = [f"{name} {i} {' '.join(rng.sample(WORDS, 4))}" for i in range(count // 2)]
    return [(prompt, " ".join(rng.sample(WORDS, 6))) for prompt in prompts for _ in range(2)]


def labelled(guard: Path, count: int = 700) -> list[Exchange]:
    """Exchanges whose labels were drawn from a line through the guard's own log-odds."""
    rng = np.random.default_rng(0)
    pairs = texts(count, "new")
    logits = load_guard(guard, "cpu").read([TextPair(*pair) for pair in pairs]).logits
    x = logits.severity.numpy()
    chance = 1 / (1 + np.exp(-(SLOPE * (x - x.mean(0)) / x.std(0) + SHIFT)))
    rows = []
    for i, (prompt, response) in enumerate(pairs):
        severity = 0
        while severity < 3 and rng.random() < chance[i, severity]:
            severity += 1
        rows.append(
            Exchange(
                id=f"n{i}",
                prompt=prompt,
                response=response,
                is_safe=severity == 0,
                severity=severity,
                categories=frozenset([DRUGS] if severity else []),
                refusal=REFUSALS[int(rng.integers(3))],
                prompt_is_harmful=bool(rng.random() < 0.5),
                licence="CC0-1.0",
            )
        )
    return rows


def calibrate(place: Path, guard: Path, records: Sequence[Any], **more: Any) -> Outcome:
    write_records(place / "labelled.jsonl", records)
    config = CalibrateConfig(guard=guard, data=(place / "labelled.jsonl",), **({"draws": 100} | more))
    return produce(place / "calibrated", CALIBRATE, config)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> tuple[Path, Path, Outcome]:
    """The guard, the calibrated one, and the run."""
    place = tmp_path_factory.mktemp("calibrated")
    guard = make_guard(place / "guard", tiny_encoder)
    return guard, place / "calibrated", calibrate(place, guard, labelled(guard), review=(0.4, 0.6))


def test_the_planted_line_is_found(made: tuple[Path, Path, Outcome]) -> None:
    old, new, _ = made
    pairs = [TextPair(*pair) for pair in texts(700, "new")]
    x = load_guard(old, "cpu").read(pairs).logits.severity[:, 0]
    expected = SLOPE * (x - x.mean()) / x.std() + SHIFT
    found = torch.logit(load_guard(new, "cpu").read(pairs).at_least[:, 0])
    assert torch.equal(found.argsort(), x.argsort())
    assert (found - expected).abs().mean() < 0.4
    heads = json.loads((new / "calibration_measured.json").read_text())["heads"]
    for head in (heads["unsafe responses"], heads["severity 2 or more, if unsafe"]):
        assert head["after"]["corrected"] < 0.7 * head["before"]["corrected"]
        assert head["before"]["squared"]["low"] > head["after"]["squared"]["value"]


def test_the_new_folder_is_a_guard_with_policies(made: tuple[Path, Path, Outcome]) -> None:
    old, new, outcome = made
    assert sorted(p.name for p in new.iterdir()) == [
        "calibration.json",
        "calibration_measured.json",
        "card.md",
        "config.yaml",
        "manifest.json",
        "model.json",
        "policies",
        "weights.safetensors",
    ]
    assert hash_file(new / "weights.safetensors") == hash_file(old / "weights.safetensors")
    guard = load_guard(new, "cpu")
    assert list(guard.policies) == list(load_policies(new)) == ["moderate", "loose", "strict"]
    # refusals were calibrated, so the threshold on what the head said before is gone
    assert (load_guard(old, "cpu").card.refusal_threshold, guard.card.refusal_threshold) == (0.9, 0.5)
    verdict = guard([Exchange(id="a", prompt="hi", response="yes")])[0]
    assert (verdict.calibrated, verdict.policy) == (True, "moderate")
    assert outcome.manifest.licences == ["CC0-1.0"]
    assert outcome.manifest.notes["texts"] == 700 + 350
    assert outcome.manifest.notes["prompts"] == 350
    assert set(outcome.manifest.outputs) >= {"policies/strict.yaml", "weights.safetensors"}


def test_the_card_tells_what_the_numbers_rest_on(made: tuple[Path, Path, Outcome]) -> None:
    _, new, _ = made
    card = (new / "card.md").read_text()
    assert "fitted to 1050 labelled texts (350 prompts by themselves, 700 responses) to 350 prompts" in card
    assert "not compared with the guard's training files that are not at hand: all of them" in card
    assert "| strict | responses |" in card
    assert card.count("\n| unsafe responses |") == 1
    assert "to a person" in card
    assert "| matched |" in card
    lines = card.splitlines()
    columns = {line.count("|") for line in lines if line.startswith("| unsafe") or line.startswith("| prob")}
    assert columns == {10, 6}


def test_the_measured_rates_are_near_the_aims(made: tuple[Path, Path, Outcome]) -> None:
    _, new, _ = made
    measured = json.loads((new / "calibration_measured.json").read_text())["policies"]
    rates = [measured[name]["response"]["false_positive_rate"] for name in ("strict", "moderate", "loose")]
    for rate, aim in zip(rates, (0.15, 0.05, 0.01), strict=True):
        assert abs(rate["value"] - aim) < 0.08
        assert rate["n"] == rates[0]["n"]
    assert [r["value"] for r in rates] == sorted((r["value"] for r in rates), reverse=True)


def test_calibrating_again_starts_from_the_weights(made: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    _, new, _ = made
    rows = [json.loads(line) for line in (new.parent / "labelled.jsonl").read_text().splitlines()]
    calibrate(tmp_path, new, [Exchange.model_validate(row) for row in rows])
    again = tmp_path / "calibrated"
    assert (again / "calibration.json").read_text() == (new / "calibration.json").read_text()
    assert (again / "card.md").read_text().count("## Calibration") == 1
    assert "to a person" not in (again / "card.md").read_text()


def trained(place: Path, encoder: Path) -> Path:
    rows = [
        Exchange(id=f"t{i}", prompt=prompt, response=response, is_safe=i % 2 == 0)
        for i, (prompt, response) in enumerate(texts(20, "old"))
    ]
    write_records(place / "train.jsonl", rows)
    optim = GuardOptim(epochs=1, device="cpu")
    settings = {"backbone": str(encoder), "layers": 2, "hidden": 4, "optim": optim}
    produce(place / "guard", TRAIN_GUARD, GuardConfig(exchanges=(place / "train.jsonl",), **settings))
    return place / "guard"


def test_prompts_that_the_guard_was_trained_on_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    guard = trained(tmp_path, tiny_encoder)
    rows = labelled(guard, 120)
    seen = texts(20, "old")[3][0].upper() + " ?"
    known = Exchange(id="known", prompt=seen, response="yes", is_safe=True)
    with pytest.raises(DataError) as caught:
        calibrate(tmp_path, guard, [*rows, known])
    assert str(caught.value) == (
        "data: 1 records have a prompt that the guard was trained on, first known;"
        " split by prompt with `equipoise data split`"
    )
    assert not (tmp_path / "calibrated").exists()
    notes = calibrate(tmp_path, guard, rows, least=5, folds=2).manifest.notes
    assert notes["training_files_not_checked"] == []
    assert notes["calibrated"] == ["response"]  # it was not trained on prompts by themselves
    card = (tmp_path / "calibrated" / "card.md").read_text()
    assert "none is to a prompt that the guard was trained on" in card
    assert "for want of labelled rows: prompts" not in card
    assert card.startswith("# Guard on ")
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError, match="1 records have a prompt that the guard was trained on"):
        calibrate(tmp_path / "again", tmp_path / "calibrated", [*rows, known])


def test_prompts_of_a_guard_that_this_one_went_on_from_are_refused_too(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    first = trained(tmp_path, tiny_encoder)
    rows = [
        Exchange(id=f"m{i}", prompt=prompt, response=response, is_safe=i % 2 == 0)
        for i, (prompt, response) in enumerate(texts(20, "more"))
    ]
    write_records(tmp_path / "more.jsonl", rows)
    settings = {
        "backbone": str(tiny_encoder),
        "layers": 2,
        "hidden": 4,
        "optim": {"epochs": 1, "device": "cpu"},
    }
    config = GuardConfig(exchanges=(tmp_path / "more.jsonl",), start=first, **settings)
    produce(tmp_path / "second", TRAIN_GUARD, config)
    fresh = labelled(first, 120)
    for name in ("old", "more"):
        known = Exchange(id=name, prompt=texts(20, name)[3][0], response="yes", is_safe=True)
        with pytest.raises(DataError, match=f"trained on, first {name};"):
            calibrate(tmp_path, tmp_path / "second", [*fresh, known])
    (tmp_path / "train.jsonl").write_text("changed")
    notes = calibrate(tmp_path, tmp_path / "second", fresh, least=5, folds=2).manifest.notes
    assert notes["training_files_not_checked"] == ["train.jsonl"]


def test_training_files_that_are_gone_are_named(tmp_path: Path, tiny_encoder: Path) -> None:
    guard = trained(tmp_path, tiny_encoder)
    rows = labelled(guard, 120)
    (tmp_path / "train.jsonl").write_text("changed")
    notes = calibrate(tmp_path, guard, rows, least=5, folds=2).manifest.notes
    assert notes["training_files_not_checked"] == ["train.jsonl"]
    assert read_manifest(tmp_path / "calibrated" / "manifest.json").notes == notes


def test_a_recipe_calibrates_what_it_has_trained(tmp_path: Path, tiny_encoder: Path) -> None:
    for name, count in (("train", 20), ("held-out", 120)):
        rows = [
            Exchange(id=f"{name}{i}", prompt=prompt, response=response, is_safe=i % 3 == 0)
            for i, (prompt, response) in enumerate(texts(count, name))
        ]
        write_records(tmp_path / f"{name}.jsonl", rows)
    small = {"backbone": str(tiny_encoder), "layers": 2, "hidden": 4, "optim": {"epochs": 1, "device": "cpu"}}
    few = {"least": 5, "folds": 2, "draws": 100}
    recipe = {
        "name": "calibrated",
        "steps": {
            "guard": {"run": "train.guard", "with": {"exchanges": [str(tmp_path / "train.jsonl")], **small}},
            "calibrated": {
                "run": "guard.calibrate",
                "with": {"guard": "${steps.guard}", "data": [str(tmp_path / "held-out.jsonl")], **few},
            },
        },
        "publish": {"strict.yaml": "${steps.calibrated}/policies/strict.yaml"},
    }
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), "utf-8")
    done = run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert [step.name for step in done] == ["guard", "calibrated"]
    assert done[1].manifest.notes["training_files_not_checked"] == []
    assert load_policy(tmp_path / "run" / "strict.yaml", PKU).name == "strict"


def test_records_of_every_kind_are_read(tmp_path: Path, tiny_encoder: Path) -> None:
    guard = make_guard(tmp_path / "guard", tiny_encoder, knows_refusals=False)
    rows = labelled(guard, 120)
    both = [
        Pair(id=f"p{i}", prompt=row.prompt, answers=(_answer(row), _answer(rows[i + 1])))
        for i, row in enumerate(rows[:-1:2])
    ]
    alone = [
        Prompt(id=f"a{i}", prompt=f"{row.prompt} {i}", is_harmful=i % 3 > 0) for i, row in enumerate(rows)
    ]
    write_records(tmp_path / "pairs.jsonl", both)
    write_records(tmp_path / "prompts.jsonl", alone)
    data = (tmp_path / "pairs.jsonl", tmp_path / "prompts.jsonl")
    settings = CalibrateConfig(guard=guard, data=data, least=5, folds=2, draws=100)
    notes = produce(tmp_path / "new", CALIBRATE, settings).manifest.notes
    assert notes["texts"] == 120 + 120
    assert sorted(notes["calibrated"]) == ["prompt", "response"]  # type: ignore[type-var, arg-type]
    assert "refusal" not in notes["ece"]  # type: ignore[operator]


def _answer(row: Exchange) -> Answer:
    return Answer(**row.model_dump(include=set(Answer.model_fields)))


def test_labels_become_what_is_known() -> None:
    def row(name: str, **labels: Any) -> Exchange:
        return Exchange(id=name, prompt=name[0], response=name, **labels)

    exchanges = [
        row("a1", is_safe=True, severity=0, categories=frozenset()),
        row("a2", is_safe=False, severity=2, categories=frozenset([DRUGS])),
        row("b1", is_safe=False),
        row(
            "b2",
            is_safe=False,
            severity=3,
            categories=frozenset([DRUGS]),
            rated=frozenset([DRUGS, "Privacy Violation"]),
        ),
        row("c1", refusal="partial"),
        row("c2"),
    ]
    votes = [
        Judgement(id=f"v{i}", subject="c2", annotator=str(i), labels=Labels(severity=level))
        for i, level in enumerate((1, 1, 0))
    ]
    prompts = [Prompt(id="d", prompt="C", is_harmful=True)]
    truth = truth_of(guard_rows(exchanges, PKU, prompts, votes))
    assert truth.is_prompt.tolist() == [False] * 6 + [True]
    assert truth.above.tolist() == [
        [0, -1, -1],
        [1, 1, 0],
        [1, -1, -1],
        [1, 1, 1],
        [-1, -1, -1],
        [1, 0, -1],
        [1, -1, -1],
    ]
    assert truth.prompt.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert truth.refusal.tolist() == [-1, -1, -1, -1, REFUSALS.index("partial"), -1, -1]
    drugs, privacy, fraud = (PKU.index(name) for name in (DRUGS, PRIVACY, "White-Collar Crime"))
    assert truth.categories[:, drugs].tolist() == [0, 1, -1, 1, -1, -1, -1]
    assert truth.categories[:, privacy].tolist() == [0, 0, -1, 0, -1, -1, -1]
    assert truth.categories[:, fraud].tolist() == [0, 0, -1, -1, -1, -1, -1]


def test_a_text_is_measured_by_a_fit_that_has_not_seen_its_prompt() -> None:
    n = 300
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    logits = GuardLogits(torch.randn(n, 3), torch.randn(n, len(PKU.names)), torch.randn(n, 3))
    card = GuardCard(
        taxonomy=PKU, backbone="none", layers=1, hidden=1, targets=("response",), knows_refusals=False
    )
    targets: list[Target] = ["response"] * n
    reading = Reading(card, logits, [False] * n, targets=targets)
    above = np.stack([rng.integers(0, 2, n), np.full(n, -1), np.full(n, -1)], 1)
    none = np.full(n, -1)
    truth = Truth(none > 0, above, np.full((n, len(PKU.names)), -1), none, np.arange(n) // 3)
    config = CalibrateConfig(guard=Path("none"), data=(Path("none"),), folds=4)
    once, said = cross_fit(config, reading, truth)
    assert {name: len(part.flagged) for name, part in said.items()} == dict.fromkeys(
        ("moderate", "loose", "strict"), n
    )
    flipped = above.copy()
    flipped[30:33, 0] = 1 - flipped[30:33, 0]
    again, _ = cross_fit(config, reading, truth._replace(above=flipped))
    changed = again.at_least[:, 0] != once.at_least[:, 0]
    assert not changed[30:33].any()
    assert 0.6 * n < changed.sum() < 0.9 * n  # the other three folds of four
    assert not math.isclose(float(once.at_least[0, 0]), float(torch.sigmoid(logits.severity[0, 0])))


def test_rows_that_do_for_all_but_not_for_a_fold_are_said_to(tmp_path: Path, tiny_encoder: Path) -> None:
    guard = make_guard(tmp_path / "guard", tiny_encoder, targets=("response",))
    rows = [
        Exchange(id=f"r{i}", prompt=f"hi {i}", response=f"{WORDS[i % 9]} {i}", is_safe=i < 40)
        for i in range(80)
    ]
    with pytest.raises(DataError, match=r"^cross-fitting, without fold 1 of 2: calibration: too few"):
        calibrate(tmp_path, guard, rows, least=30, folds=2)


def test_no_text_that_the_guard_judges_is_said(tmp_path: Path, tiny_encoder: Path) -> None:
    guard = make_guard(tmp_path / "guard", tiny_encoder, targets=("response",))
    prompts = [Prompt(id=f"a{i}", prompt=f"hi {i}", is_harmful=i % 2 == 0) for i in range(10)]
    with pytest.raises(DataError, match="data: no labelled response, which this guard judges"):
        calibrate(tmp_path, guard, prompts)
