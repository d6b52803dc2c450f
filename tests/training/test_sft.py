"""Fine-tuning: the loss is that of the library on response tokens, and unsafe responses teach nothing."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from equipoise.data.io import write_records
from equipoise.errors import DataError, ModelError
from equipoise.lineage import Outcome, produce
from equipoise.models.backbone import load_causal
from equipoise.models.scorer import ScorerCard, ScorerModel, load_scorer_model, load_trunk
from equipoise.objectives.message_wise import best_of_n, best_of_n_mask, message_mask
from equipoise.records import Exchange
from equipoise.rewards.learned import load_scorer
from equipoise.training.messages import MessageSettings, token_scores
from equipoise.training.policy_rows import make_row
from equipoise.training.sft import TRAIN_SFT, SftConfig, SftOptim

Head = Literal["reward", "cost"]


def exchange(number: int, response: str, is_safe: bool | None = True) -> Exchange:
    return Exchange(
        id=f"e{number}",
        prompt=f"how do i bake bread {number}",
        response=response,
        is_safe=is_safe,
        licence="CC0-1.0",
    )


SAFE = [
    exchange(0, "mix flour and water"),
    exchange(1, "wait"),
    exchange(2, "mix flour, water, salt and yeast, then wait until the dough has doubled"),
    exchange(3, "take a warm coat", None),
]
UNSAFE = exchange(4, "a bad answer", False)


def train(place: Path, rows: list[Exchange], model: Path, **settings: Any) -> Outcome:
    write_records(place / "rows.jsonl", rows)
    optim = SftOptim(**({"device": "cpu", "batch_size": 8} | settings.pop("optim", {})))
    config = SftConfig(exchanges=(place / "rows.jsonl",), model=str(model), optim=optim, **settings)
    return produce(place / "sft", TRAIN_SFT, config)


def losses(place: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (place / "sft" / "log.jsonl").read_text().splitlines()]


@torch.no_grad()
def cross_entropies(folder: Path, rows: list[Exchange]) -> torch.Tensor:
    """Loss of every response token and of the token that ends the turn, one exchange at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        start = f"<|im_start|>user\n{row.prompt}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(start, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row.response + "<|im_end|>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + answer])
        logps = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
        found.append(-logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0])
    return torch.cat(found)


@pytest.mark.parametrize("tokens", [40, 10_000])
def test_the_first_loss_is_the_mean_over_all_response_tokens(
    tmp_path: Path, tiny_llama: Path, tokens: int
) -> None:
    train(tmp_path, SAFE, tiny_llama, optim={"tokens_per_micro_batch": tokens})
    expected = cross_entropies(tiny_llama, SAFE).mean().item()
    assert losses(tmp_path)[0] == pytest.approx(expected, rel=1e-5)


def test_unsafe_and_long_responses_are_left_out_and_counted(tmp_path: Path, tiny_llama: Path) -> None:
    rows = [*SAFE, UNSAFE, exchange(5, "water " * 100)]
    outcome = train(tmp_path, rows, tiny_llama, max_tokens=80)
    assert outcome.manifest.notes["rows"] == 4
    assert outcome.manifest.notes["left_out"] == {"unsafe": 1, "over 80 tokens": 1}
    assert losses(tmp_path)[0] == pytest.approx(cross_entropies(tiny_llama, SAFE).mean().item(), rel=1e-5)


def test_unsafe_responses_are_learned_if_asked(tmp_path: Path, tiny_llama: Path) -> None:
    train(tmp_path, [*SAFE, UNSAFE], tiny_llama, include_unsafe=True)
    expected = cross_entropies(tiny_llama, [*SAFE, UNSAFE]).mean().item()
    assert losses(tmp_path)[0] == pytest.approx(expected, rel=1e-5)


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(DataError, match=r"exchanges: none is left to train on .*unsafe") as caught:
        train(tmp_path, [UNSAFE], tiny_llama)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_what_was_learned_is_in_the_folder(tmp_path: Path, tiny_llama: Path, tune: str) -> None:
    optim = {"lr": 1e-2, "epochs": 12, "schedule": "constant"}
    train(tmp_path, SAFE, tiny_llama, tune=tune, optim=optim)
    log = losses(tmp_path)
    assert log[-1] < 0.7 * log[0]
    folder = tmp_path / "sft"
    if tune == "lora":
        merged = load_causal(folder, device="cpu", merge=True)
        merged.model.save_pretrained(tmp_path / "merged")
        merged.tokenizer.save_pretrained(tmp_path / "merged")
        folder = tmp_path / "merged"
    after = cross_entropies(folder, SAFE).mean().item()
    assert after < log[0]
    assert after == pytest.approx(log[-1], rel=0.3)  # the last loss was measured before the last step
    assert "fine-tuned on 4 responses" in (tmp_path / "sft" / "card.md").read_text().lower()
    assert not list(tmp_path.rglob("*.bin"))


