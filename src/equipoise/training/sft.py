"""Supervised fine-tuning on responses: `equipoise train sft --set exchanges=[FILE] --out DIR`.

The loss is the mean over response tokens of the whole optimiser step; prompts teach nothing. Exchanges
known to be unsafe are left out unless asked for. Of several responses to a prompt the best one alone may be
imitated (`best_of`), and of a response its good messages alone (`messages`).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equipoise.config import Config, InputPath, IsLater, ModelRef
from equipoise.data.io import read_records
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.models.backbone import load_causal
from equipoise.models.layout import Row, response_logps
from equipoise.objectives.message_wise import masked_sft
from equipoise.objectives.sequence import sft
from equipoise.records import Exchange
from equipoise.training.best_of import BestOfSettings, best_responses
from equipoise.training.cards import model_card
from equipoise.training.memory import say_footprint, say_work
from equipoise.training.messages import MessageSettings, kept_tokens, message_scores
from equipoise.training.pair_order import told
from equipoise.training.policy import LoraSettings, prepare, save_policy, weights_in
from equipoise.training.policy_rows import PolicyBatch, check_positions, make_row
from equipoise.training.trainer import OptimSettings, Task, fit


class SftOptim(OptimSettings):
    """How a policy is fine-tuned, unless said otherwise."""

    lr: float = Field(default=1e-4, gt=0)


class SftConfig(Config):
    """Settings of `train sft`."""

    exchanges: tuple[InputPath, ...] = Field(min_length=1)
    model: ModelRef = "smollm2-135m"
    include_unsafe: bool = False
    best_of: Annotated[BestOfSettings | None, IsLater()] = None
    """Imitate the best response to each prompt; every one where None."""
    messages: Annotated[MessageSettings | None, IsLater()] = None
    """Imitate the good messages of a response; all of it where None."""
    tune: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    max_tokens: int = Field(default=512, ge=8)
    """Exchanges with more tokens are left out and counted; none is cut."""
    optim: SftOptim = SftOptim()


class SftLosses(nn.Module):
    """The policy under fine-tuning: one loss per response token."""

    def __init__(self, policy: nn.Module) -> None:
        """Wrap the policy."""
        super().__init__()
        self.policy = policy

    def forward(self, batch: PolicyBatch) -> Tensor:
        """Loss of each response token of the batch that counts, flat; an extra says which, [N] bool."""
        tokens = response_logps(self.policy, batch.rows).tokens
        return masked_sft(tokens, *batch.extras) if batch.extras else sft(tokens)


def train_sft(config: SftConfig, run: Run) -> None:
    """Fine-tune a policy into `run.out`."""
    exchanges = [record for path in config.exchanges for record in read_records(path, Exchange)]
    run.licences |= {record.licence for record in exchanges}
    say_footprint(config.model, config.tune, config.lora, config.optim.device)
    number = weights_in(config.tune)
    backbone = load_causal(config.model, dtype=number, device=config.optim.device, merge=True)
    kept, rows, left_out = _usable(backbone.tokenizer, exchanges, config)
    if not rows:
        raise DataError(f"exchanges: none is left to train on ({told(left_out)})")
    check_positions(f"max_tokens: {config.max_tokens}", backbone.model, rows)
    masks = _masks(config, rows, run, backbone.tokenizer)
    if config.best_of is not None:
        path = run.scratch / "best-of.safetensors"
        best = best_responses(config.best_of, kept, path, device=config.optim.device)
        left_out["that are not the best of their prompt"] = len(rows) - len(best)
        rows, masks = [rows[i] for i in best], [masks[i] for i in best if masks]
    policy = prepare(backbone, config.tune, config.lora, config.optim.seed)

    def collate(chosen: Sequence[int]) -> PolicyBatch:
        extras = (torch.cat([masks[i] for i in chosen]),) if masks else ()
        return PolicyBatch(tuple(rows[i] for i in chosen), extras)

    lengths = [row.length for row in rows]
    items = [int(mask.sum()) for mask in masks] or [len(row.responses[0]) for row in rows]
    task = Task(SftLosses(policy), lengths, items, collate, groups=[tuple(row.prompt) for row in rows])
    say_work(task.lengths, config.optim)
    fit(task, config.optim, run, label="fine-tuning")
    save_policy(backbone, policy, run.out)
    run.notes |= {"rows": len(rows), "left_out": dict(left_out), "tokens": sum(lengths)}
    if masks:
        run.notes |= {"response_tokens": sum(map(len, masks)), "kept_tokens": sum(items)}
    model_card(run, "Policy", config.model, f"fine-tuned on {len(rows)} responses")


def _usable(
    tokenizer: Any, exchanges: Sequence[Exchange], config: SftConfig
) -> tuple[list[Exchange], list[Row], Counter[str]]:
    """Return what can be learned from, its rows, and how much is left out by reason."""
    kept: list[Exchange] = []
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for record in exchanges:
        if record.is_safe is False and not config.include_unsafe:
            left_out["unsafe"] += 1
            continue
        if not record.response.strip():
            left_out["with an empty response"] += 1
            continue
        row = make_row(tokenizer, record.prompt, [record.response])
        if row.length > config.max_tokens:
            left_out[f"over {config.max_tokens} tokens"] += 1
        else:
            kept.append(record)
            rows.append(row)
    return kept, rows, left_out


def _masks(config: SftConfig, rows: Sequence[Row], run: Run, tokenizer: Any) -> list[Tensor]:
    """Which response tokens of each row count, bool; empty where all do."""
    if config.messages is None:
        return []
    scores = message_scores(
        config.messages,
        rows,
        run.scratch / "scores.safetensors",
        tokenizer=tokenizer,
        tokens_per_batch=config.optim.micro_tokens,
        device=config.optim.device,
    )
    return kept_tokens(scores, rows, config.messages, (True,))


TRAIN_SFT = Step("train.sft", 2, train_sft, config=SftConfig)
