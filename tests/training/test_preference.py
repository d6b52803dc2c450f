"""Preference training: who is chosen, the loss at the start in closed form, and a kill that costs nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from equipoise.config import parse_config
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import Outcome, Run, Step, produce
from equipoise.models.backbone import load_causal
from equipoise.objectives.preference import PairLogps, dpo
from equipoise.records import Answer, Choice, Pair
from equipoise.training.preference import (
    TRAIN_PREFERENCE,
    PreferenceConfig,
    PreferenceOptim,
    train_preference,
)

GOOD, OTHER = "mix flour and water", "wait until the dough has doubled"
Loss = Callable[[PairLogps], Tensor]


def pair(
    name: str, better: Choice | None = 0, safe: tuple[bool | None, bool | None] = (True, True), **more: Any
) -> Pair:
    answers = tuple(Answer(response=text, is_safe=s) for text, s in zip((GOOD, OTHER), safe, strict=True))
    given = {"id": name, "prompt": f"how do i bake bread {name}", "answers": answers, "better": better}
    return Pair(**(given | more), licence="CC0-1.0")


SAFE_PAIRS = [pair("a"), pair("b", 1), pair("c"), pair("d", 1)]
MIXED_PAIRS = [*SAFE_PAIRS, pair("e", 0, (False, True)), pair("f", 0, (True, False))]


def config_for(place: Path, pairs: list[Pair], model: Path, **settings: Any) -> PreferenceConfig:
    place.mkdir(exist_ok=True)
    write_records(place / "pairs.jsonl", pairs)
    optim = PreferenceOptim(**({"device": "cpu", "batch_size": 8} | settings.pop("optim", {})))
    return PreferenceConfig(pairs=(place / "pairs.jsonl",), model=str(model), optim=optim, **settings)


def train(place: Path, config: PreferenceConfig, loss: Loss | None = None) -> Outcome:
    """Train into `place`/out; a loss of one's own takes the place of the configured one."""

    def build(settings: PreferenceConfig, run: Run) -> None:
        train_preference(settings, run, loss)

    step = TRAIN_PREFERENCE._replace(build=build) if loss else TRAIN_PREFERENCE
    assert isinstance(step, Step)
    return produce(place / "out", step, config)


def log_of(place: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (place / "out" / "log.jsonl").read_text().splitlines()]


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("objective", "params", "pairs", "expected"),
    [
        ("dpo", {}, MIXED_PAIRS, math.log(2)),
        ("safe_dpo", {}, SAFE_PAIRS, math.log(2)),
        ("safe_dpo", {"delta": 3.0}, MIXED_PAIRS[4:], minus_log_sigmoid(-3.0)),
        ("safe_dpo", {"delta": 3.0}, MIXED_PAIRS, (4 * math.log(2) + 2 * minus_log_sigmoid(-3.0)) / 6),
        ("ipo", {}, SAFE_PAIRS, 5.0**2),
        ("bfpo", {}, MIXED_PAIRS, (4 * 50.0**2 + 2 * 100.0**2) / 6),
    ],
)
def test_the_first_loss_has_a_closed_form(
    *,
    tmp_path: Path,
    tiny_llama: Path,
    objective: str,
    params: dict[str, float],
    pairs: list[Pair],
    expected: float,
) -> None:
    config = config_for(tmp_path, pairs, tiny_llama, objective=objective, objective_params=params)
    train(tmp_path, config)
    first = log_of(tmp_path)[0]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert first["reward_margin"] == pytest.approx(0.0, abs=1e-4)


