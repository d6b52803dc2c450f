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
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerControl, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from equipoise.errors import ConfigError, RunStoppedError
from equipoise.lineage import Run, write_text
from equipoise.models.checkpoints import last_sealed, load_tensors, save_tensors, seal
from equipoise.training.batches import Planner, StepPlan
from equipoise.training.budget import within_memory
from equipoise.training.held_out import Best, hold_out
from equipoise.training.memory import recomputing
from equipoise.training.optim import OptimSettings
from equipoise.training.optim import arguments as optim_arguments
from equipoise.training.shards import join, load, optimizer_state, shard, split_state, trained, whole
from equipoise.training.task import Batch, Task
from equipoise.training.watching import Progress, quietly

__all__ = ["Batch", "OptimSettings", "Task", "fit"]


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

    With `stop_after` the log on disk has the losses on what is held out too.

    A run that was killed goes on from the last whole checkpoint in `run.scratch` and ends with the
    same numbers (same machine, versions and threads).

    Raises:
        ConfigError: A setting does not fit this task.
        RunStoppedError: A loss or gradient is not finite; the step was not taken.
    """
    held, best = None, None
    if settings.stop_after is not None:
        if task.groups is None:
            raise ConfigError("optim.stop_after: this training cannot hold prompts out; expected none")
        kept, out = hold_out(task.groups, settings.seed)
        task, held = task.pick(kept), task.pick(out)
        best = Best(run.shared / "best.safetensors", settings.stop_after)
    folder = run.shared / "checkpoints"
    settings = within_memory(task, settings)
    arguments = optim_arguments(settings, folder, steps=math.ceil(len(task.lengths) / settings.batch_size))
    arguments.ddp_find_unused_parameters = not task.reads_all
    trainer = _StepTrainer(task, settings, arguments, label, held=held, best=best)
    resume = last_sealed(folder) if folder.exists() else None
    trainer.accelerator.wait_for_everyone()  # all processes have seen the same folders
    if trainer.is_world_process_zero():
        for stale in folder.glob("checkpoint-*") if folder.exists() else []:
            if resume is None or int(stale.name.split("-")[-1]) > int(resume.name.split("-")[-1]):
                shutil.rmtree(stale)
    trainer.accelerator.wait_for_everyone()
    with quietly(), recomputing(task.model, settings.gradient_checkpointing):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if held is not None and best is not None:
            trainer.take_best()
            run.notes["held_out"] = {"rows": len(held.lengths), "loss": best.loss, "step": best.step}
    join(task.model)
    history = [entry for entry in trainer.state.log_history if {"loss", "held_out_loss"} & entry.keys()]
    log = [entry for entry in history if "loss" in entry]
    if trainer.is_world_process_zero():
        lines = [json.dumps(entry, sort_keys=True) + "\n" for entry in history]  # a resumed one comes sorted
        write_text(run.out / "log.jsonl", "".join(lines))
    return log


class _StepTrainer(Trainer):  # type: ignore[misc]
    control: TrainerControl

    def __init__(
        self,
        task: Task,
        settings: OptimSettings,
        arguments: TrainingArguments,
        label: str,
        *,
        held: Task | None = None,
        best: Best | None = None,
    ) -> None:
        self.task = task
        self.held = held
        self.best = best
        self.settings = settings
        super().__init__(
            model=task.model,
            args=arguments,
            train_dataset=_Examples(len(task.lengths)),
            eval_dataset=None if held is None else _Examples(len(held.lengths)),
            callbacks=[Progress(label)],
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self.remove_callback(transformers.trainer_callback.ProgressCallback)
        if settings.shard and arguments.world_size > 1:
            shard(task.model, arguments.device.type)
            self.is_distributed_loading_by_transformers = True  # which leaves a model that is split alone

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of whole steps; not prepared by accelerate, which would shard it again."""
        planner = self._planner(self.task, self.settings.batch_size)
        return _StepLoader(_Examples(len(self.task.lengths)), batch_sampler=planner, collate_fn=self._collate)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the library's optimiser; what the task names apart has a rate of its own in it."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        for module, rate in self.task.rates:
            apart = {id(parameter) for parameter in module.parameters()}
            for group in list(optimizer.param_groups):
                own = [parameter for parameter in group["params"] if id(parameter) in apart]
                if own:
                    group["params"] = [p for p in group["params"] if id(p) not in apart]
                    optimizer.add_param_group(group | {"params": own, "lr": rate})
        return optimizer

    def _planner(self, task: Task, batch_size: int) -> Planner:
        return Planner(
            task.lengths,
            task.items,
            batch_size=batch_size,
            tokens_per_micro_batch=self.settings.micro_tokens,
            seed=self.settings.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )

    @torch.no_grad()
    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Ask what is held out for the mean loss over its terms, as one step, and stop if it is time to."""
        if self.held is None or self.best is None:
            raise RuntimeError("nothing is held out")
        ((plan,),) = self._planner(self.held, len(self.held.lengths))
        batches = [(self.held.collate(m.indices).to(self.args.device), m.weight) for m in plan.micros]
        total = torch.zeros((), device=self.args.device)
        with self.compute_loss_context_manager():
            if self.held.before_step is not None:
                self.held.before_step(self.model, batches)
            self.model.eval()
            for batch, weight in batches:
                total += self.model(batch).float().sum() * weight
        self.model.train()
        if dist.is_initialized():
            dist.all_reduce(total)
        loss = total.item() / plan.items
        if not math.isfinite(loss):
            raise RunStoppedError(f"step {self.state.global_step}: the loss on what is held out is {loss}")
        found = {"held_out_loss": loss}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        step, writes = self.state.global_step, self.is_world_process_zero()
        if self.best.see(step, loss, self.task.model, writes=writes):
            self.control.should_training_stop = True
            self.control.should_save = False  # a resume comes to this step again, and stops again
        return found

    def take_best(self) -> None:
        """Give the model the weights that did best on what is held out; the last ones are asked too."""
        if self.best is not None:
            log, step = self.state.log_history, self.state.global_step
            if not any("held_out_loss" in entry and entry["step"] == step for entry in log):
                self.evaluate()
            self.accelerator.wait_for_everyone()
            self.best.restore(self.task.model)

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
        norm = whole(super()._clip_grad_norm(model))
        if not math.isfinite(float(norm)):
            broken = (
                name
                for name, parameter in model.named_parameters()
                if parameter.grad is not None and not torch.isfinite(whole(parameter.grad)).all()
            )
            raise RunStoppedError(
                f"step {self.state.global_step + 1}: gradient of {next(broken, 'the model')} is not finite;"
                " the step was not taken"
            )
        return norm

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        """Save what is trained, as safetensors; no pickled arguments."""
        tensors = trained(self.task.model)
        if self.args.should_save and output_dir:
            save_tensors(Path(output_dir) / "trained.safetensors", tensors)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_distributed_loading_by_transformers:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = optimizer_state(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_distributed_loading_by_transformers:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(split_state(state, self.optimizer.param_groups))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.accelerator.wait_for_everyone()
        if self.args.should_save and folder.exists():
            seal(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / "trained.safetensors"
        load(self.task.model, load_tensors(path), str(path))

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
