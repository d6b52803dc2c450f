"""Log-probabilities of the reference: the model as it was loaded, asked once before the first step."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.layout import Row, response_logps, token_budget_batches
from equipoise.progress import track


def reference_logps(
    policy: nn.Module, rows: Sequence[Row], path: Path, *, tokens_per_batch: int, bf16: bool = False
) -> tuple[Tensor, ...]:
    """Log-probability in nats of each response of each row, one tensor a row, read from `path` if there.

    Every row is computed with the same company and dropout off, so nothing depends on the plan of the
    training. `bf16` computes in bfloat16 autocast, as a training with it does: before the first step policy
    and reference then differ by no more than rounding in another company.
    """
    counts = [len(row.responses) for row in rows]
    if not path.exists():
        out: list[Tensor] = [torch.empty(0)] * len(rows)
        policy.eval()
        device = next(policy.parameters()).device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            for group in track(
                token_budget_batches([row.length for row in rows], tokens_per_batch), "reference"
            ):
                sums = response_logps(policy, [rows[i] for i in group]).sums.float().cpu()
                for i, found in zip(group, torch.split(sums, [counts[i] for i in group]), strict=True):
                    out[i] = found
        save_tensors(path, {"logps": torch.cat(out)})
    return torch.split(load_tensors(path)["logps"], counts)