@torch.no_grad()
def plain_logps(folder: Path, prompt: str, response: str) -> tuple[float, int]:
    """Log-probability of a response and its number of tokens, from the library alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_causal(folder).tokenizer
    start = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    before = tokenizer(start, add_special_tokens=False)["input_ids"]
    answer = tokenizer(response + "<|im_end|>", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + answer])
    logps = torch.log_softmax(model(ids).logits[0, :-1], dim=-1).gather(1, ids[0, 1:, None])
    return logps[len(before) - 1 :].sum().item(), len(answer)


def test_in_sixteen_bits_too_it_begins_with_a_margin_of_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    optim = {"bf16": True, "tokens_per_micro_batch": 4096}
    settings: dict[str, Any] = {"objective": "dpo", "objective_params": {"beta": 1}, "optim": optim}
    train(tmp_path, config_for(tmp_path, [pair("a")], tiny_llama, **settings))
    assert abs(log_of(tmp_path)[0]["reward_margin"]) < 1e-5


@pytest.mark.parametrize("objective", ["simpo", "orpo"])
def test_without_a_reference_the_first_loss_is_that_of_the_probabilities_per_token(
    tmp_path: Path, tiny_llama: Path, objective: str
) -> None:
    good, bad = (plain_logps(tiny_llama, "how do i bake bread a", text) for text in (GOOD, OTHER))
    w, l = good[0] / good[1], bad[0] / bad[1]  # noqa: E741
    odds = w - l - (math.log1p(-math.exp(w)) - math.log1p(-math.exp(l)))
    expected = {
        "simpo": minus_log_sigmoid(2.0 * (w - l) - 1.0),
        "orpo": -w + 0.1 * minus_log_sigmoid(odds),
    }
    train(tmp_path, config_for(tmp_path, [pair("a")], tiny_llama, objective=objective))
    (first,) = log_of(tmp_path)
    assert first["loss"] == pytest.approx(expected[objective], rel=1e-5)
    assert first["accuracy"] == float(w > l)


def test_weights_and_severity_reach_the_loss(tmp_path: Path, tiny_llama: Path) -> None:
    grave = pair("x", 0, (True, False)).model_copy(
        update={"answers": (Answer(response=GOOD, is_safe=True), Answer(response=OTHER, severity=2))}
    )
    settings = {"objective": "dpo", "objective_params": {"severity_margin": 1.5}, "severity_weight": 0.5}
    train(tmp_path, config_for(tmp_path, [grave, pair("a")], tiny_llama, **settings))
    expected = (2 * minus_log_sigmoid(-3.0) + math.log(2)) / 3  # weights 2 and 1, of mean 1
    assert log_of(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_policy_aligned_before_is_the_margin_reward_of_modpo(tmp_path: Path, tiny_llama: Path) -> None:
    optim = {"lr": 1e-2, "epochs": 3, "schedule": "constant"}
    first, second = tmp_path / "first", tmp_path / "second"
    train(first, config_for(first, [pair("a"), pair("b", 1)], tiny_llama, tune="full", optim=optim))
    margin = {"policy": str(first / "out"), "policy_beta": 0.5}
    params = {"beta": 0.5, "weight": 0.4}
    settings: dict[str, Any] = {"objective": "modpo", "margin": margin, "objective_params": params}
    train(second, config_for(second, [pair("a")], tiny_llama, **settings))

    def reward(text: str) -> float:
        prompt = "how do i bake bread a"
        return 0.5 * (plain_logps(first / "out", prompt, text)[0] - plain_logps(tiny_llama, prompt, text)[0])

    m = reward(GOOD) - reward(OTHER)
    assert m > 0.1
    expected = minus_log_sigmoid(-(1 - 0.4) * m / 0.4)
    assert log_of(second)[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("objective", "margin", "got"), [("modpo", None, "none"), ("dpo", "m", "one")])
def test_a_margin_goes_with_the_objectives_that_use_it(objective: str, margin: str | None, got: str) -> None:
    given = {"pairs": ["p.jsonl"], "objective": objective, "margin": margin and {"policy": margin}}
    says = f"run.yaml: margin: got {got} with objective {objective}; expected one with modpo or soft_dpo"
    with pytest.raises(ConfigError, match=says):
        parse_config(PreferenceConfig, given, "run.yaml")


@pytest.mark.parametrize("setting", ["severity_weight", "severity_margin"])
def test_a_severity_setting_without_severities_is_an_error(
    tmp_path: Path, tiny_llama: Path, setting: str
) -> None:
    one = pair("x", 0, (None, None))
    more = {"severity_weight": 1.0} if setting == "severity_weight" else {"objective_params": {setting: 1.0}}
    config = config_for(tmp_path, [one], tiny_llama, objective="dpo", **more)
    with pytest.raises(DataError, match=rf"{setting}: no pair has the severity of both answers"):
        train(tmp_path, config)


def test_a_loss_of_ones_own_sees_every_pair_in_its_place(tmp_path: Path, tiny_llama: Path) -> None:
    seen: list[PairLogps] = []

    def mine(pairs: PairLogps) -> Tensor:
        seen.append(PairLogps(*(column.detach() for column in pairs)))
        return -(pairs.chosen - pairs.rejected)

    config = config_for(tmp_path, [pair("f", 0, (True, False)), pair("e", 0, (False, True))], tiny_llama)
    train(tmp_path, config, mine)
    found = {}
    for k in range(2):
        row = [column[k].item() for batch in seen for column in batch]
        found[round(row[0], 2)] = row
    f, e = (f"how do i bake bread {name}" for name in "fe")
    for prompt, chosen, rejected in ((f, GOOD, OTHER), (e, OTHER, GOOD)):
        good, good_len = plain_logps(tiny_llama, prompt, chosen)
        bad, bad_len = plain_logps(tiny_llama, prompt, rejected)
        expected = [good, bad, good, bad, good_len, bad_len, 0.0, 1.0, 0.0, 1.0, 0.0]
        match = min(found.values(), key=lambda row: abs(row[0] - expected[0]))
        assert match == pytest.approx(expected, abs=1e-3)
    assert log_of(tmp_path)[0]["loss"] == pytest.approx(
        -sum((b.chosen - b.rejected).sum().item() for b in seen) / 2, rel=1e-5
    )


def test_the_logged_margin_is_scaled_by_the_objectives_own_beta(tmp_path: Path, tiny_llama: Path) -> None:
    logs = []
    for name, params in (("own", {}), ("given", {"beta": 2.0})):
        (tmp_path / name).mkdir()
        train(
            tmp_path / name,
            config_for(tmp_path / name, MIXED_PAIRS, tiny_llama, objective="simpo", objective_params=params),
        )
        logs.append([entry["reward_margin"] for entry in log_of(tmp_path / name)])
    assert logs[0] == logs[1] != [0.0] * len(logs[0])


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_training_widens_the_margin_and_the_folder_holds_it(
    tmp_path: Path, tiny_llama: Path, tune: str
) -> None:
    optim = {"lr": 5e-3, "epochs": 6, "schedule": "constant"}
    train(tmp_path, config_for(tmp_path, MIXED_PAIRS, tiny_llama, tune=tune, optim=optim))
    log = log_of(tmp_path)
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["reward_margin"] > 0.1
    assert log[-1]["accuracy"] > 0.8
    assert (tmp_path / "out" / "adapter_model.safetensors").exists() == (tune == "lora")
    ids = torch.tensor([[5, 9, 30, 31]])
    with torch.no_grad():
        tuned = load_causal(tmp_path / "out", device="cpu").model(ids).logits
        base = load_causal(tiny_llama, device="cpu").model(ids).logits
    assert (tuned - base).abs().max() > 1e-2
    assert "aligned by safe_dpo on 6 pairs" in (tmp_path / "out" / "card.md").read_text().lower()
    assert not list(tmp_path.rglob("*.bin"))


class KilledError(Exception):
    """Stands for kill -9: nothing of ours runs after it."""


def dies_at(step: int) -> Loss:
    left = iter(range(step))

    def loss(pairs: PairLogps) -> Tensor:
        if next(left, None) is None:
            raise KilledError
        return dpo(pairs)

    return loss


LONG: dict[str, Any] = {
    "objective": "dpo",
    "lora": {"rank": 4, "dropout": 0.3},
    "optim": {"lr": 1e-2, "batch_size": 2, "epochs": 4, "checkpoint_every": 3},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A run of 12 steps that nobody killed."""
    place = tmp_path_factory.mktemp("whole")
    train(place, config_for(place, MIXED_PAIRS, tiny_llama, **LONG))
    return place


