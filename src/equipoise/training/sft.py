"""Supervised fine-tuning on responses: `equipoise train sft --set exchanges=[FILE] --out DIR`.

The loss is the mean over response tokens of the whole optimiser step; prompts teach nothing. Exchanges
known to be unsafe are left out unless asked for.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from equipoise.config import Config, InputPath, ModelRef
from equipoise.data.io import read_records
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.models.backbone import load_causal
from equipoise.models.layout import Row, response_logps
from equipoise.objectives.sequence import sft
from equipoise.records import Exchange
from equipoise.training.cards import model_card
from equipoise.training.memory import say_footprint, say_work
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
        """Loss of each response token of the batch, flat."""
        return sft(response_logps(self.policy, batch.rows).tokens)


def train_sft(config: SftConfig, run: Run) -> None:
    """Fine-tune a policy into `run.out`."""
    exchanges = [record for path in config.exchanges for record in read_records(path, Exchange)]
    run.licences |= {record.licence for record in exchanges}
    say_footprint(config.model, config.tune, config.lora, config.optim.device)
    number = weights_in(config.tune)
    backbone = load_causal(config.model, dtype=number, device=config.optim.device, merge=True)
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for record in exchanges:
        if record.is_safe is False and not config.include_unsafe:
            left_out["unsafe"] += 1
            continue
        if not record.response.strip():
            left_out["with an empty response"] += 1
            continue
        row = make_row(backbone.tokenizer, record.prompt, [record.response])
        if row.length > config.max_tokens:
            left_out[f"over {config.max_tokens} tokens"] += 1
        else:
            rows.append(row)
    if not rows:
        raise DataError(f"exchanges: none is left to train on ({told(left_out)})")
    check_positions(f"max_tokens: {config.max_tokens}", backbone.model, rows)
    policy = prepare(backbone, config.tune, config.lora, config.optim.seed)

    def collate(chosen: Sequence[int]) -> PolicyBatch:
        return PolicyBatch(tuple(rows[i] for i in chosen))

    lengths = [row.length for row in rows]
    items = [len(row.responses[0]) for row in rows]
    task = Task(SftLosses(policy), lengths, items, collate, groups=[tuple(row.prompt) for row in rows])
    say_work(task.lengths, config.optim)
    fit(task, config.optim, run, label="fine-tuning")
    save_policy(backbone, policy, run.out)
    run.notes |= {"rows": len(rows), "left_out": dict(left_out), "tokens": sum(lengths)}
    model_card(run, "Policy", config.model, f"fine-tuned on {len(rows)} responses")


TRAIN_SFT = Step("train.sft", 2, train_sft, config=SftConfig)
