"""What a training asks for: memory, told before anything is loaded, and steps; layers computed twice."""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from equipoise.errors import ConfigError
from equipoise.models.backbone import add_lora, pick_device, pick_dtype, quiet
from equipoise.models.builtin import resolve
from equipoise.progress import say
from equipoise.training.optim import OptimSettings
from equipoise.training.policy import LoraSettings, Tune, learn_top, weights_in

_GIB = 1024**3


class Footprint(NamedTuple):
    """Bytes that a policy under training holds, activations apart."""

    weights: int
    learning: int
    """Gradients and the two moments of AdamW."""


def footprint(
    ref: str | Path, tune: Tune, lora: LoraSettings, device: str = "auto", *, top_layers: int = 0
) -> Footprint | None:
    """Return what a policy will hold, from the config in its folder; None where that is not on this disk.

    Raises:
        ModelError: It has no such top layers.
    """
    place = resolve(ref)
    if not isinstance(place, Path):
        return None
    try:
        if (place / "adapter_config.json").is_file():  # is merged into its base
            base = json.loads((place / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
            return footprint(base, tune, lora, device, top_layers=top_layers)
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=True)
            number = pick_dtype(weights_in(tune), pick_device(device))
            model = AutoModelForCausalLM.from_config(config, dtype=number)
            if tune == "lora":
                model = add_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
            if tune == "top":
                learn_top(model, top_layers)
    except (OSError, ValueError, KeyError):
        return None  # who loads it says what is wrong
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return Footprint(sum(size for size, _ in sizes), 3 * sum(size for size, learns in sizes if learns))


def say_footprint(
    ref: str | Path, tune: Tune, lora: LoraSettings, device: str = "auto", *, top_layers: int = 0
) -> None:
    """Tell what a policy will hold, in one line, where that is known."""
    found = footprint(ref, tune, lora, device, top_layers=top_layers)
    if found is not None:
        say(
            f"{ref}: about {found.weights / _GIB:.2f} GiB of weights and {found.learning / _GIB:.2f} GiB of"
            " gradients and optimiser state, and activations"
        )


def say_work(lengths: Sequence[int], optim: OptimSettings) -> None:
    """Tell how many steps a training takes, over how many tokens; an early stop takes fewer."""
    steps = optim.epochs * math.ceil(len(lengths) / optim.batch_size)
    say(f"{steps:,} steps over {optim.epochs * sum(lengths):,} tokens")


@contextmanager
def recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Keep the inputs of layers alone and compute these again in the backward pass, as long as it lasts.

    Gradient checkpointing, Chen et al. 2016. Same numbers, dropout too.

    Raises:
        ConfigError: The module has no model whose layers can be computed again.
    """
    if not wanted:
        yield
        return
    found = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if found is None or not found.supports_gradient_checkpointing:
        name = "features made before" if found is None else type(found).__name__
        raise ConfigError(f"optim.gradient_checkpointing: {name} cannot be computed again; expected false")
    with _new_names():
        found.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # only the reentrant kind needs inputs with gradients; they would have frozen layers go backward too
    found.disable_input_require_grads()
    try:
        yield
    finally:
        with _new_names():
            found.gradient_checkpointing_disable()


@contextmanager
def _new_names() -> Iterator[None]:
    """Silence one notice: the newest transformers have other names for this, and keep the old ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`gradient_checkpointing_", FutureWarning)
        yield
