"""The one trainer: transformers' Trainer around a module whose forward gives one loss per term.

Mixed precision, distribution, schedulers, logging integrations, checkpoints and resume come from the
library. Ours is what it would get wrong: a step's gradient is that of the mean over all terms of the
step (pairs, rows, or response tokens), however they are split into micro-batches or over ranks. For
that a data loader item is a whole optimiser step, planned by `batches.Planner`, and the library's
own accumulation stays at 1.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
import transformers
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from equipoise.config import Config, IsAside
from equipoise.errors import RunStoppedError
from equipoise.lineage import Run, write_text
from equipoise.models.backbone import Device, pick_device
from equipoise.models.checkpoints import last_sealed, load_into, load_tensors, save_tensors, seal, trainable
from equipoise.progress import bar
from equipoise.training.batches import Planner, StepPlan


class OptimSettings(Config):
    """How to optimise; every training run has these."""

    lr: float = Field(gt=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    """Examples of one optimiser step, over all processes."""
    tokens_per_micro_batch: int = Field(default=4096, ge=1)
    """Tokens of one forward pass, padding counted; bounds memory and changes nothing else."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    checkpoint_every: Annotated[int, Field(ge=1), IsAside()] = 10
    """Optimiser steps between two checkpoints from which a killed run goes on."""
    log_every: int = Field(default=1, ge=1)
    report_to: Annotated[tuple[str, ...], IsAside()] = ()
    """Logging integrations of transformers, for example `tensorboard`."""
    device: Device = "auto"
    bf16: bool = False
    """Train in bfloat16 autocast."""


class Batch(Protocol):
    """What a module is given: anything that can go to a device."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device."""
        ...


class Task(NamedTuple):
    """What to train, and on what."""

    model: nn.Module
    """forward(batch) -> one loss per term, flat."""
    lengths: Sequence[int]
    """Tokens of each example."""
    items: Sequence[int]
    """Loss terms of each example: 1, or its response tokens."""
    collate: Callable[[Sequence[int]], Batch]
    """Indices of examples -> a batch."""
    metrics: Callable[[], dict[str, float]] = dict
    """More numbers for the log, of what was seen since the last call."""
    before_step: Callable[[nn.Module, Sequence[tuple[Any, float]]], None] | None = None
    """Sees the model as wrapped, and this rank's micro-batches and weights, before a step's first one."""


class _StepBatch(NamedTuple):
    micros: list[tuple[Batch, float]]
    items: int


class _Examples(Dataset[StepPlan]):
    """The planner already decides everything; an item is its plan."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, plan: StepPlan) -> StepPlan:
        return plan


def fit(task: Task, settings: OptimSettings, run: Run, *, label: str) -> list[dict[str, float]]:
    """Train `task.model` in place; return the log, one dict per logged step, and write `log.jsonl`.

    A run that was killed goes on from the last whole checkpoint in `run.scratch` and ends with the
    same numbers (same machine, versions and threads).

    Raises:
        RunStoppedError: A loss or gradient is not finite; the step was not taken.
    """
    folder = run.scratch / "checkpoints"
    arguments = _arguments(settings, folder, steps=math.ceil(len(task.lengths) / settings.batch_size))
    trainer = _StepTrainer(task, settings, arguments, label)
    resume = last_sealed(folder) if folder.exists() else None
    for stale in folder.glob("checkpoint-*") if folder.exists() else []:
        if resume is None or int(stale.name.split("-")[-1]) > int(resume.name.split("-")[-1]):
            shutil.rmtree(stale)
    with _quiet():
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        lines = [json.dumps(entry, sort_keys=True) + "\n" for entry in log]  # a resumed log comes sorted
        write_text(run.out / "log.jsonl", "".join(lines))
    return log


class _StepTrainer(Trainer):  # type: ignore[misc]
    def __init__(self, task: Task, settings: OptimSettings, arguments: TrainingArguments, label: str) -> None:
        self.task = task
        self.settings = settings
        super().__init__(
            model=task.model,
            args=arguments,
            train_dataset=_Examples(len(task.lengths)),
            callbacks=[_Progress(label)],
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self.remove_callback(transformers.trainer_callback.ProgressCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of whole steps; not prepared by accelerate, which would shard it again."""
        planner = Planner(
            self.task.lengths,
            self.task.items,
            batch_size=self.settings.batch_size,
            tokens_per_micro_batch=self.settings.tokens_per_micro_batch,
            seed=self.settings.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        return _StepLoader(_Examples(len(self.task.lengths)), batch_sampler=planner, collate_fn=self._collate)

    def _collate(self, plans: list[StepPlan]) -> _StepBatch:
        plan = plans[0]
        return _StepBatch([(self.task.collate(m.indices), m.weight) for m in plan.micros], plan.items)

    def _get_num_items_in_batch(self, batch_samples: list[_StepBatch], device: torch.device) -> None:
        """Count nothing here: every step carries its number of terms over all ranks."""

    def training_step(self, model: nn.Module, step: _StepBatch, num_items_in_batch: object = None) -> Tensor:
        """Run all micro-batches of this rank forward and backward; return the step's mean loss.

        Ranks average their gradients, so each counts its terms `world_size` times.
        """
        model.train()
        if self.task.before_step is not None:
            with self.compute_loss_context_manager():
                self.task.before_step(model, [(b.to(self.args.device), weight) for b, weight in step.micros])
        total = torch.zeros((), device=self.args.device)
        scale = self.args.world_size / step.items
        for number, (batch, weight) in enumerate(step.micros, start=1):
            is_last = number == len(step.micros)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model=model):
                with self.compute_loss_context_manager():
                    losses: Tensor = model(batch.to(self.args.device))
                    loss = losses.float().sum() * (weight * scale)
                if not torch.isfinite(loss):
                    raise RunStoppedError(
                        f"step {self.state.global_step + 1}: the loss of micro-batch {number} is"
                        f" {loss.item()}; the step was not taken"
                    )
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip as the library does, but stop where the norm is not finite and name the tensor."""
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            broken = (
                name
                for name, parameter in model.named_parameters()
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
            )
            raise RunStoppedError(
                f"step {self.state.global_step + 1}: gradient of {next(broken, 'the model')} is not finite;"
                " the step was not taken"
            )
        return norm  # type: ignore[no-any-return]

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        """Save what is trained, as safetensors; no pickled arguments."""
        if self.args.should_save and output_dir:
            save_tensors(Path(output_dir) / "trained.safetensors", trainable(self.task.model))

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.accelerator.wait_for_everyone()
        if self.args.should_save and folder.exists():
            seal(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / "trained.safetensors"
        load_into(self.task.model, load_tensors(path), str(path))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the task's own numbers beside the loss."""
        super().log(logs | (self.task.metrics() if "loss" in logs else {}), start_time)

    def floating_point_ops(self, inputs: object) -> int:
        """Count none: our batches are not the library's."""
        return 0

    def _track_num_input_tokens(self, inputs: object) -> None:
        """Count none: our batches are not the library's."""


class _StepLoader(DataLoader[Any]):
    """A data loader that tells its planner the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class _Progress(TrainerCallback):  # type: ignore[misc]
    """One bar over all optimiser steps."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.stack = contextlib.ExitStack()
        self.advance: Callable[[], None] = lambda: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self.advance = self.stack.enter_context(bar(self.label, state.max_steps, state.global_step))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.advance()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.stack.close()


def _arguments(settings: OptimSettings, folder: Path, steps: int) -> TrainingArguments:
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
        optim="adamw_torch",
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=device.type == "cpu",
        save_strategy="steps",
        save_steps=settings.checkpoint_every,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's advisory log lines off the terminal."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
