"""The steps of an update: actor, critics and what is to be remembered learn from one rollout.

A step's loss is a mean over its tokens (or responses), however it is cut into micro-batches or shared out
over processes: every token has its weight in it before the first pass.

Shapes: as in `experience.py`.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equipoise.config import bind
from equipoise.errors import RunStoppedError
from equipoise.models.layout import Row, token_budget_batches
from equipoise.models.roles import InUse, Roles
from equipoise.models.roles_load import ACTOR, CRITIC
from equipoise.objectives.kl import KL_ESTIMATORS
from equipoise.objectives.policy_gradient import (
    POLICY_LOSSES,
    PolicyTokens,
    ValueTokens,
    clipped_value,
    is_clipped,
)
from equipoise.objectives.policy_gradient import ptx as ptx_loss
from equipoise.objectives.sequence import sft
from equipoise.policy.credit import Credit
from equipoise.policy.experience import Experience, turn
from equipoise.policy.ranks import add_up_gradients, gathered, rank, world_size
from equipoise.policy.settings import OnlineConfig, PolicyOptim, PpoLagConfig

_CLIPPED: Callable[..., Tensor] = is_clipped


class Learned(NamedTuple):
    """What the steps of an update were like, in the mean over them."""

    policy_loss: float
    value_losses: tuple[float, ...]
    """Of the critics, in the order of the signals; none without critics."""
    ptx_loss: float | None
    """-log p of a token that is to be remembered, nats; None without such texts."""
    clip_fraction: float
    grad_norm: float
    """Of the actor, before it is clipped."""
    lr: float
    drift: float
    """Where one step is all: largest difference in nats between its log-probabilities and those before."""


class _Tokens(NamedTuple):
    """What a step or a part of it knows of its tokens, all [N] or [N, S]."""

    weights: Tensor
    """Share of each token in the step's loss."""
    old_logps: Tensor
    ref_logps: Tensor
    advantages: Tensor
    old_values: Tensor | None
    returns: Tensor | None


