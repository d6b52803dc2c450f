"""The gradient of every step against one written out with whole padded tensors and plain numbers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.data.io import read_records
from equipoise.errors import RunStoppedError
from equipoise.models.layout import Row
from equipoise.models.roles import Roles, is_of
from equipoise.models.roles_load import load_roles
from equipoise.policy.credit import credit
from equipoise.policy.experience import Experience, collect
from equipoise.policy.settings import OnlineConfig, PolicyOptim, PpoLagConfig
from equipoise.policy.update import Learner, learners, rate
from equipoise.records import Prompt

MULTIPLIER, BUDGET = 0.7, 0.0
PTX = [Row([1, 30, 31], [[40, 41, 42, 2]]), Row([1, 60, 61, 62, 63], [[64, 2]])]


def roles_of(config: OnlineConfig) -> Roles:
    """Roles whose adapters and critics are not those that they start with."""
    roles = load_roles(config.roles, config.signals if isinstance(config, PpoLagConfig) else ())
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in roles.named_parameters():
            if "lora_B" in name or (name.startswith("heads") and "values" in name):
                parameter.normal_(std=0.3)
    return roles


def experienced(config: OnlineConfig, roles: Roles, scoring: Any) -> Experience:
    return collect(config, roles, scoring, list(read_records(config.prompts[0], Prompt)), 0)


def said(
    roles: Roles, role: str, rows: Sequence[tuple[list[int], list[int]]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities [T] and hidden states [T, H] of each response, by one pass over padded texts.

    Called with the role in use.
    """
    width = max(len(p) + len(r) for p, r in rows)
    ids = torch.tensor([p + r + [0] * (width - len(p) - len(r)) for p, r in rows])
    mask = torch.tensor([[1] * len(p + r) + [0] * (width - len(p) - len(r)) for p, r in rows])
    out = roles.roles[role].backbone.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    logps, hidden = out.logits.log_softmax(-1), out.hidden_states[-1]
    places = [slice(len(p) - 1, len(p) + len(r) - 1) for p, r in rows]
    return (
        [logps[i, at].gather(-1, torch.tensor(rows[i][1])[:, None])[:, 0] for i, at in enumerate(places)],
        [hidden[i, at] for i, at in enumerate(places)],
    )