def killed(place: Path, model: Path, **settings: Any) -> PreferenceConfig:
    config = config_for(place, MIXED_PAIRS, model, **LONG, **settings)
    with pytest.raises(KilledError):
        train(place, config, dies_at(8))
    assert not (place / "out" / "manifest.json").exists()
    return config


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, tiny_llama: Path, whole: Path) -> None:
    config = killed(tmp_path, tiny_llama, keep_reference=False)  # or it would be that of the other run
    assert train(tmp_path, config).manifest.attempts == 2
    ours, theirs = (load_file(p / "out" / "adapter_model.safetensors") for p in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [entry["loss"] for entry in log_of(tmp_path)] == [entry["loss"] for entry in log_of(whole)]
    assert not (tmp_path / "out" / "scratch").exists()


def test_the_reference_is_not_computed_again(tmp_path: Path, tiny_llama: Path, whole: Path) -> None:
    config = killed(tmp_path, tiny_llama, keep_reference=False)
    (path,) = (tmp_path / "out" / "scratch").glob("*.safetensors")
    reference = load_file(path)["logps"]
    shifted = reference.clone()
    shifted[0::2] -= 50.0  # had it been computed again, this would not be seen
    save_file({"logps": shifted}, path)
    train(tmp_path, config)
    ours, theirs = ([entry["reward_margin"] for entry in log_of(p)] for p in (tmp_path, whole))
    assert ours[:6] == theirs[:6]
    assert all(mine > other + 1.0 for mine, other in zip(ours[6:], theirs[6:], strict=True))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"objective_params": {"bta": 1.0}}, r"'safe_dpo' takes no 'bta' \(did you mean 'beta'\?\)"),
        ({"objective": "safedpo"}, r"^objective: got 'safedpo' \(did you mean 'safe_dpo'\?\)"),
        (
            {"objective": "simpo", "objective_params": {"gama": 1.0}},
            r"'simpo' takes no 'gama' \(did you mean 'gamma'\?\); it takes: beta, gamma",
        ),
        (
            {"objective": "ipo", "objective_params": {"tau": 0.0}},
            r"objective_params: ipo: tau: got 0\.0; expected above 0",
        ),
    ],
)
def test_a_mistake_in_the_objective_is_one_line(
    tmp_path: Path, tiny_llama: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        train(tmp_path, config_for(tmp_path, SAFE_PAIRS, tiny_llama, **settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "started.json").exists()


def test_safety_labels_of_single_answers_are_for_unpaired_objectives() -> None:
    with pytest.raises(ValueError, match="is_safe labels single answers, got objective dpo; expected kto"):
        PreferenceConfig(pairs=(Path("p.jsonl"),), objective="dpo", preference="is_safe")


def test_single_answers_have_no_weights_of_pairs() -> None:
    given = {"pairs": ["p.jsonl"], "objective": "kto", "preference": "is_safe", "severity_weight": 1.0}
    with pytest.raises(ConfigError, match=r"run\.yaml: preference: is_safe makes no pairs, got"):
        parse_config(PreferenceConfig, given, "run.yaml")


def test_what_is_left_out_is_told_in_one_line(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = pair("same").model_copy(update={"answers": (Answer(response=GOOD), Answer(response=GOOD))})
    config = config_for(tmp_path, [pair("a"), same], tiny_llama, objective="dpo")
    notes = train(tmp_path, config).manifest.notes
    assert notes["rows"] == 1
    assert notes["left_out"] == {"with equal responses": 1}
    told = "pairs left out: 1 with equal responses; 1 are trained on"
    assert told in capsys.readouterr().err.splitlines()


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(DataError, match=r"pairs: none is left to train on \(1 both unsafe\)"):
        train(tmp_path, config_for(tmp_path, [pair("u", 0, (False, False))], tiny_llama))
