"""Losses that learn a policy from single responses, each desirable or not. No pair is needed.

Each loss takes `LabelledLogps` and returns one value per response, [R]; the trainer reduces.

Shapes: R responses.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.objectives.preference import above_zero, not_below_zero


class LabelledLogps(NamedTuple):
    """Responses and whether they are wanted, all [R]; log-probabilities in nats of the whole response."""

    policy: Tensor
    reference: Tensor
    desirable: Tensor
    """1.0 desirable, 0.0 undesirable."""
    baseline: Tensor
    """KTO's z, one number for the whole optimiser step; see `kto_baseline`."""

    @property
    def log_ratio(self) -> Tensor:
        """How much more likely than under the reference the response is, nats, [R]."""
        return self.policy - self.reference


def kto(
    rows: LabelledLogps,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w_d s(-beta (r - z)) if desirable, else w_u s(beta (r - z)), [R]. Ethayarajh et al. 2024, eq. 8 (KTO).

    r is the log-ratio of policy to reference, z the baseline, through which no gradient flows. The
    weights are the paper's lambdas; it advises w_d n_d / (w_u n_u) between 1 and 3/2.
    """
    above_zero("kto", beta=beta)
    not_below_zero("kto", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    z = beta * (rows.log_ratio - rows.baseline.detach())
    wanted = rows.desirable == 1
    return torch.where(wanted, desirable_weight, undesirable_weight) * torch.sigmoid(
        torch.where(wanted, -z, z)
    )


def kto_baseline(log_ratios: Tensor) -> Tensor:
    """max(0, mean log-ratio) of responses to *other* prompts, [N] -> []: KTO's estimate of the KL.

    Ethayarajh et al. 2024, who take it over a micro-batch; it must be over the whole optimiser step, or
    the loss depends on how the step is split.
    """
    return log_ratios.detach().mean().clamp(min=0)


UNPAIRED_LOSSES: dict[str, Callable[..., Tensor]] = {"kto": kto}