def scorer(place: Path, backbone: Path, trunk: Literal["last", "pooled"], *heads: Head) -> Path:
    torch.manual_seed(2)
    card = ScorerCard(backbone=str(backbone), trunk=trunk, layers=2, hidden=0, trained=heads)
    model = ScorerModel(card, load_trunk(trunk, str(backbone), "cpu"))
    model.trunk.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.normal_()  # the heads of a fresh scorer say next to nothing
    (place / "scorer").mkdir(parents=True)
    model.save(place / "scorer")
    return place / "scorer"


ANSWERS = ["mix flour and water", "wait until the dough has doubled", "take a warm coat", "no"]
SEVERAL = [exchange(number, answer) for number in (0, 1, 2) for answer in ANSWERS]


def test_the_best_response_to_each_prompt_is_imitated(
    tmp_path: Path, tiny_llama: Path, tiny_encoder: Path
) -> None:
    folder = scorer(tmp_path, tiny_encoder, "pooled", "reward", "cost")
    weights = {"reward_weight": 0.5, "cost_weight": 2.0}
    rows = [*SEVERAL, exchange(2, "a bad answer", False), exchange(9, "alone")]
    outcome = train(tmp_path, rows, tiny_llama, best_of={"scorer": folder, **weights})
    usable = [row for row in rows if row.is_safe]
    totals = [
        0.5 * found.reward.value - 2.0 * found.cost.value
        for found in load_scorer(folder, "cpu")(usable)
        if found.reward and found.cost
    ]
    best: dict[str, int] = {}
    for place, row in enumerate(usable):
        name = str(row.prompt)
        if name not in best or totals[place] > totals[best[name]]:
            best[name] = place
    assert len({place % 4 for place in best.values()}) > 1, "the same answer is the best of all; no test"
    expected = cross_entropies(tiny_llama, [usable[place] for place in best.values()]).mean().item()
    assert losses(tmp_path)[0] == pytest.approx(expected, rel=1e-5)
    assert outcome.manifest.notes["rows"] == 4
    assert outcome.manifest.notes["left_out"] == {"unsafe": 1, "that are not the best of their prompt": 9}


@pytest.mark.parametrize("has_best", [False, True])
def test_good_messages_alone_are_imitated(tmp_path: Path, tiny_llama: Path, has_best: bool) -> None:
    folder = scorer(tmp_path, tiny_llama, "last", "reward", "cost")
    messages = MessageSettings(scorer=folder, threshold=0.1)
    best_of = {"best_of": {"scorer": folder}} if has_best else {}
    outcome = train(
        tmp_path, SEVERAL, tiny_llama, messages=messages, optim={"epochs": 2, "batch_size": 16}, **best_of
    )

    tokenizer = load_causal(tiny_llama, device="cpu").tokenizer
    rows = [make_row(tokenizer, row.prompt, [row.response]) for row in SEVERAL]
    model = load_scorer_model(folder, "cpu")
    scores = torch.cat(token_scores(model, rows, messages, tokenizer=tokenizer))
    lengths = torch.tensor([len(row.responses[0]) for row in rows])
    slots = torch.arange(len(rows)).repeat_interleave(lengths)
    kept = message_mask(scores, slots, torch.ones(len(rows), dtype=torch.bool), threshold=0.1)
    if has_best:
        found = load_scorer(folder, "cpu")(SEVERAL)
        totals = torch.tensor([one.reward.value - one.cost.value for one in found if one.reward and one.cost])
        prompts = torch.arange(len(rows)) // len(ANSWERS)
        kept = best_of_n_mask(scores, slots, totals, prompts, threshold=0.1)
        assert 0 < kept.sum() < best_of_n(totals, prompts)[slots].sum()
    assert 0 < kept.sum() < len(kept)
    expected = cross_entropies(tiny_llama, SEVERAL)[kept].mean().item()
    assert losses(tmp_path)[0] == pytest.approx(expected, rel=1e-5)
    assert losses(tmp_path)[1] < losses(tmp_path)[0]
    assert outcome.manifest.notes["kept_tokens"] == int(kept.sum())


def test_the_best_of_n_and_an_early_stop_go_together(
    tmp_path: Path, tiny_llama: Path, tiny_encoder: Path
) -> None:
    folder = scorer(tmp_path, tiny_encoder, "pooled", "reward", "cost")
    rows = [exchange(number, answer) for number in range(12) for answer in ANSWERS]
    optim = {"stop_after": 4, "epochs": 3}
    outcome = train(tmp_path, rows, tiny_llama, best_of={"scorer": folder}, optim=optim)
    assert outcome.manifest.notes["rows"] == 12


def test_a_scorer_without_a_head_that_counts_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_encoder: Path
) -> None:
    folder = scorer(tmp_path, tiny_encoder, "pooled", "reward")
    with pytest.raises(ModelError, match="scorer: was not trained for cost; its heads"):
        train(tmp_path, SEVERAL, tiny_llama, best_of={"scorer": folder})
    train(tmp_path, SEVERAL, tiny_llama, best_of={"scorer": folder, "cost_weight": 0})
    with pytest.raises(ValueError, match="reward_weight and cost_weight are 0"):
        train(tmp_path, SEVERAL, tiny_llama, best_of={"scorer": folder, "cost_weight": 0, "reward_weight": 0})
