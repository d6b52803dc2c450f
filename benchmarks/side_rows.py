"""The rows that trainings are compared on, and the arithmetic that they need."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from equipoise.data.corpus import corpus_path
from equipoise.data.io import read_records
from equipoise.models.backbone import load_tokenizer
from equipoise.models.layout import Row
from equipoise.records import Answer, Pair
from equipoise.training.batches import Micro, Planner, StepPlan
from equipoise.training.pair_order import OrderedPair, PairSettings, order_pairs

LONGEST = 512
"""Tokens of a prompt with one response: what TRL is told as `max_length`; nothing is cut."""
ROWS = {"pku": "pku_saferlhf_pairs", "long": "hh_harmless_test"}
"""What `--rows` may be where a folder is given, and its file."""

Job = dict[str, Any]
"""What every side is told: model, rows and settings."""


def product_rate(kind: torch.dtype = torch.float32, size: int = 2048, seconds: float = 1.5) -> float:
    """GFLOP a second of the product of two square matrices: the median over the time given."""
    left, right = torch.randn(size, size).to(kind), torch.randn(size, size).to(kind)
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        taken.append(time.perf_counter() - start)
    return float(2 * size**3 / np.median(taken) / 1e9)


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 by itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def forward_flop(model: str | Path, rows: Sequence[Row], *, head: bool = True) -> float:
    """Floating-point operations that one forward pass over rows needs, each token of a row once.

    2 per weight of a linear layer and token; 4 per layer, attention width and pair of tokens of which one
    sees the other; the output embedding (`head`) where a response token is predicted. A backward pass needs
    twice as many.
    """
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    with torch.device("meta"):
        causal: Any = AutoModelForCausalLM.from_config(config)
    layers = [part for part in causal.get_decoder().modules() if isinstance(part, nn.Linear)]
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    total = 2.0 * sum(layer.weight.numel() for layer in layers) * sum(row.length for row in rows)
    seen = sum(_seen(row) for row in rows)
    total += 4.0 * config.num_hidden_layers * width * seen
    if head:
        answers = sum(len(answer) for row in rows for answer in row.responses)
        total += 2.0 * causal.get_output_embeddings().weight.numel() * answers
    return total


def upper_half(model: str | Path) -> int:
    """Number of the layers of a model that make its upper half."""
    return int(AutoConfig.from_pretrained(model, local_files_only=True).num_hidden_layers) // 2


def top_flop(model: str | Path, rows: Sequence[Row], epochs: int, *, policy: bool) -> float:
    """Floating-point operations of training the upper half of the layers: those below count once.

    A policy has a reference, and an output embedding that learns nothing: back through it takes as much as
    forth.
    """
    body = forward_flop(model, rows, head=False)
    layers = AutoConfig.from_pretrained(model, local_files_only=True).num_hidden_layers
    top = body * upper_half(model) / layers
    total = body - top + 3 * epochs * top
    if policy:
        head = forward_flop(model, rows) - body
        total += top + head + 2 * epochs * head
    return total


def _seen(row: Row) -> int:
    """Pairs of tokens of which the later sees the earlier, or itself."""
    before = len(row.prompt)
    own = [len(answer) for answer in row.responses]
    return before * (before + 1) // 2 + sum(n * before + n * (n + 1) // 2 for n in own)


def padded_to(rows: Sequence[Row], batch: int) -> int:
    """Tokens that batches of so many pairs compute, each response after its own copy of the prompt."""
    total = 0
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch]
        longest = max(len(row.prompt) + max(map(len, row.responses)) for row in chosen)
        total += 2 * len(chosen) * longest
    return total


def _padded(ordered: Sequence[OrderedPair], micro: Micro) -> int:
    return len(micro.indices) * max(ordered[i].row.length for i in micro.indices)


def _plans(rows: Sequence[Row], job: Job) -> list[StepPlan]:
    lengths = [row.length for row in rows]
    planner = Planner(
        lengths,
        [1] * len(rows),
        batch_size=job["batch"],
        tokens_per_micro_batch=job["tokens"],
        seed=job["seed"],
    )
    return [plan for (plan,) in planner]


def read_pairs(folder: Path | None, rows: str) -> list[Pair]:
    """Pairs with a preference for the safer answer: built-in ones, or of a folder's file.

    A row without a label for the better answer has its only preference twice: labels are no matter here.
    """
    if folder is None:
        return list(read_records(corpus_path("pairs"), Pair))
    found = []
    for line in (folder / f"{ROWS[rows]}.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        answers = [
            Answer(response=row[f"response_{k}"], is_safe=row.get(f"is_response_{k}_safe")) for k in (0, 1)
        ]
        safer = row["safer_response_id"]
        found.append(
            Pair(
                id=row["id"], prompt=row["prompt"], answers=tuple(answers), safer=safer, better=safer,
                source=row["source"],
            )
        )  # fmt: skip
    return found


class Chosen(NamedTuple):
    """The rows that all sides train on."""

    rows: list[Row]
    """In the order of our own steps, chosen response first."""
    computed: int
    """Tokens that an epoch of our own batches computes, padding included."""


def choose(pairs: Sequence[Pair], job: Job, most: int, *, policy: bool) -> Chosen:
    """Take the first pairs that need not be cut and that both tokenize alike; write them for both sides.

    The peers get the rows in the order of our own batches, of a policy or of a scorer, so that every step is
    made of the same pairs.

    Raises:
        SystemExit: There are not so many.
    """
    tokenizer = load_tokenizer(job["model"])
    settings = PairSettings(objective="dpo", preference="safer", max_tokens=job["longest"])
    kept: list[Pair] = []
    ordered: list[OrderedPair] = []
    for pair in pairs:
        found, _ = order_pairs(tokenizer, [pair], settings, 0)
        if found and _alike(tokenizer, found[0]):
            kept.append(pair)
            ordered += found
        if len(kept) == most:
            break
    else:
        raise SystemExit(f"--pairs {most}: only {len(kept)} are short enough and tokenized alike by both")
    if policy:  # which draws the order of its pairs before it plans its steps
        ordered, _ = order_pairs(tokenizer, kept, settings, job["seed"])
    plans = _plans([one.row for one in ordered], job)
    planned = [ordered[i] for plan in plans for micro in plan.micros for i in micro.indices]
    write_rows(kept, planned, tokenizer, job)
    return Chosen(
        [one.row for one in planned], sum(_padded(ordered, micro) for plan in plans for micro in plan.micros)
    )


def write_rows(pairs: Sequence[Pair], ordered: Sequence[OrderedPair], tokenizer: Any, job: Job) -> None:
    """Write the pairs for us and, as texts, for the peers."""
    Path(job["pairs"]).write_text("".join(pair.model_dump_json() + "\n" for pair in pairs), "utf-8")
    texts = [
        {"prompt": rendered(tokenizer, one), "chosen": one.texts[0], "rejected": one.texts[1]}
        for one in ordered
    ]
    Path(job["texts"]).write_text("".join(json.dumps(text) + "\n" for text in texts), "utf-8")


def rendered(tokenizer: Any, one: OrderedPair) -> str:
    """The prompt as the chat template writes it; TRL adds the end of the turn to the responses itself."""
    chat = [{"role": "user", "content": one.prompt}]
    text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return text


def _alike(tokenizer: Any, one: OrderedPair) -> bool:
    """Whether a text tokenized as a whole is the prompt and the response tokenized by themselves."""
    prompt, row = rendered(tokenizer, one), one.row
    whole = [tokenizer(prompt + text + tokenizer.eos_token)["input_ids"] for text in one.texts]
    fits = max(map(len, whole)) <= LONGEST
    return fits and whole == [row.prompt + response for response in row.responses]
