"""Top layers of a language model on what those below made once: the numbers of training without that."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from equipoise.config import parse_config
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, ModelError
from equipoise.lineage import Run, produce
from equipoise.models.backbone import load_causal
from equipoise.models.layout import Row, response_hidden, response_logps
from equipoise.models.scorer import RowBatch, ScorerCard, ScorerModel, load_scorer_model
from equipoise.objectives.preference import PairLogps
from equipoise.records import Answer, Pair
from equipoise.training.memory import footprint
from equipoise.training.messages import (
    MessageLosses,
    kept_tokens,
    message_scores,
    message_task,
)
from equipoise.training.pair_order import label_answers, order_pairs
from equipoise.training.paired import PreferenceLosses, pair_task
from equipoise.training.policy import LoraSettings, prepare
from equipoise.training.policy_rows import make_row
from equipoise.training.preference import (
    TRAIN_PREFERENCE,
    PreferenceConfig,
    objective_of,
    train_preference,
)
from equipoise.training.reference import reference_logps
from equipoise.training.scorer import TRAIN_SCORER, ScorerBatch, ScorerConfig, ScorerLosses
from equipoise.training.scorer_labels import pair_labels
from equipoise.training.trainer import Task, fit
from equipoise.training.unpaired import UnpairedLosses, borrowed_rows, unpaired_task

WORDS = ("flour", "water", "salt", "yeast", "dough", "oven", "bread", "mountain", "coat", "tide")
PAIRS = [
    Pair(
        id=word,
        prompt=f"what of {word}" + " and so on" * (i % 3),
        answers=(
            Answer(response=f"mix {word} and wait", is_safe=True),
            Answer(response=f"no {word} " * (1 + i % 4), is_safe=i % 2 > 0),
        ),
        better=i % 2,
        safer=0 if i % 2 == 0 else "tie",
        licence="CC0-1.0",
    )
    for i, word in enumerate(WORDS)
]
OPTIM = {
    "lr": 1e-3,
    "epochs": 1,
    "batch_size": 2,
    "schedule": "constant",
    "device": "cpu",
    "tokens_per_micro_batch": 90,
}
"""Five steps, most of more than one micro-batch."""


def config_of(place: Path, model: Path, **settings: Any) -> PreferenceConfig:
    place.mkdir(exist_ok=True)
    write_records(place / "pairs.jsonl", PAIRS)
    given = {"pairs": [str(place / "pairs.jsonl")], "model": str(model), "tune": "top", "top_layers": 1}
    optim = OPTIM | settings.pop("optim", {})
    return parse_config(PreferenceConfig, {**given, **settings, "optim": optim}, "test")


def scorer_config(place: Path, model: Path, **settings: Any) -> ScorerConfig:
    place.mkdir(exist_ok=True)
    write_records(place / "pairs.jsonl", PAIRS)
    given = {"pairs": [str(place / "pairs.jsonl")], "backbone": str(model), "trunk": "last", "tune": "top"}
    own = {"top_layers": 1, "hidden": 0, "dropout": 0.0, "optim": OPTIM | {"log_every": 1}}
    return parse_config(ScorerConfig, {**given, **own, **settings}, "test")


def logged(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def plain_task(config: PreferenceConfig, policy: Any, tokenizer: Any, place: Path) -> Task:
    """What `train preference` trains on, put together here; the policy runs all of its layers."""
    objective, seed = objective_of(config), config.optim.seed

    def reference(rows: list[Row], name: str) -> Any:
        return reference_logps(policy, rows, place / name, tokens_per_batch=200)

    if config.objective == "kto":
        labelled, borrowed = borrowed_rows(
            label_answers(tokenizer, PAIRS, config, seed)[0], config.max_tokens
        )
        known = reference([one.row for one in labelled], "reference")
        losses = UnpairedLosses(policy, objective, 0.1)
        return unpaired_task(losses, labelled, known, borrowed, reference(borrowed, "borrowed"))
    ordered, _ = order_pairs(tokenizer, PAIRS, config, seed)
    rows = [one.row for one in ordered]
    if config.messages is None:
        free = config.objective == "simpo"
        known = (torch.zeros(2),) * len(rows) if free else reference(rows, "reference")
        return pair_task(PreferenceLosses(policy, objective, 0.1, has_reference=not free), ordered, known)
    scores = message_scores(
        config.messages, rows, place / "scores", tokenizer=tokenizer, tokens_per_batch=200, device="cpu"
    )
    kept = kept_tokens(scores, rows, config.messages, (True, False))
    tokens = reference_logps(policy, rows, place / "reference", tokens_per_batch=200, each_token=True)
    return message_task(MessageLosses(policy, objective, 0.1), ordered, tokens, kept)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    place = tmp_path_factory.mktemp("scorer")
    produce(place / "out", TRAIN_SCORER, scorer_config(place, tiny_llama))
    return place / "out"


@torch.no_grad()
def logps(model: Any, tokenizer: Any) -> Tensor:
    rows = [make_row(tokenizer, "how do i bake bread", ["mix flour and water", "wait"])]
    return response_logps(model.eval(), rows).sums


@pytest.mark.parametrize("objective", ["dpo", "simpo", "kto", "adpo"])
def test_the_losses_and_weights_are_those_of_training_on_the_whole_model(
    objective: str, tmp_path: Path, tiny_llama: Path, scorer: Path
) -> None:
    more = {"messages": {"scorer": str(scorer)}} if objective == "adpo" else {}
    config = config_of(tmp_path, tiny_llama, objective=objective, **more)
    produce(tmp_path / "out", TRAIN_PREFERENCE, config)

    backbone = load_causal(tiny_llama, device="cpu")
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    policy: Any = prepare(backbone, "top", LoraSettings(), 0, top_layers=1)
    (tmp_path / "plain" / "scratch").mkdir(parents=True)
    task = plain_task(config, policy, backbone.tokenizer, tmp_path / "plain" / "scratch")
    fit(task, config.optim, Run(tmp_path / "plain", tmp_path / "plain" / "scratch"), label="plain")
    found, expected = logged(tmp_path / "out"), logged(tmp_path / "plain")
    assert len(found) == 5
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)

    loaded = load_causal(tmp_path / "out", device="cpu")
    saved: dict[str, Tensor] = dict(loaded.model.named_parameters())
    assert saved.keys() == before.keys()
    moved = {name for name in saved if not torch.equal(saved[name], before[name])}
    assert moved == {name for name in saved if ".layers.1." in name}
    for name in moved:
        torch.testing.assert_close(saved[name], policy.get_parameter(name), rtol=0, atol=2e-4, msg=name)
    torch.testing.assert_close(
        logps(loaded.model, loaded.tokenizer), logps(policy, backbone.tokenizer), rtol=1e-5, atol=1e-3
    )
    base = logps(load_causal(tiny_llama, device="cpu").model, backbone.tokenizer)
    assert (logps(policy, backbone.tokenizer) - base).abs().max() > 1e-2
    assert not (tmp_path / "out" / "scratch").exists()


class KilledError(Exception):
    """Stands for kill -9."""


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, tiny_llama: Path) -> None:
    optim = {"epochs": 2, "checkpoint_every": 3}
    for name in ("whole", "killed"):
        config = config_of(tmp_path / name, tiny_llama, objective="dpo", optim=optim, keep_reference=False)
        if name == "killed":
            left = iter(range(9))

            def build(settings: PreferenceConfig, run: Run, left: Any = left) -> None:
                objective = objective_of(settings)

                def loss(pairs: PairLogps) -> Tensor:
                    if next(left, None) is None:
                        raise KilledError
                    return objective(pairs)

                train_preference(settings, run, loss)

            with pytest.raises(KilledError):
                produce(tmp_path / name / "out", TRAIN_PREFERENCE._replace(build=build), config)
            kept = {path.name for path in (tmp_path / name / "out" / "scratch").iterdir()}
            assert "checkpoints" in kept
            assert [len(name) for name in kept - {"checkpoints"}] == [
                len(".safetensors") + 32
            ]  # nothing half-written
        done = produce(tmp_path / name / "out", TRAIN_PREFERENCE, config)
        assert done.manifest.attempts == (2 if name == "killed" else 1)
    one, two = (tmp_path / name / "out" for name in ("whole", "killed"))
    assert logged(one) == logged(two)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_recomputed_layers_and_bf16_fit_too(tmp_path: Path, tiny_llama: Path) -> None:
    logs = {}
    for name, more in {"": {}, "again": {"gradient_checkpointing": True}, "bits": {"bf16": True}}.items():
        place = tmp_path / f"run-{name}"
        produce(place / "out", TRAIN_PREFERENCE, config_of(place, tiny_llama, objective="dpo", optim=more))
        logs[name] = logged(place / "out")
    assert logs["again"] == logs[""]
    assert logs["bits"] != logs[""]
    assert logs["bits"] == pytest.approx(logs[""], abs=0.02)


def test_a_scorer_learns_as_it_does_on_the_whole_model_and_comes_back(
    tmp_path: Path, tiny_llama: Path
) -> None:
    config = scorer_config(tmp_path, tiny_llama)
    produce(tmp_path / "out", TRAIN_SCORER, config)

    labels, trained, _ = pair_labels(PAIRS)
    card = ScorerCard(
        backbone=str(tiny_llama), trunk="last", layers=config.layers, hidden=0, top_layers=1, trained=trained
    )
    torch.manual_seed(config.optim.seed)
    model = ScorerModel(card, load_causal(tiny_llama, dtype="float32", device="cpu"))
    before = {name: p.detach().clone() for name, p in model.trunk.named_parameters()}
    model.trunk.requires_grad_(False)
    for name in model.top_names():
        model.trunk.get_parameter(name).requires_grad_(True)
    rows = [make_row(model.tokenizer, p.prompt, [a.response for a in p.answers]) for p in PAIRS]
    task = Task(
        ScorerLosses(model, config),
        [row.length for row in rows],
        [1] * len(rows),
        lambda chosen: ScorerBatch(
            RowBatch(tuple(rows[i] for i in chosen)), labels.pick(torch.tensor(chosen))
        ),
    )
    (tmp_path / "plain" / "scratch").mkdir(parents=True)
    fit(task, config.optim, Run(tmp_path / "plain", tmp_path / "plain" / "scratch"), label="plain")
    assert logged(tmp_path / "out") == pytest.approx(logged(tmp_path / "plain"), rel=1e-6, abs=1e-6)

    loaded = load_scorer_model(tmp_path / "out", "cpu")
    assert (loaded.card.top_layers, loaded.card.own_trunk) == (1, False)
    moved = {name for name, p in loaded.trunk.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(model.top_names())
    with torch.no_grad():
        for found, expected in zip(
            loaded(RowBatch(tuple(rows))), model.eval()(RowBatch(tuple(rows))), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        plain = load_causal(tiny_llama, device="cpu").model
        own, other = response_hidden(loaded.trunk, rows), response_hidden(plain, rows)
    assert (own - other).abs().max() > 1e-3


def test_the_estimate_is_what_the_top_layers_hold(tiny_llama: Path) -> None:
    policy = prepare(load_causal(tiny_llama, device="cpu"), "top", LoraSettings(), 0, top_layers=1)
    found = footprint(tiny_llama, "top", LoraSettings(), "cpu", top_layers=1)
    assert found is not None
    assert found.weights == sum(p.numel() * 4 for p in policy.parameters())
    assert found.learning == 3 * sum(p.numel() * 4 for p in policy.parameters() if p.requires_grad)
    assert 0 < found.learning < 3 * found.weights


@pytest.mark.parametrize("kind", ["policy", "scorer"])
def test_wrong_layers_are_one_clear_line(kind: str, tmp_path: Path, tiny_llama: Path) -> None:
    make: Any = config_of if kind == "policy" else scorer_config
    with pytest.raises(ConfigError, match=r"test: top_layers: .*greater than or equal to 1") as caught:
        make(tmp_path, tiny_llama, top_layers=0)
    assert "\n" not in str(caught.value)
    step = TRAIN_PREFERENCE if kind == "policy" else TRAIN_SCORER
    says = "^top_layers: got 2 of a model with 2 layers; expected fewer, or tune: full$"
    with pytest.raises(ModelError, match=says):
        produce(tmp_path / "out", step, make(tmp_path, tiny_llama, top_layers=2))
    assert not (tmp_path / "out").exists()
