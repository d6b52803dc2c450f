"""What a rollout brings: responses, their scores, and what actor, reference and critics say of each token.

Which prompts come and with what seed they are answered are functions of the run's seed and the update's
number, so that a run that is resumed goes on with the same rollout.

Shapes: P prompts with K responses each, R = P K responses and N tokens of them, prompt after prompt; S
signals, the reward first and then the costs of M constraints.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.errors import ConfigError, RunStoppedError
from equipoise.generation.local import LocalGenerator
from equipoise.generation.rollouts import Rollout, rows_of
from equipoise.models.layout import Row, token_budget_batches
from equipoise.models.roles import Roles
from equipoise.models.roles_load import ACTOR, CRITIC, REFERENCE
from equipoise.policy.ranks import gathered, share
from equipoise.policy.scoring import Scoring, Signals
from equipoise.policy.settings import REWARD, OnlineConfig
from equipoise.policy.writing import Write, writer
from equipoise.progress import silent
from equipoise.protocols import Sampling
from equipoise.records import Prompt


@dataclass(frozen=True)
class Experience:
    """A rollout with all that is learned from it; tensors on the CPU."""

    rollouts: tuple[Rollout, ...]
    """R of them."""
    signals: Signals
    rows: tuple[Row, ...]
    """P of them, each with the K responses to its prompt."""
    slots: Tensor
    """[N] response of each token."""
    logps: Tensor
    """[N] in nats, of the actor before it learns, computed as it learns; as drawn where there is one step,
    which knows them itself, and no engine."""
    ref_logps: Tensor
    """[N]"""
    values: Tensor | None
    """[N, S] of the critics; None where there are none."""
    drift: float | None
    """Largest difference in nats between `logps` and those of tokens as they were drawn; None where the
    engine that drew gives none."""
    engine_gap: float | None = None
    """Mean difference in nats, of an engine."""

    @property
    def scores(self) -> Tensor:
        """Reward and raw costs, [R, S]."""
        return torch.cat([self.signals.reward[:, None], self.signals.costs], dim=1)

    @property
    def kl(self) -> Tensor:
        """Log-probability under the actor less that under the reference, [N], nats."""
        return self.logps - self.ref_logps


class Said(NamedTuple):
    """What a role says of rows, in their order: log-probabilities [N] and values [N, S]."""

    logps: Tensor
    values: Tensor | None


class _Part(NamedTuple):
    """What one process brings."""

    rollouts: list[Rollout]
    signals: Signals
    actor: Said
    reference: Said
    values: Tensor | None


def turn(size: int, count: int, number: int, seed: str) -> list[int]:
    """Return which `count` of `size` things have their turn, none twice, in an order of its own every epoch.

    Of an epoch's order the rest that makes no whole turn is left out.

    >>> sorted(turn(4, 2, 0, "a") + turn(4, 2, 1, "a"))
    [0, 1, 2, 3]
    """
    epoch, place = divmod(number, size // count)
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[place * count : (place + 1) * count]


def seed_of(seed: int, update: int) -> int:
    """Return the seed of an update's random numbers, 0 to 2^32 - 1."""
    return random.Random(f"{seed}/update/{update}").getrandbits(32)


def collect(
    config: OnlineConfig,
    roles: Roles,
    scoring: Scoring,
    prompts: Sequence[Prompt],
    update: int,
    *,
    clock: Callable[[str], None] = lambda _: None,
) -> Experience:
    """Roll out, score and read; nothing that is trained changes.

    Args:
        config: The run's settings.
        roles: None in use.
        scoring: Gives reward and costs of rollouts; may use roles.
        prompts: All prompts of the run, of which the update's are taken.
        update: Number of the update, from 0.
        clock: Told what begins: `rollout`, `score` and `learn`.

    Raises:
        RunStoppedError: A score is not finite, or the engine does not write.
        ConfigError: `scoring` gives other numbers of scores than it should.
    """
    clock("rollout")
    part: _Part | RunStoppedError
    with writer(config, roles, update) as write:
        try:
            part = _collect_share(config, roles, scoring, prompts, write, update=update, clock=clock)
        except RunStoppedError as exc:
            part = exc  # of one process; all of them are to stop
        brought = gathered(part)
    parts = []
    for found in brought:
        if isinstance(found, RunStoppedError):
            raise found
        parts.append(found)
    return _joined(parts, has_engine=config.rollout.engine is not None)


