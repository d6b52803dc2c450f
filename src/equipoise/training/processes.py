"""One training by several processes: `accelerate launch ... -m equipoise train ...`, or torchrun.

All processes read the same settings and take part in every step. The first one alone decides whether
there is anything to do, writes the result and talks; what the others would write goes into a folder of
their own in its scratch.
"""

import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import PartialState

from equipoise.errors import ConfigError
from equipoise.lineage import Outcome, Run, Step, produce
from equipoise.models.backbone import pick_device


def produce_together(out: Path, step: Step, config: Any, *, force: bool = False) -> Outcome | None:
    """`lineage.produce` of a training, by all processes of a launch; None in all but the first.

    Where the launcher asks for FSDP the training is told so (`optim.shard`), and accelerate is not: it
    knows FSDP on accelerators alone, and on CPUs leaves it out without a word.

    Raises:
        ConfigError: This kind of training takes no steps to share, or has no weights to split.
    """
    shards = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return produce(out, step, config, force=force)
    optim = getattr(config, "optim", None)
    if optim is None:
        raise ConfigError(f"{step.name}: is no work for several processes, got {count}; expected one")
    if shards and not hasattr(optim, "shard"):
        raise ConfigError(f"{step.name}: splits no weights, got FSDP; expected a launch without it")
    if shards:
        config = config.model_copy(update={"optim": optim.model_copy(update={"shard": True})})
    device = getattr(config, "roles", optim).device
    state = PartialState(cpu=pick_device(device).type == "cpu")
    outcome = None
    if state.is_main_process:
        outcome = _lead(out, step, config, force)
    else:
        _follow(step, config, state.process_index)
    state.destroy_process_group()
    return outcome


def _lead(out: Path, step: Step, config: Any, force: bool) -> Outcome:
    """Produce, and tell the others where, or that there is nothing to do."""
    is_told = False

    def tell(scratch: Path | None) -> None:
        nonlocal is_told
        dist.broadcast_object_list([scratch and str(scratch)], src=0)
        is_told = True

    def build(config: Any, run: Run) -> None:
        tell(run.scratch)
        step.build(config, run)
        dist.barrier()  # the scratch goes away behind it

    try:
        return produce(out, step._replace(build=build), config, force=force)
    finally:
        if not is_told:
            tell(None)


def _follow(step: Step, config: Any, process: int) -> None:
    """Take part, silently, and leave nothing."""
    heard: list[str | None] = [None]
    dist.broadcast_object_list(heard, src=0)
    if heard[0] is None:
        return
    shared = Path(heard[0])
    place = shared / f"process-{process}"
    (place / "scratch").mkdir(parents=True, exist_ok=True)
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        step.build(config, Run(place, place / "scratch", shared=shared))
    dist.barrier()