class Learner:
    """Actor and critics with their optimiser; `optimizer` holds all of its state."""

    def __init__(self, roles: Roles, config: OnlineConfig, ptx_rows: Sequence[Row] = ()) -> None:
        """Set the optimiser up.

        Args:
            roles: None in use.
            config: The run's settings.
            ptx_rows: Prompts with the answer that is to be remembered.
        """
        self.roles = roles
        self.config = config
        self.ptx_rows = ptx_rows
        self._drift = 0.0
        self.actor, self.critics = learners(roles)
        optim = config.optim
        groups = [{"params": self.actor, "lr": optim.lr, "weight_decay": optim.weight_decay}]
        if self.critics and isinstance(config, PpoLagConfig):
            groups.append({"params": self.critics, "lr": config.critic.lr, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, betas=optim.betas, fused=True)
        self._loss = bind("objective", POLICY_LOSSES, config.objective, config.objective_params)
        bounds = {name: value for name, value in config.objective_params.items() if name != "dual_clip"}
        self._is_clipped: Callable[[PolicyTokens], Tensor] = partial(_CLIPPED, **bounds)

    def learn(self, experience: Experience, credit: Credit, update: int) -> Learned:
        """Take all steps of an update, whose number is from 0.

        Raises:
            RunStoppedError: A loss or a gradient is not finite; that step was not taken.
        """
        optim = self.config.optim
        lr = optim.lr * rate(optim, update, self.config.updates)
        self.optimizer.param_groups[0]["lr"] = lr
        sums: list[Tensor] = []
        norms: list[float] = []
        self._drift = 0.0
        for number, chosen in enumerate(self._parts(len(experience.rows), update)):
            step = update * optim.minibatches * optim.epochs + number
            where = f"update {update + 1}: step {number + 1}"
            sums.append(self._step(experience, credit, chosen, step, where))
            norms.append(self._take(where))
        mean = (torch.stack(sums).sum(dim=0) / len(sums)).tolist()
        return Learned(
            policy_loss=mean[0],
            value_losses=tuple(mean[3:]),
            ptx_loss=mean[2] if self.ptx_rows else None,
            clip_fraction=mean[1],
            grad_norm=math.fsum(norms) / len(norms),
            lr=lr,
            drift=max(gathered(self._drift)),
        )

    def _parts(self, rows: int, update: int) -> Iterator[list[int]]:
        """Yield the rows of each step."""
        for epoch in range(self.config.optim.epochs):
            order = list(range(rows))
            random.Random(f"{self.config.seed}/minibatches/{update}/{epoch}").shuffle(order)
            pieces = self.config.optim.minibatches
            for first, last in pairwise(rows * i // pieces for i in range(pieces + 1)):
                yield order[first:last]

    def _step(
        self, experience: Experience, credit: Credit, chosen: Sequence[int], step: int, where: str
    ) -> Tensor:
        """Add up the gradients of one step, and return policy loss, share of clipped tokens, PTX loss and
        the critics' losses, [3 + S].
        """
        signals = 0 if credit.returns is None else credit.returns.shape[1]
        sums = torch.zeros(3 + signals, dtype=torch.float64)
        self.optimizer.zero_grad(set_to_none=True)
        batches = list(self._batches(experience, credit, chosen))
        with self.roles.use(ACTOR) as role:
            for rows, tokens in batches:
                said = role.read(rows)
                loss = self._policy_loss(said.logps.tokens, tokens, sums)
                if said.values is not None:
                    loss = loss + self._value_loss(said.values, tokens, sums)
                _go_back(loss, f"{where}: the policy's loss")
            if self.config.ptx is not None:
                self._remember(role, step, sums, where)
        if CRITIC in self.roles.roles:
            with self.roles.use(CRITIC) as role:
                for rows, tokens in batches:
                    values = role.read(rows).values
                    assert values is not None
                    _go_back(self._value_loss(values, tokens, sums), f"{where}: the critics' loss")
        return torch.stack(gathered(sums)).sum(dim=0)

    def _batches(
        self, experience: Experience, credit: Credit, chosen: Sequence[int]
    ) -> Iterator[tuple[list[Row], _Tokens]]:
        """Yield this process's micro-batches of a step."""
        counts = torch.tensor([sum(map(len, row.responses)) for row in experience.rows])
        ends = counts.cumsum(0)
        places = [torch.arange(int(ends[i] - counts[i]), int(ends[i])) for i in chosen]
        if self.config.mean_over == "tokens":
            weights = torch.full((len(experience.slots),), 1 / sum(map(len, places)))
        else:
            responses = sum(len(experience.rows[i].responses) for i in chosen)
            weights = 1 / (responses * torch.bincount(experience.slots)[experience.slots])
        lengths = [experience.rows[i].length for i in chosen]
        groups = token_budget_batches(lengths, self.config.micro_tokens)
        for group in groups[rank() :: world_size()]:
            at = torch.cat([places[i] for i in group])
            columns = (weights, experience.logps, experience.ref_logps, credit.advantages)
            critics = (experience.values, credit.returns)
            yield (
                [experience.rows[chosen[i]] for i in group],
                _Tokens(
                    *(self._to(column[at]) for column in columns),
                    *(None if column is None else self._to(column[at]) for column in critics),
                ),
            )

    def _policy_loss(self, logps: Tensor, tokens: _Tokens, sums: Tensor) -> Tensor:
        old = tokens.old_logps
        if self.config.takes_one_step:
            old = logps.detach()  # exact, where those before may be the decoder's
            self._drift = max(self._drift, (old - tokens.old_logps).abs().max().item())
        policy = PolicyTokens(logps, old, tokens.advantages)
        losses = self._loss(policy)
        own: Tensor = losses @ tokens.weights
        sums[0] += own.item()
        if self.config.objective == "ppo":
            sums[1] += (self._is_clipped(policy).to(tokens.weights) @ tokens.weights).item()
        kl = self.config.kl
        if kl.place == "loss" and kl.beta:
            distance = KL_ESTIMATORS[kl.estimator or "k2"](logps, tokens.ref_logps)
            own = own + kl.beta * (distance @ tokens.weights)
        return own

    def _value_loss(self, values: Tensor, tokens: _Tokens, sums: Tensor) -> Tensor:
        assert isinstance(self.config, PpoLagConfig)
        assert tokens.old_values is not None
        assert tokens.returns is not None
        critics = ValueTokens(values, tokens.old_values, tokens.returns)
        losses = tokens.weights @ clipped_value(critics, clip=self.config.critic.clip)  # [S]
        sums[3:] += losses.detach().cpu()
        return self.config.critic.coef * losses.sum()

    def _remember(self, role: InUse, step: int, sums: Tensor, where: str) -> None:
        assert self.config.ptx is not None
        count = min(self.config.ptx.batch_size, len(self.ptx_rows))
        mine = turn(len(self.ptx_rows), count, step, f"{self.config.seed}/ptx")
        rows = [self.ptx_rows[i] for i in mine]
        terms = sum(len(response) for row in rows for response in row.responses)
        budget = self.config.micro_tokens
        groups = token_budget_batches([row.length for row in rows], budget)
        for group in groups[rank() :: world_size()]:
            logps = role.read([rows[i] for i in group]).logps.tokens
            sums[2] += sft(logps.detach()).sum().item() / terms
            loss = ptx_loss(logps, coef=self.config.ptx.coef).sum() / terms
            _go_back(loss, f"{where}: the loss of what is to be remembered")

    def _take(self, where: str) -> float:
        """Take the step, and return the norm of the actor's gradient."""
        norms = []
        for parameters, who in ((self.actor, "actor"), (self.critics, "critics")):
            add_up_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, self.config.optim.clip_norm).item()
            if not math.isfinite(norm):
                raise RunStoppedError(
                    f"{where}: gradient of {self._broken(parameters) or f'the {who}'} is not finite;"
                    " the step was not taken"
                )
            norms.append(norm)
        self.optimizer.step()
        return norms[0]

    def _broken(self, parameters: Sequence[nn.Parameter]) -> str | None:
        mine = {id(parameter) for parameter in parameters}
        return next(
            (
                name
                for name, p in self.roles.named_parameters()
                if id(p) in mine and p.grad is not None and not p.grad.isfinite().all()
            ),
            None,
        )

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.actor[0].device)


def learners(roles: Roles) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return what learns of the actor, and of the critics."""
    of_actor = {id(parameter) for parameter in roles.weights(ACTOR)}
    actor: list[nn.Parameter] = []
    critics: list[nn.Parameter] = []
    for parameter in roles.parameters():
        if parameter.requires_grad:
            (actor if id(parameter) in of_actor else critics).append(parameter)
    return actor, critics


def rate(optim: PolicyOptim, update: int, updates: int) -> float:
    """Return the share of the actor's rate at an update, from 0: above 0, at most 1."""
    warmup = math.ceil(optim.warmup_fraction * updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    done = (update - warmup) / (updates - warmup)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda done: 1 - done,
        "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    }
    return shapes[optim.schedule](done)


def _go_back(loss: Tensor, what: str) -> None:
    if not loss.isfinite():
        raise RunStoppedError(f"{what} is {loss.item()}; the step was not taken")
    loss.backward()  # type: ignore[no-untyped-call]
