"""What two policies imply, beside probabilities that the library gives for one response at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from equipoise.errors import ModelError
from equipoise.lineage import produce
from equipoise.models.backbone import load_causal
from equipoise.records import Exchange
from equipoise.rewards import implicit
from equipoise.rewards.batch import SCORE, ScoreConfig
from equipoise.rewards.implicit import ImplicitScorer, PolicySettings

ROWS = [
    Exchange(id="a", prompt="how do i bake bread", response="mix flour and water"),
    Exchange(id="b", prompt="how do i bake bread", response="no"),
    Exchange(id="c", prompt="hi", response="wait until the dough has doubled, and then some more"),
]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> dict[str, str]:
    """Two models that differ a little from the reference."""
    found = {"reference": str(tiny_llama)}
    for seed, name in enumerate(("helpful", "safe")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp("policies") / name
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
        found[name] = str(folder)
    return found


@torch.no_grad()
def logp(folder: str, row: Exchange) -> float:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    start = f"<|im_start|>user\n{row.prompt}<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer(start, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row.response + "<|im_end|>", add_special_tokens=False)["input_ids"]
    found = torch.log_softmax(model(torch.tensor([prompt + answer])).logits[0].double(), dim=-1)
    return sum(found[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def test_reward_and_cost_are_those_of_the_formula(policies: dict[str, str]) -> None:
    found = ImplicitScorer(PolicySettings(**policies, beta=0.3), device="cpu")(ROWS)
    for row, one in zip(ROWS, found, strict=True):
        base, helpful, safe = (logp(policies[name], row) for name in ("reference", "helpful", "safe"))
        assert one.reward is not None
        assert one.cost is not None
        assert one.reward.value == pytest.approx(0.3 * (helpful - base), abs=1e-4)
        assert one.cost.value == pytest.approx(-0.3 * (safe - base), abs=1e-4)
        assert abs(one.cost.value) > 1e-2
        assert (one.reward.harm, one.cost.harm) == (-one.reward.value, one.cost.value)


def test_a_policy_that_is_the_reference_says_nothing(tiny_llama: Path) -> None:
    same = PolicySettings(reference=str(tiny_llama), helpful=str(tiny_llama), safe=str(tiny_llama))
    for one in ImplicitScorer(same, device="cpu")(ROWS):
        assert one.reward is not None
        assert one.cost is not None
        assert one.reward.value == one.cost.value == 0.0


def test_score_writes_them_beside_the_rows(tmp_path: Path, policies: dict[str, str]) -> None:
    lines = [{"id": row.id, "prompt": row.prompt, "response": row.response, "sample": 0} for row in ROWS]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = ScoreConfig(file=tmp_path / "in.jsonl", policies=PolicySettings(**policies), device="cpu")
    notes = produce(tmp_path / "out.jsonl", SCORE, config).manifest.notes
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    direct = ImplicitScorer(PolicySettings(**policies), device="cpu")(ROWS)
    assert [row["reward"] for row in rows] == [
        pytest.approx(one.reward.value, abs=1e-6) for one in direct if one.reward
    ]
    assert [row["cost"] for row in rows] == [
        pytest.approx(one.cost.value, abs=1e-6) for one in direct if one.cost
    ]
    assert notes["rows"] == 3


def test_a_response_beyond_what_a_policy_takes_is_a_bad_row(tmp_path: Path, policies: dict[str, str]) -> None:
    lines = [
        {"id": "a", "prompt": "hi", "response": "water " * 300},
        {"id": "b", "prompt": "hi", "response": "no"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = ScoreConfig(file=tmp_path / "in.jsonl", policies=PolicySettings(**policies), device="cpu")
    notes = produce(tmp_path / "out.jsonl", SCORE, config).manifest.notes
    long, _ = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert "expected at most the 256 that policies.reference takes" in long["error"]
    assert (notes["rows"], notes["errors"]) == (1, 1)


@pytest.mark.parametrize(("asked", "number"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_policies_compute_in_32_bits_unless_told_otherwise(
    policies: dict[str, str], monkeypatch: pytest.MonkeyPatch, asked: str, number: str
) -> None:
    numbers: list[str] = []

    def load(ref: str, *, dtype: str, **more: Any) -> Any:
        numbers.append(dtype)
        return load_causal(ref, dtype=dtype, **more)

    monkeypatch.setattr(implicit, "load_causal", load)
    ImplicitScorer(PolicySettings(**policies), device="cpu", dtype=asked)
    assert numbers == [number] * 3


def test_a_policy_with_another_tokenizer_is_named(tmp_path: Path, policies: dict[str, str]) -> None:
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(policies["safe"]).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(policies["safe"])
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(
        ModelError, match=r"policies\.safe: .*other: has another tokenizer than the reference"
    ):
        ImplicitScorer(PolicySettings(**(policies | {"safe": str(other)})), device="cpu")


def test_one_source_of_scores_is_asked_for(tmp_path: Path, policies: dict[str, str]) -> None:
    for given, got in (({}, "none"), ({"scorer": tmp_path, "policies": policies}, "both")):
        with pytest.raises(ValueError, match=f"expected a scorer or policies, got {got}"):
            ScoreConfig(file=tmp_path / "in.jsonl", **given)
