"""Weights, gradients and optimiser state split over the processes of a training, and whole again.

FSDP (Zhao et al. 2023) as torch's `fully_shard` has it. What is written is always whole, in the form that
it has without: a run may go on with another number of processes, split or not. Whatever makes a tensor
whole is asked for by all processes together.
"""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from equipoise.models.checkpoints import load_into, trainable


def shard(model: nn.Module, device: str) -> None:
    """Split a model over all processes; each layer is made whole where it is computed, and no longer.

    Args:
        model: The same in all processes.
        device: Type of the device it is on.
    """
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    kinds = {name for part in parts for name in part._no_split_modules or ()}
    for stack in [part for part in model.modules() if isinstance(part, nn.ModuleList)]:
        for layer in stack:
            if type(layer).__name__ in kinds:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    """Return a tensor whole."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, whole."""
    return {name: whole(value) for name, value in trainable(model).items()}


def load(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy whole tensors into a model, split or not; one that does not fit raises ModelError."""
    own = model.state_dict()
    load_into(model, {name: _as(own.get(name), value) for name, value in tensors.items()}, where)


def join(model: nn.Module) -> None:
    """Make a split model whole, for good."""
    seen: dict[int, nn.Parameter] = {}  # tied weights are one
    for part in model.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            if isinstance(value, DTensor):
                if id(value) not in seen:
                    seen[id(value)] = nn.Parameter(value.full_tensor().detach(), value.requires_grad)
                part.register_parameter(name, seen[id(value)])


def optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimiser with its tensors whole, on the CPU."""
    found = {
        number: {k: whole(v).cpu() if isinstance(v, Tensor) else v for k, v in own.items()}
        for number, own in state["state"].items()
    }
    return state | {"state": found}


def split_state(state: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a whole state of an optimiser with its tensors split as the parameters of its groups are."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    found = {
        number: {k: _as(parameters[number], v) if k != "step" else v for k, v in own.items()}
        for number, own in state["state"].items()
    }
    return state | {"state": found}


def _as(like: Tensor | None, value: Tensor) -> Tensor:
    """Return a whole tensor split as another one of its shape is."""
    if not isinstance(like, DTensor) or like.shape != value.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