class Reference:
    """One update, written out: made before the first step, asked for the gradient of each."""

    def __init__(self, config: OnlineConfig, roles: Roles, experience: Experience) -> None:
        self.config, self.roles = config, roles
        self.rows = [(r.prompt_ids, r.ids) for r in experience.rollouts]
        self.critic = "critic" if "critic" in roles.roles else "actor"
        with roles.use("actor", learning=False):
            self.old = said(roles, "actor", self.rows)[0]
        with roles.use("reference"):
            self.ref = said(roles, "reference", self.rows)[0]
        scores = [
            [reward, cost]
            for reward, (cost,) in zip(
                experience.signals.reward.tolist(), experience.signals.costs.tolist(), strict=True
            )
        ]
        self.has_critics = isinstance(config, PpoLagConfig)
        if self.has_critics:
            with roles.use(self.critic, learning=False):
                self.values = [self.value(h) for h in said(roles, self.critic, self.rows)[1]]
            self.advantages, self.returns = self.by_critics(scores)
        else:
            self.advantages = self.by_groups(scores)

    def value(self, hidden: Tensor) -> Tensor:
        head: Any = self.roles.heads[self.critic]
        normed = F.layer_norm(hidden, hidden.shape[-1:], head.norm.weight, head.norm.bias)
        return normed @ head.values.weight.T + head.values.bias

    def by_critics(self, scores: list[list[float]]) -> tuple[list[list[float]], list[Tensor]]:
        config: Any = self.config
        beta = config.kl.beta if config.kl.place == "reward" else 0.0
        columns: list[list[list[float]]] = []
        returns = []
        for old, ref, values, score in zip(self.old, self.ref, self.values, scores, strict=True):
            both = []
            for s in (0, 1):
                signal = [
                    (beta if s else -beta) * (p - q) for p, q in zip(old.tolist(), ref.tolist(), strict=True)
                ]
                signal[-1] += score[s]
                if config.score_clip is not None:
                    signal = [max(-config.score_clip, min(config.score_clip, x)) for x in signal]
                value = [*values[:, s].tolist(), 0.0]
                advantage, found = 0.0, []
                for t in reversed(range(len(signal))):
                    delta = signal[t] + config.gae.gamma * value[t + 1] - value[t]
                    advantage = delta + config.gae.gamma * config.gae.decay * advantage
                    found.insert(0, advantage)
                both.append(found)
            columns.append(both)
            returns.append(torch.tensor(both).T + values)
        scale, mean = [1.0, 1.0], [0.0, 0.0]
        if config.whiten != "none":
            for s in (0, 1):
                flat = [a for both in columns for a in both[s]]
                mean[s] = math.fsum(flat) / len(flat)
                scale[s] = math.sqrt(math.fsum((a - mean[s]) ** 2 for a in flat) / (len(flat) - 1))
            if config.whiten == "together":
                scale[1] = scale[0]
        blended = [
            [
                ((a - mean[0]) / scale[0] - MULTIPLIER * (c - mean[1]) / scale[1]) / (1 + MULTIPLIER)
                for a, c in zip(*both, strict=True)
            ]
            for both in columns
        ]
        return blended, returns

    def by_groups(self, scores: list[list[float]]) -> list[list[float]]:
        config: Any = self.config
        k = config.rollout.samples
        if config.kl.place == "reward":
            kls = [(p - q).sum().item() for p, q in zip(self.old, self.ref, strict=True)]
            scores = [
                [r - config.kl.beta * d, c + config.kl.beta * d]
                for (r, c), d in zip(scores, kls, strict=True)
            ]
        groups = [scores[i : i + k] for i in range(0, len(scores), k)]

        def mean(values: list[float]) -> float:
            return math.fsum(values) / len(values)

        found = []
        for group in groups:
            for j, own in enumerate(group):
                both = []
                for s in (0, 1):
                    others = [one[s] for i, one in enumerate(group) if i != j]
                    if config.estimator == "reinforce":
                        both.append(own[s] - mean([one[s] for one in scores]))
                    elif config.estimator == "rloo":
                        both.append(own[s] - mean(others))
                    else:
                        variances = [
                            sum((one[s] - mean([o[s] for o in g])) ** 2 for one in g) / (k - 1)
                            for g in groups
                        ]
                        both.append((own[s] - mean([one[s] for one in group])) / math.sqrt(mean(variances)))
                if config.estimator == "repo" and mean([one[1] for one in group]) <= BUDGET:
                    both[1] = 0.0
                found.append((both[0] - MULTIPLIER * both[1]) / (1 + MULTIPLIER))
        return [[a] * len(old) for a, old in zip(found, self.old, strict=True)]

    def reduced(self, losses: Sequence[Tensor]) -> Tensor:
        if self.config.mean_over == "tokens":
            return torch.cat(list(losses)).mean()
        return torch.stack([loss.mean() for loss in losses]).mean()

    def gradient(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """Of a step over some of the responses, of all that learns."""
        rows = [self.rows[i] for i in chosen]
        parameters = {n: p for n, p in self.roles.named_parameters() if p.requires_grad}
        total = {n: torch.zeros_like(p) for n, p in parameters.items()}

        def add(loss: Tensor) -> None:
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for n, g in zip(parameters, found, strict=True):
                total[n] += 0 if g is None else g

        with self.roles.use("actor"):
            logps, hidden = said(self.roles, "actor", rows)
            losses = [self.policy(logp, i) for logp, i in zip(logps, chosen, strict=True)]
            loss = self.reduced(losses)
            if self.config.ptx is not None:
                good = torch.cat(said(self.roles, "actor", [(r.prompt, r.responses[0]) for r in PTX])[0])
                loss = loss - self.config.ptx.coef * good.mean()
            if self.has_critics and self.critic == "actor":
                loss = loss + self.critics(hidden, chosen)
            add(loss)
        if self.critic == "critic":
            with self.roles.use("critic"):
                add(self.critics(said(self.roles, "critic", rows)[1], chosen))
        return total

    def policy(self, logps: Tensor, i: int) -> Tensor:
        advantage = torch.tensor(self.advantages[i])
        if self.config.objective == "reinforce":
            loss = -advantage * logps
        else:
            ratio = (logps - self.old[i]).exp()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        if self.config.kl.place == "loss":
            loss = loss + self.config.kl.beta * (logps - self.ref[i]) ** 2 / 2
        return loss

    def critics(self, hidden: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        losses = []
        for h, i in zip(hidden, chosen, strict=True):
            values, old, returns = (
                self.value(h if self.roles.attached else h.detach()),
                self.values[i],
                self.returns[i],
            )
            near = torch.minimum(torch.maximum(values, old - 0.05), old + 0.05)
            losses.append(torch.maximum((values - returns) ** 2, (near - returns) ** 2).sum(1) / 2)
        return self.reduced(losses)


PPO: dict[str, Any] = {"critic": {"clip": 0.05, "lr": 0.05}}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": (
        "ppo",
        {
            "kl": {"beta": 0.3, "place": "reward"},
            "whiten": "none",
            "score_clip": 0.8,
            "mean_over": "responses",
        },
    ),
    "whitened": ("ppo", {"kl": {"beta": 0.3}}),
    "together": (
        "ppo",
        {"kl": {"beta": 0.3, "place": "reward"}, "whiten": "together", "gae": {"gamma": 0.9, "decay": 0.5}},
    ),
    "critic adapter": ("ppo", {"roles": {"critic": "adapter"}}),
    "critic model": ("ppo", {"roles": {"critic": "model"}}),
    "critics reach the trunk": ("ppo", {"roles": {"critics_reach_trunk": True}}),
    "grpo": ("group", {}),
    "rloo": ("group", {"estimator": "rloo", "kl": {"beta": 0.3, "place": "reward"}}),
    "repo": ("group", {"estimator": "repo", "mean_over": "responses"}),
    "reinforce": ("group", {"estimator": "reinforce", "objective": "reinforce"}),
    "ptx": ("group", {"ptx": {"coef": 2.0}}),
    "one step": ("group", {"optim": {"minibatches": 1, "tokens_per_micro_batch": 90}}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_steps_gradient_is_that_of_whole_padded_tensors(
    way: str, make_config: Any, arbitrary: Any, tmp_path: Path
) -> None:
    kind, more = WAYS[way]
    if kind == "ppo":
        more = PPO | more
    if "roles" in more:
        more = more | {"roles": make_config(kind).roles.model_dump() | more["roles"]}
    if "ptx" in more:
        more = more | {"ptx": more["ptx"] | {"exchanges": [tmp_path / "prompts.jsonl"]}}
    optim = {"lr": 0.02, "minibatches": 2, "epochs": 2, "tokens_per_micro_batch": 90, "clip_norm": 1e9}
    config = make_config(kind, **({"optim": optim} | more))
    roles = roles_of(config)
    experience = experienced(config, roles, arbitrary)
    assert experience.drift < 1e-4
    reference = Reference(config, roles, experience)
    learner = Learner(roles, config, PTX if config.ptx else ())
    parts = list(learner._parts(len(experience.rows), 0))
    steps = []

    def compare(*_: object) -> None:
        k = config.rollout.samples
        chosen = [row * k + j for row in parts[len(steps)] for j in range(k)]
        expected = reference.gradient(chosen)
        for name, parameter in roles.named_parameters():
            if parameter.requires_grad:
                found = torch.zeros(()) if parameter.grad is None else parameter.grad
                scale = expected[name].abs().max().item()
                torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4 * scale)
        assert sum(g.abs().sum().item() for g in expected.values()) > 1e-3
        steps.append(len(chosen))

    learner.optimizer.register_step_pre_hook(compare)
    found = learner.learn(experience, credit(config, experience, [MULTIPLIER], [BUDGET]), 0)
    assert steps == ([12] if config.takes_one_step else [6, 6, 6, 6])
    assert (found.drift > 0) == config.takes_one_step
    assert len(found.value_losses) == (2 if kind == "ppo" else 0)
    if config.objective == "ppo" and not config.takes_one_step:
        assert found.clip_fraction > 0  # the second time through


def gradients(config: OnlineConfig, scoring: Any) -> dict[str, Tensor]:
    """Of the first step of an update."""
    roles = roles_of(config)
    experience = experienced(config, roles, scoring)
    learner = Learner(roles, config)
    kept: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        for name, parameter in roles.named_parameters():
            if parameter.grad is not None:
                kept.setdefault(name, parameter.grad.clone())

    learner.optimizer.register_step_pre_hook(keep)
    learner.learn(experience, credit(config, experience, [MULTIPLIER], [BUDGET]), 0)
    return kept


@pytest.mark.parametrize("kind", ["ppo", "group"])
@pytest.mark.parametrize("mean_over", ["tokens", "responses"])
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(
    kind: str, mean_over: str, make_config: Any, arbitrary: Any
) -> None:
    one, many = (
        gradients(
            make_config(kind, mean_over=mean_over, optim={"minibatches": 1, "tokens_per_micro_batch": size}),
            arbitrary,
        )
        for size in (10_000, 1)
    )
    assert one.keys() == many.keys()
    for name in one:
        torch.testing.assert_close(many[name], one[name], rtol=1e-6, atol=1e-6)


def test_a_loss_that_is_no_number_is_named_and_its_step_not_taken(make_config: Any, arbitrary: Any) -> None:
    config = make_config("group")
    roles = roles_of(config)
    experience = experienced(config, roles, arbitrary)
    given = credit(config, experience, [MULTIPLIER], [BUDGET])
    given.advantages[-1] = math.nan
    before = {n: p.detach().clone() for n, p in roles.named_parameters()}
    learner = Learner(roles, config.model_copy(update={"optim": PolicyOptim(minibatches=1)}))
    with pytest.raises(
        RunStoppedError, match="update 8: step 1: the policy's loss is nan; the step was not taken"
    ):
        learner.learn(experience, given, 7)
    assert all(torch.equal(p, before[n]) for n, p in roles.named_parameters())


def test_a_gradient_that_is_no_number_is_named(make_config: Any, arbitrary: Any) -> None:
    config = make_config("group")
    roles = roles_of(config)
    experience = experienced(config, roles, arbitrary)
    learner = Learner(roles, config)
    name, parameter = next((n, p) for n, p in roles.named_parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RunStoppedError, match=f"gradient of {name} is not finite"):
        learner.learn(experience, credit(config, experience, [MULTIPLIER], [BUDGET]), 0)


@pytest.mark.parametrize("critic", ["adapter", "model"])
def test_actor_and_critics_have_rates_of_their_own(critic: str, make_config: Any) -> None:
    config = make_config("ppo", roles={**make_config("ppo").roles.model_dump(), "critic": critic})
    roles = roles_of(config)
    actor, critics = learners(roles)
    names = {id(p): n for n, p in roles.named_parameters()}
    assert all(is_of(names[id(p)], "default") for p in actor)
    assert len(actor) + len(critics) == sum(p.requires_grad for p in roles.parameters())
    assert {names[id(p)].split(".")[0] for p in critics} == {"heads", "trunks"}
    assert not {id(p) for p in actor} & {id(p) for p in critics}
    learning = Learner(roles, config).optimizer.param_groups
    assert [group["lr"] for group in learning] == [0.01, 0.001]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]),
    ],
)
def test_rates_follow_their_schedule(schedule: str, expected: list[float]) -> None:
    optim = PolicyOptim.model_validate({"schedule": schedule, "warmup_fraction": 1 / 3})
    assert [rate(optim, u, 6) for u in range(6)] == pytest.approx(expected)
