"""Merge policies that began from the same weights: theta = sum_i w_i theta_i.

Rewarded soups (Rame et al. 2023) and the last step of P-SACPO (Wachi et al. 2024): models that were tuned
from one start lie on a line along which wishes are traded, without any training. Of adapters the products
are merged, exactly: the mean of two products is not the product of two means, so matrices A and B are never
averaged each by itself but put side by side, and the merged adapter's rank is the sum of the ranks. Where the
models are not plain adapters of one base, whole weights are merged.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from equipoise.config import Config, ModelRef
from equipoise.errors import ModelError
from equipoise.files import usual_permissions
from equipoise.lineage import Run, Step, write_text
from equipoise.models.backbone import load_causal, load_tokenizer, quiet
from equipoise.models.builtin import resolve
from equipoise.models.checkpoints import load_tensors, save_tensors

_PLAIN_LORA: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "trainable_token_indices": ([], None),
    "target_parameters": ([], None),
    "layer_replication": (None,),
    "alora_invocation_tokens": ([], None),
    "use_qalora": (False, None),
}
"""What an adapter's config may say if its update is alpha / r times the product of two matrices."""


class MergeConfig(Config):
    """Settings of `models merge`."""

    models: tuple[ModelRef, ...] = Field(min_length=2)
    """Tuned from the same weights."""
    weights: tuple[float, ...]
    """Of each model; they sum to 1. One below 0 goes beyond the other models."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> "MergeConfig":
        if len(self.weights) != len(self.models):
            raise ValueError(
                f"weights: got {len(self.weights)}; expected one for each of {len(self.models)} models"
            )
        if not abs(sum(self.weights) - 1) <= 1e-6:
            raise ValueError(f"weights: sum to {sum(self.weights):g}; expected 1")
        return self


class _Adapter:
    """A LoRA adapter as it lies in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "adapter_config.json"
        try:
            self.config: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except ValueError as exc:
            raise ModelError(f"{path}: not JSON; expected an adapter of peft") from exc
        self.tensors = load_tensors(folder / "adapter_model.safetensors")

    @property
    def is_plain(self) -> bool:
        """Whether its update is alpha / r times the product of two matrices, and nothing else."""
        return all(self.config.get(name, usual[-1]) in usual for name, usual in _PLAIN_LORA.items()) and all(
            name.endswith((".lora_A.weight", ".lora_B.weight")) for name in self.tensors
        )

    @property
    def scale(self) -> float:
        return float(self.config["lora_alpha"]) / float(self.config["r"])


def merge_models(
    models: Sequence[str | Path], weights: Sequence[float], out: Path
) -> Literal["adapter", "whole model"]:
    """Write the weighted sum of models into the folder `out`; return what it is.

    A weight of 0 leaves its model out, so the ends of the line are the models themselves, bit for bit.

    Raises:
        ModelError: The models differ in their tensors or tokenizers, so no start can be common to them.
    """
    parts = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight != 0]
    adapters = _adapters([model for model, _ in parts])
    if adapters is not None:
        _merge_adapters(adapters, [weight for _, weight in parts], out)
        return "adapter"
    _merge_whole(parts, out)
    return "whole model"


def _adapters(models: Sequence[str | Path]) -> list[_Adapter] | None:
    """Return the models as plain adapters of one base, or None where they are not."""
    places = [resolve(model) for model in models]
    folders = [place for place in places if isinstance(place, Path)]
    if len(folders) < len(places) or not all((f / "adapter_config.json").is_file() for f in folders):
        return None
    found = [_Adapter(folder) for folder in folders]
    bases = {adapter.config.get("base_model_name_or_path") for adapter in found}
    same = len(bases) == 1 and all(adapter.tensors.keys() == found[0].tensors.keys() for adapter in found)
    return found if same and all(adapter.is_plain for adapter in found) else None


def _merge_adapters(adapters: Sequence[_Adapter], weights: Sequence[float], out: Path) -> None:
    first = adapters[0]
    config, tensors = first.config, first.tensors
    if len(adapters) > 1 or weights[0] != 1:
        rank = sum(int(adapter.config["r"]) for adapter in adapters)
        config = config | {"r": rank, "lora_alpha": rank}  # a scale of 1: ours is in B
        tensors = {name: _side_by_side(name, adapters, weights) for name in tensors}
    if (first.folder / "tokenizer_config.json").is_file():
        load_tokenizer(first.folder).save_pretrained(out)
    save_tensors(out / "adapter_model.safetensors", tensors)
    write_text(out / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True))


def _side_by_side(name: str, adapters: Sequence[_Adapter], weights: Sequence[float]) -> Tensor:
    """[sum r, in] of matrices A; [out, sum r] of matrices B, each times its weight and scale."""
    try:
        if name.endswith(".lora_A.weight"):
            return torch.cat([adapter.tensors[name] for adapter in adapters], dim=0)
        scaled = [a.tensors[name] * (w * a.scale) for a, w in zip(adapters, weights, strict=True)]
        return torch.cat(scaled, dim=1)
    except RuntimeError as exc:
        raise ModelError(f"{adapters[-1].folder}: tensor '{name}' has another shape than the first") from exc


@torch.no_grad()
def _merge_whole(parts: Sequence[tuple[str | Path, float]], out: Path) -> None:
    (first, share), *rest = parts
    backbone = load_causal(first, dtype="float32", device="cpu", merge=True)
    model = cast(Any, backbone.model)
    merged = dict(model.named_parameters())  # tied weights come once
    for tensor in merged.values():
        tensor.mul_(share)
    for ref, weight in rest:
        other = load_causal(ref, dtype="float32", device="cpu", merge=True)
        if other.tokenizer.get_vocab() != backbone.tokenizer.get_vocab():
            raise ModelError(f"{ref}: has another tokenizer than {first}; expected models of the same start")
        added = dict(cast(Any, other.model).named_parameters())
        _check_alike(merged, added, f"{ref}: does not fit {first}")
        for name, tensor in merged.items():
            tensor.add_(added[name], alpha=weight)
    if not all(math.isfinite(float(tensor.sum())) for tensor in merged.values()):
        raise ModelError(f"{out}: the merged weights are not finite")
    backbone.tokenizer.save_pretrained(out)
    with quiet():
        model.save_pretrained(out)
    usual_permissions(out)


def _check_alike(one: dict[str, Tensor], other: dict[str, Tensor], where: str) -> None:
    for name in one.keys() | other.keys():
        shapes = [list(found[name].shape) if name in found else "none" for found in (one, other)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"{where}: tensor '{name}' has shape {shapes[1]}, expected {shapes[0]};"
                " only models of the same start can be merged"
            )


def merge(config: MergeConfig, run: Run) -> None:
    """Merge models into `run.out`."""
    form = merge_models(config.models, config.weights, run.out)
    run.notes |= {"form": form, "models": list(config.models), "weights": list(config.weights)}


MERGE = Step("models.merge", 1, merge, config=MergeConfig)
