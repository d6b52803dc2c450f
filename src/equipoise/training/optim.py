"""How to optimise: the settings that every training has, and what the library makes of them."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from equipoise.config import Config, IsAside
from equipoise.errors import near
from equipoise.models.backbone import Device, micro_batch_tokens, pick_device


class OptimSettings(Config):
    """How to optimise; every training run has these."""

    lr: float = Field(gt=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    """Examples of one optimiser step, over all processes."""
    tokens_per_micro_batch: int | None = Field(default=None, ge=1)
    """Tokens of one forward pass, padding counted; bounds memory and changes nothing else. Where None, 512
    on a CPU and 4096 elsewhere."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Lower `tokens_per_micro_batch` until the training keeps within this much memory, libraries and data
    apart; see `training.budget`."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    checkpoint_every: Annotated[int, Field(ge=1), IsAside()] = 10
    """Optimiser steps between two checkpoints from which a killed run goes on, rounded up to where an entry
    of the log ends: the next one is then the mean of the same steps, killed or not."""
    log_every: int = Field(default=1, ge=1)
    report_to: Annotated[tuple[str, ...], IsAside()] = ()
    """Logging integrations of transformers that are installed, for example `tensorboard`."""
    device: Device = "auto"
    bf16: bool = False
    """Train in bfloat16 autocast."""
    shard: Annotated[bool, IsAside()] = False
    """Split weights, gradients and optimiser state over the processes of a launch (FSDP)."""
    gradient_checkpointing: Annotated[bool, IsAside()] = False
    """Compute each layer again in the backward pass: less memory, about a third more time, same numbers."""
    stop_after: int | None = Field(default=None, ge=1)
    """Stop after this many steps without a lower loss on a tenth of the prompts, which is held out and
    asked four times in as many steps; the weights with the lowest loss are kept. Never where None."""

    @field_validator("report_to")
    @classmethod
    def _can_report(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = sorted(INTEGRATION_TO_CALLBACK)
        for name in names:
            if name not in known:
                raise ValueError(f"got '{name}'{near(name, known)}; expected one of {', '.join(known)}")
            if name not in get_available_reporting_integrations():
                raise ValueError(f"'{name}' is not installed")
        return names

    @property
    def micro_tokens(self) -> int:
        """Tokens of one forward pass on the device that is trained on."""
        return micro_batch_tokens(self.tokens_per_micro_batch, self.device)


def ask_every(stop_after: int | None) -> int | None:
    """Steps between two looks at what is held out: four in `stop_after`."""
    return None if stop_after is None else max(1, stop_after // 4)


def arguments(settings: OptimSettings, folder: Path, steps: int) -> TrainingArguments:
    """Return what the library is told; `steps` are those of an epoch, `folder` is for its checkpoints."""
    device = pick_device(settings.device)
    warmup = steps * settings.epochs * settings.warmup_fraction
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.lr,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(warmup) if warmup >= 1 else 0,  # a warmup begins with a step of rate 0
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip_norm,
        optim="adamw_torch" if settings.shard else "adamw_torch_fused",  # one pass over the weights
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=device.type == "cpu",
        save_strategy="steps",
        save_steps=math.ceil(settings.checkpoint_every / settings.log_every) * settings.log_every,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        label_names=[],
        eval_strategy="no" if settings.stop_after is None else "steps",
        eval_steps=ask_every(settings.stop_after),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