def _collect_share(
    config: OnlineConfig,
    roles: Roles,
    scoring: Scoring,
    prompts: Sequence[Prompt],
    write: Write,
    *,
    update: int,
    clock: Callable[[str], None],
) -> _Part:
    """Return what this process's prompts bring."""
    chosen = turn(len(prompts), config.rollout.prompts, update, f"{config.seed}/prompts")
    mine = [prompts[i] for i in share(chosen)]
    sampling = Sampling(
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=1.0,
        samples=config.rollout.samples,
        seed=seed_of(config.seed, update),
    )
    with silent(), roles.use(ACTOR, learning=False) as actor:
        written = write(LocalGenerator(actor.backbone, batch_size=config.rollout.batch_size), mine, sampling)
    rollouts = [rollout for responses in written for rollout in responses]
    clock("score")
    signals = _checked(scoring(rollouts), rollouts, config.signals[1:], update)
    clock("learn")
    rows, budget = rows_of(rollouts), config.micro_tokens
    said = {name: read(roles, name, rows, budget) for name in (REFERENCE, CRITIC) if name in roles.roles}
    is_known = config.takes_one_step and config.rollout.engine is None
    if is_known and config.kl.place == "loss" and ACTOR not in roles.heads:
        own = Said(torch.tensor([logp for rollout in rollouts for logp in rollout.logps]), None)
    else:
        own = read(roles, ACTOR, rows, budget)
    return _Part(rollouts, signals, own, said[REFERENCE], said.get(CRITIC, own).values)


@torch.no_grad()
def read(roles: Roles, name: str, rows: Sequence[Row], tokens_per_batch: int) -> Said:
    """Ask a role for log-probabilities and values of all response tokens, on the CPU."""
    logps: list[Tensor] = [torch.empty(0)] * len(rows)
    values: list[Tensor] = [torch.empty(0)] * len(rows)
    has_values = False
    with roles.use(name, learning=False) as role:
        for group in token_budget_batches([row.length for row in rows], tokens_per_batch):
            found = role.read([rows[i] for i in group])
            counts = [sum(map(len, rows[i].responses)) for i in group]
            has_values = found.values is not None
            for out, tokens in ((logps, found.logps.tokens), (values, found.values)):
                if tokens is not None:
                    for i, own in zip(group, torch.split(tokens.float().cpu(), counts), strict=True):
                        out[i] = own
    return Said(torch.cat(logps), torch.cat(values) if has_values else None)


def _joined(parts: Sequence[_Part], *, has_engine: bool) -> Experience:
    rollouts = tuple(rollout for part in parts for rollout in part.rollouts)
    signals = [part.signals for part in parts]
    severities = [s.severity for s in signals if s.severity is not None]
    values = [part.values for part in parts if part.values is not None]
    logps = torch.cat([part.actor.logps for part in parts])
    drawn = torch.tensor([logp for rollout in rollouts for logp in rollout.logps or _unknown(rollout)])
    apart = (logps - drawn).abs()[~drawn.isnan()]
    lengths = torch.tensor([len(rollout.ids) for rollout in rollouts])
    return Experience(
        rollouts,
        Signals(
            torch.cat([s.reward for s in signals]),
            torch.cat([s.costs for s in signals]),
            torch.cat(severities) if severities else None,
            {name: torch.cat([s.groups[name] for s in signals]) for name in signals[0].groups},
            signals[0].is_signed,
        ),
        tuple(rows_of(rollouts)),
        torch.repeat_interleave(lengths),
        logps,
        torch.cat([part.reference.logps for part in parts]),
        torch.cat(values) if values else None,
        apart.max().item() if len(apart) else None,
        apart.mean().item() if has_engine and len(apart) else None,
    )


def _unknown(rollout: Rollout) -> list[float]:
    """Stand for what an engine says nothing of."""
    return [math.nan] * len(rollout.ids)


def _checked(signals: Signals, rollouts: Sequence[Rollout], names: Sequence[str], update: int) -> Signals:
    """Return signals as 32-bit numbers on the CPU, as many as there should be, and finite."""
    reward, costs = (tensor.detach().float().cpu() for tensor in (signals.reward, signals.costs))
    severity = None if signals.severity is None else signals.severity.detach().float().cpu()
    groups = {name: given.detach().float().cpu() for name, given in signals.groups.items()}
    shapes = tuple(reward.shape), tuple(costs.shape)
    wanted = (len(rollouts),), (len(rollouts), len(names))
    if shapes != wanted:
        raise ConfigError(
            f"scoring: got rewards of shape {shapes[0]} and costs of shape {shapes[1]}; "
            f"expected {wanted[0]} and {wanted[1]}, a column for each of: {', '.join(names) or 'none'}"
        )
    for name, given in groups.items():
        if given.shape != wanted[0]:
            got = tuple(given.shape)
            raise ConfigError(f"scoring: got rewards of group '{name}' of shape {got}; expected {wanted[0]}")
    of_groups = ((f"reward of group '{name}'", given) for name, given in groups.items())
    for name, column in ((REWARD, reward), *of_groups, *zip(names, costs.unbind(dim=1), strict=True)):
        bad = (~column.isfinite()).nonzero().flatten().tolist()
        if bad:
            first = rollouts[bad[0]].exchange.id
            raise RunStoppedError(
                f"update {update + 1}: {name} of '{first}' is {column[bad[0]].item()}"
                f" ({len(bad)} of {len(rollouts)} are not finite); nothing was learned from it"
            )
    return Signals(reward, costs, severity, groups, signals.is_signed)
