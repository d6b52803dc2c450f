"""Log-probabilities of the reference: the model as it was loaded, asked once before the first step.

They are kept in the cache under a name made of all that decides them, so that a training with another
objective, another value of a knob or another seed does not ask again where it has the same rows.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from equipoise.errors import ConfigError, ModelError, disk_error
from equipoise.machine import processor
from equipoise.models.builtin import cache_folder
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.layout import Row, response_logps, token_budget_batches
from equipoise.progress import say, track

_VERSION = 1
"""Rises when the same rows under the same weights would get other numbers."""


def shared_folder() -> Path:
    """Return the folder that all runs share, which can be written; else ConfigError."""
    folder = cache_folder() / "reference"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="tmp.", dir=folder):
            return folder
    except OSError as exc:
        raise ConfigError(
            f"keep_reference: {folder}: {exc.strerror}; expected a folder that can be written, or"
            " keep_reference=false"
        ) from exc


class ReferenceCache:
    """Where the log-probabilities of one model on one machine are kept."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        *,
        tokens_per_batch: int,
        bf16: bool,
        top_layers: int = 0,
        below: Sequence[Row] = (),
    ) -> None:
        """Take the content of the model's weights, and how it will be asked.

        Args:
            folder: Of all that is kept.
            model: As it was loaded, before anything in it learns; fresh adapters change nothing that it says.
            tokens_per_batch: Which rows keep each other company, and with it the last bits.
            bf16: Whether it is asked in bfloat16 autocast.
            top_layers: How many layers are run on what the others made before, 0 for all.
            below: The rows that the others are run on, in their order, where `top_layers` is not 0.
        """
        self.folder, self.tokens_per_batch, self.bf16 = folder, tokens_per_batch, bf16
        machine = _machine(next(model.parameters()).device)
        self.asked = [_VERSION, hash_weights(model), machine, tokens_per_batch, bf16]
        self.asked += [top_layers, _hash(map(json.dumps, below if top_layers else ()))]

    def logps(self, policy: nn.Module, rows: Sequence[Row], *, each_token: bool = False) -> list[Tensor]:
        """Log-probabilities of the responses of each row, see `reference_logps`.

        Rows are asked in an order of their own: that of a training is drawn by its seed.
        """
        order = sorted(range(len(rows)), key=lambda i: rows[i])
        asked = [rows[i] for i in order]
        name = _hash([json.dumps([*self.asked, each_token]), *map(json.dumps, asked)])
        found = reference_logps(
            policy,
            asked,
            self.folder / f"{name}.safetensors",
            tokens_per_batch=self.tokens_per_batch,
            bf16=self.bf16,
            each_token=each_token,
        )
        own = dict(zip(order, found, strict=True))
        return [own[i] for i in range(len(rows))]


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's settings and of the name, type, shape and bytes of all it holds."""
    settings: Any = getattr(model, "config", None)
    told = {} if settings is None else settings.to_dict()
    for name in ("_name_or_path", "transformers_version"):  # neither tells what is computed
        told.pop(name, None)
    told["attention"] = getattr(settings, "_attn_implementation", None)
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()[:32]


def _machine(device: torch.device) -> list[str | int]:
    """What else decides the last bits of a number."""
    told: list[str | int] = [
        torch.__version__,
        transformers.__version__,
        torch.get_float32_matmul_precision(),
    ]
    if device.type == "cuda":
        return [*told, torch.cuda.get_device_name(device)]
    return [*told, device.type, processor(), torch.get_num_threads()]


def reference_logps(
    policy: nn.Module,
    rows: Sequence[Row],
    path: Path,
    *,
    tokens_per_batch: int,
    bf16: bool = False,
    each_token: bool = False,
) -> tuple[Tensor, ...]:
    """Log-probability in nats of each response of each row, one tensor a row, read from `path` if there.

    Every row is computed with the same company and dropout off, so nothing depends on the plan of the
    training. `bf16` computes in bfloat16 autocast, as a training with it does: before the first step policy
    and reference then differ by no more than rounding in another company. `each_token` gives one number for
    each token of the responses, one response behind the other. What cannot be kept in `path` is told, and
    the numbers are returned all the same.
    """
    counts = [sum(map(len, row.responses)) if each_token else len(row.responses) for row in rows]
    known = _read(path, sum(counts))
    if not _in_all_processes(known is not None):  # none waits for what another computes
        known = None
    if known is None:
        out: list[Tensor] = [torch.empty(0)] * len(rows)
        policy.eval()
        device = next(policy.parameters()).device.type
        groups = token_budget_batches([row.length for row in rows], tokens_per_batch)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            for group in track(groups, "reference"):
                found = response_logps(policy, [rows[i] for i in group])
                values = (found.tokens if each_token else found.sums).float().cpu()
                for i, own in zip(group, torch.split(values, [counts[i] for i in group]), strict=True):
                    out[i] = own
        known = torch.cat(out)
        _keep(path, known)
    return torch.split(known, counts)


def _read(path: Path, count: int) -> Tensor | None:
    """Return `count` numbers that are kept; None where there are none, or where they are broken."""
    if not path.exists():
        return None
    try:
        found = load_tensors(path).get("logps")
    except (ModelError, OSError):
        found = None
    if found is None or found.shape != (count,):
        say(f"{path}: broken, so the reference is asked again")
        return None
    return found.clone()  # or it would hang on a file that may go


def _keep(path: Path, logps: Tensor) -> None:
    try:
        save_tensors(path, {"logps": logps})
    except (OSError, SafetensorError) as exc:
        full = disk_error(exc)
        if full is None:
            raise
        say(f"{path}: {full.strerror}, so what the reference says is not kept")


def _in_all_processes(here: bool) -> bool:
    if not dist.is_initialized():
        return here
    found = [False] * dist.get_world_size()
    dist.all_gather_object(found, here)
    return all(found)
