"""The weight of the divergence among advantages, which is to be the same whatever the multipliers are."""

from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise.config import parse_config
from equipoise.errors import ConfigError
from equipoise.policy.credit import credit
from equipoise.policy.experience import Experience
from equipoise.policy.scoring import Signals
from equipoise.policy.settings import GroupLagConfig, KlSettings, OnlineConfig, PpoLagConfig

GIVEN: dict[str, Any] = {
    "prompts": ["a.jsonl"],
    "roles": {"policy": "tiny"},
    "rollout": {"prompts": 2, "samples": 4},
    "optim": {"minibatches": 1},
}
BETA = 0.3
WAYS: list[tuple[type[OnlineConfig], dict[str, Any]]] = [
    *((PpoLagConfig, {"whiten": whiten}) for whiten in ("apart", "together", "none")),
    *(
        (
            GroupLagConfig,
            {"estimator": estimator} | ({"scale": scale} if estimator in ("grpo", "repo") else {}),
        )
        for estimator, scale in product(("grpo", "rloo", "reinforce", "repo"), ("batch", "group", "none"))
    ),
]
PLACES = ("loss", "reward")


def experience(step: float) -> Experience:
    """Two prompts, the first within the budget, with two pairs of responses that differ in divergence alone.

    That of one of a pair goes up by the step and that of the other down, so that the deviations by which
    advantages are divided are the same for a step there and back.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    length = 3
    reward = drawn(4).repeat_interleave(2)
    costs = 5 * torch.tensor([-1.0, -0.5, 0.2, 1.5], dtype=torch.float64).repeat_interleave(2)[:, None]
    values = drawn(4, length, 2).repeat_interleave(2, 0).flatten(0, 1)
    moved = torch.stack([way := drawn(4, length), -way], 1).flatten()
    common = drawn(4, length).repeat_interleave(2, 0).flatten()
    slots = torch.arange(8).repeat_interleave(length)
    ref = drawn(len(slots))
    return Experience(
        (), Signals(reward, costs, None), (), slots, ref + common + step * moved, ref, values, 0.0
    )


def weight(config: OnlineConfig, multiplier: float, step: float = 1e-3) -> Tensor:
    """What a nat of divergence changes in advantages, [N]."""
    up, down = (credit(config, experience(s), [multiplier], [0.0]).advantages for s in (step, -step))
    return (up - down) / (2 * step)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("kind", "more"), WAYS, ids=lambda way: "-".join(way.values()) if way is dict else None
)
def test_settings_are_refused_just_where_multipliers_change_the_weight_of_the_divergence(
    kind: type[OnlineConfig], more: dict[str, Any], place: str
) -> None:
    kl = {"beta": BETA, "place": place}
    config = parse_config(kind, GIVEN | more, "here").model_copy(update={"kl": KlSettings.model_validate(kl)})
    weights = [weight(config, multiplier) for multiplier in (0.0, 1.0, 10.0)]
    assert (weights[0].abs().max() > 0.01) == (place == "reward")
    is_same = all(torch.allclose(found, weights[0], rtol=1e-6, atol=1e-9) for found in weights)
    said = (
        nullcontext()
        if is_same
        else pytest.raises(ConfigError, match=r"^here: kl\.place: got reward with .*$")
    )
    with said:
        parse_config(kind, GIVEN | more | {"kl": kl}, "here")


def test_without_constraints_or_without_a_weight_the_divergence_stands_anywhere() -> None:
    in_reward = {"kl": {"beta": BETA, "place": "reward"}}
    kinds: tuple[type[OnlineConfig], ...] = (PpoLagConfig, GroupLagConfig)
    for kind in kinds:
        parse_config(kind, GIVEN | in_reward | {"constraints": []}, "here")
        parse_config(kind, GIVEN | {"kl": {"beta": 0, "place": "reward"}}, "here")
        with pytest.raises(ConfigError, match=r"here: kl\.place: got reward with .*expected kl\.place loss"):
            parse_config(kind, GIVEN | in_reward, "here")
