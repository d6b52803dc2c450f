"""Trainings side by side: each in a process of its own, timed by the same marks, in turns.

The marks are hooks that every trainer on torch passes: the first token embedded, the first one with
gradients, each optimiser step. So loading, tokenizing and saving count for nobody, and the log-probabilities
of a reference that is asked before the first step stand by themselves.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from side_rows import LONGEST, Job
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Training = Callable[[], list[float]]
"""Trains, and returns the logged losses."""


class Mark(NamedTuple):
    """A moment: seconds on the wall, and of the processor in this process."""

    wall: float
    cpu: float

    def since(self, other: "Mark") -> "Mark":
        """What has passed."""
        return Mark(self.wall - other.wall, self.cpu - other.cpu)

    def __str__(self) -> str:
        """Both, in seconds."""
        return f"{self.wall:.1f} s on the wall, {self.cpu:.1f} s of the processor"


def now() -> Mark:
    return Mark(time.perf_counter(), time.process_time())


def memory(field: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at most so far (Linux)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


class Watch:
    """The marks of one training in this process, from its first embedded token to its last step."""

    def __init__(self, gradients: Path | None = None) -> None:
        """Watch from `with` on; the gradients of the first step are written to a file if one is given."""
        self.first: Mark | None = None
        self.learning: Mark | None = None
        self.last: Mark | None = None
        self.steps = 0
        self.peak = 0.0
        self.gradients = gradients
        self.hooks: list[Any] = []

    def __enter__(self) -> "Watch":
        """Begin."""
        self.embeds = register_module_forward_pre_hook(self._embeds)
        self.hooks = [
            self.embeds,
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        for hook in self.hooks:
            hook.remove()

    def _embeds(self, module: nn.Module, _: object) -> None:
        if isinstance(module, nn.Embedding):
            self.first = self.first or now()
            if torch.is_grad_enabled():
                self.learning = now()
                self.embeds.remove()

    def _before(self, optimizer: Optimizer, *_: object) -> None:
        self.learning = self.learning or now()  # of frozen layers, which are embedded once before all steps
        if self.gradients is not None and self.steps == 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.save([p.grad.clone() for p in parameters if p.grad is not None], self.gradients)

    def _after(self, *_: object) -> None:
        self.steps += 1
        self.last = now()
        self.peak = memory("VmHWM")

    def told(self) -> dict[str, Any]:
        """Seconds before and during the steps, number of steps, peak memory in MiB."""
        if self.first is None or self.learning is None or self.last is None:
            raise RuntimeError("no training was seen")
        before, steps = self.learning.since(self.first), self.last.since(self.learning)
        return {"before": before, "during": steps, "steps": self.steps, "peak_mib": self.peak}


def measure(training: Training, gradients: Path | None = None) -> None:
    """Train in this process, whose imports are done, and print what it took."""
    imports = memory("VmRSS")
    with Watch(gradients) as watch:
        losses = training()
    told = watch.told()
    print(json.dumps({**told, "own_mib": told["peak_mib"] - imports, "losses": losses}))


def child(script: str, side: str, job: Path) -> Any:
    """Run one side in a process of its own; return what it printed last."""
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, script, "--side", side, "--job", str(job)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | quiet,
    )
    if done.returncode:
        raise SystemExit(f"{side}: failed\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(sides: Sequence[str], rounds: int, run: Callable[[str], Any]) -> dict[str, list[Any]]:
    """Run every side once a round; each round begins with another one."""
    found: dict[str, list[Any]] = {side: [] for side in sides}
    for number in range(rounds):
        shift = number % len(sides)
        for side in [*sides[shift:], *sides[:shift]]:
            found[side].append(run(side))
            took = found[side][-1]
            before, during = Mark(*took["before"]), Mark(*took["during"])
            print(f"round {number + 1}, {side}: before the steps {before}; steps {during}", flush=True)
    return found


def trl_settings(job: Job, *, best: bool, bf16: bool) -> dict[str, Any]:
    """What TRL's trainers are told; `best` makes a step of batches of one pair."""
    return {
        "output_dir": job["folder"],
        "per_device_train_batch_size": 1 if best else job["batch"],
        "gradient_accumulation_steps": job["batch"] if best else 1,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": job["epochs"],
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": job["clip"],
        "max_length": LONGEST,
        "seed": job["seed"],
        "bf16": bf16,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def our_settings(job: Job, *, bf16: bool) -> dict[str, Any]:
    """What our trainings are told under `optim`, the same."""
    return {
        "lr": job["lr"],
        "epochs": job["epochs"],
        "batch_size": job["batch"],
        "tokens_per_micro_batch": job["tokens"],
        "schedule": "constant",
        "warmup_fraction": 0,
        "weight_decay": 0,
        "clip_norm": job["clip"],
        "seed": job["seed"],
        "checkpoint_every": 10**6,
        "log_every": 1,
        "device": "cpu",
        "bf16": bf16,
    }


def our_losses(out: Path) -> list[float]:
    """What our trainer logged."""
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


def texts_of(job: Job) -> list[dict[str, str]]:
    """The rows as TRL is given them."""
    return [json.loads(line) for line in Path(job["texts"]).read_text("utf-8").splitlines()]


def write_job(job: Job, folder: Path) -> Path:
    """Write a job with a folder of its own to work in."""
    place = Path(tempfile.mkdtemp(dir=folder))
    path = place / "job.json"
    path.write_text(json.dumps({**job, "folder": str(place)}), "utf-8")
    return path
