"""Settings of online constrained training: `train ppo-lag` and `train group-lag`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue, NonNegativeFloat, StrictBool, model_validator

from equipoise.config import InputPath, IsAside, IsLater, bind
from equipoise.errors import ConfigError
from equipoise.generation.engine import EngineConfig
from equipoise.models.backbone import micro_batch_tokens
from equipoise.models.roles_load import RoleSettings
from equipoise.objectives.policy_gradient import POLICY_LOSSES, PolicyTokens
from equipoise.policy.lagrangian import PAPER, ConstraintSettings, FiniteConfig, MultiplierSettings
from equipoise.policy.scoring_settings import ScoringSettings

REWARD = "reward"
"""Name of the reward among the signals; the others have the names of their constraints."""


class RolloutSettings(FiniteConfig):
    """What is written between two updates, with temperature 1 and no nucleus."""

    prompts: int = Field(default=16, ge=1)
    """Prompts of a rollout, none of them twice."""
    samples: int = Field(default=4, ge=1)
    """Responses to each."""
    max_new_tokens: int = Field(default=128, ge=1)
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Prompts with more are left out and counted; none is cut."""
    batch_size: int = Field(default=32, ge=1)
    """Responses that are written at a time."""
    engine: Annotated[EngineConfig | None, IsLater()] = None
    """A server that writes them, of the same model; the actor in this process where None."""


class PolicyOptim(FiniteConfig):
    """How the actor is optimised: AdamW, over `epochs` times `minibatches` steps per rollout."""

    lr: float = Field(default=1e-4, gt=0)
    minibatches: int = Field(default=4, ge=1)
    """Steps that a rollout is cut into, by prompts."""
    epochs: int = Field(default=1, ge=1)
    """How often a rollout is gone through."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    """Of the gradient, that of the actor and that of the critics apart."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of the actor's rate over the updates; that of the critics is constant."""
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    tokens_per_micro_batch: int | None = Field(default=None, ge=1)
    """Tokens of one forward pass, padding counted; bounds memory and changes nothing else. Where None, 512
    on a CPU and 4096 elsewhere."""
    gradient_checkpointing: Annotated[bool, IsAside()] = False
    """Compute each layer again in the backward pass: less memory, about a third more time, same numbers."""


class KlSettings(FiniteConfig):
    """The divergence from the reference, which stands in one place.

    In the reward it is in every cost as well, so that the multipliers leave its weight as it is. Where there
    are constraints, settings under which they would not are refused: what scales columns apart, and RePO.
    """

    beta: float = Field(default=0.05, ge=0)
    """Its weight, per nat: of advantages in the loss, of scores in the reward."""
    place: Literal["loss", "reward"] = "loss"
    estimator: Literal["k1", "k2", "k3"] | None = None
    """k2 in the loss and k1 in the reward where None."""

    @model_validator(mode="after")
    def _is_right_where_it_stands(self) -> "KlSettings":
        if self.place == "reward" and self.estimator not in (None, "k1"):
            raise ValueError(
                f"estimator: got {self.estimator} in the reward; expected k1, which is exact there"
            )
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator: got k1 in the loss, where its gradient is 0 in the mean; expected k2"
            )
        return self


class PtxSettings(FiniteConfig):
    """Good answers that are to be remembered: a term of every step's loss."""

    exchanges: tuple[InputPath, ...] = Field(min_length=1)
    """Those known to be unsafe are left out."""
    coef: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=8, ge=1)
    """Answers of one step."""
    max_tokens: int = Field(default=512, ge=8)
    """Those with more are left out and counted."""


class OnlineConfig(FiniteConfig):
    """What both kinds of online training are told."""

    prompts: tuple[InputPath, ...] = Field(min_length=1)
    roles: RoleSettings
    scoring: ScoringSettings = ScoringSettings()
    updates: int = Field(default=100, ge=1)
    """Rollouts, each followed by one update of the multipliers and then the steps of the policy."""
    rollout: RolloutSettings = RolloutSettings()
    constraints: tuple[ConstraintSettings, ...] = (ConstraintSettings(),)
    """None is plain PPO, RLOO, GRPO or REINFORCE."""
    multiplier: MultiplierSettings = MultiplierSettings()
    kl: KlSettings = KlSettings()
    objective: str = "ppo"
    """`ppo` or `reinforce`."""
    objective_params: dict[str, NonNegativeFloat] = {}
    """Keyword parameters of the objective: clip, clip_high, dual_clip."""
    mean_over: Literal["tokens", "responses"] = "tokens"
    """What counts the same in a step's loss."""
    ptx: PtxSettings | None = None
    optim: PolicyOptim = PolicyOptim()
    seed: int = 0
    checkpoint_every: Annotated[int, Field(ge=1), IsAside()] = 10
    """Updates between two checkpoints from which a killed run goes on."""
    samples_logged: int = Field(default=3, ge=0)
    """Responses of an update that are written to samples.jsonl."""
    report_to: Annotated[tuple[str, ...], IsAside()] = ()
    """Trackers of accelerate, for example `tensorboard`."""

    @model_validator(mode="after")
    def _fits_together(self) -> "OnlineConfig":
        try:
            loss = bind("objective", POLICY_LOSSES, self.objective, self.objective_params)
            loss(PolicyTokens(torch.zeros(1), torch.zeros(1), torch.zeros(1)))
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
        except ValueError as exc:
            raise ValueError(f"objective_params: {exc}") from exc
        names = self.signals
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"constraints: got the name '{twice[0]}' twice; expected one of its own for each"
            )
        if self.optim.minibatches > self.rollout.prompts:
            raise ValueError(
                f"optim.minibatches: got {self.optim.minibatches} of {self.rollout.prompts} prompts;"
                " expected at least one prompt in each"
            )
        if self.rollout.engine is not None and self.roles.tune == "full":
            raise ValueError("rollout.engine: it follows an adapter, got roles.tune full; expected lora")
        return self

    @property
    def signals(self) -> tuple[str, ...]:
        """The reward and the constraints, in the order of the columns of scores."""
        return (REWARD, *(constraint.name for constraint in self.constraints))

    @property
    def micro_tokens(self) -> int:
        """Tokens of one forward pass on the device of the roles."""
        return micro_batch_tokens(self.optim.tokens_per_micro_batch, self.roles.device)

    @property
    def takes_one_step(self) -> bool:
        """Whether a rollout is learned from in one step, in which the ratio to the policy that drew is 1."""
        return self.optim.minibatches * self.optim.epochs == 1


class GaeSettings(FiniteConfig):
    """How far the critics are trusted. Schulman et al. 2016."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    decay: float = Field(default=0.95, ge=0, le=1)


class CriticSettings(FiniteConfig):
    """How the critics learn, one for the reward and one for each constraint."""

    lr: float = Field(default=1e-3, gt=0)
    clip: float | None = Field(default=5.0, gt=0)
    """How far a value may move from what it was in the rollout, in units of the scores."""
    coef: float = Field(default=1.0, gt=0)
    """Weight of their losses beside the actor's, felt where they reach the trunk."""


PAPER_SETTINGS: dict[str, JsonValue] = {
    "rollout": {"samples": 1},
    "constraints": [{"budget": 0.0}],
    "multiplier": PAPER.model_dump(exclude_unset=True),
    "kl": {"beta": 0.01, "place": "reward"},
    "mean_over": "responses",
    "whiten": "none",
    "score_clip": 50.0,
    "optim": {"minibatches": 1, "weight_decay": 0.01, "schedule": "cosine", "warmup_fraction": 0.03},
}
"""What `paper` sets where the user says nothing."""


class PpoLagConfig(OnlineConfig):
    """Settings of `train ppo-lag`: critics for the reward and each constraint (Dai et al. 2023, Safe RLHF).

    `paper` takes the paper's algorithm as its code has it, but for this:

    - The critics are fresh linear heads on the actor's hidden states, to which they send no gradient, unless
      `roles.critic` gives them an adapter or a model; the paper's are networks of their own that start from
      the reward and the cost model.
    - The actor learns a low-rank adapter unless `roles.tune` is `full`; the paper's learns all its weights.
    - PTX is a term of the same step's loss; the paper's is a step of its own.
    - Rates of learning stay ours, since theirs are for 7 billion weights that all learn.
    - The multiplier moves once in a rollout; the paper's moves with every micro-batch of one, the size of
      which is then `rollout.prompts`.
    """

    paper: StrictBool = False
    gae: GaeSettings = GaeSettings()
    whiten: Literal["apart", "together", "none"] = "apart"
    """Advantages to deviation 1: of the reward and of each cost, of all by that of the reward, or not."""
    score_clip: float | None = Field(default=None, gt=0)
    """Bound of each token's score with the divergence in it."""
    critic: CriticSettings = CriticSettings()

    @model_validator(mode="before")
    @classmethod
    def _take_the_papers(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("paper") is not True:
            return data
        paper: dict[str, Any] = dict(PAPER_SETTINGS)
        if isinstance(data.get("ptx"), Mapping):
            paper["ptx"] = {"coef": 16.0}
        multiplier = data.get("multiplier")
        if isinstance(multiplier, Mapping) and "rule" in multiplier:
            its_own = {"rule_params", "scaled"}
            paper["multiplier"] = {k: v for k, v in paper["multiplier"].items() if k not in its_own}
        return _under(paper, data)

    @model_validator(mode="after")
    def _keeps_the_weight_of_the_divergence(self) -> "PpoLagConfig":
        if self.whiten == "apart":
            _require_one_scale(self, "whiten apart", "kl.place loss, or whiten together or none")
        return self


class GroupLagConfig(OnlineConfig):
    """Settings of `train group-lag`: no critics, responses to one prompt are compared with each other."""

    estimator: Literal["grpo", "rloo", "reinforce", "repo"] = "grpo"
    """repo: as grpo, but a prompt within the budget learns from its reward alone (Peng et al. 2024)."""
    scale: Literal["batch", "group", "none"] = "batch"
    """Of grpo and repo: what reward and costs are divided by, each apart."""
    slack: float = Field(default=0.02, ge=0)
    """Of repo: by how much a prompt may exceed the budget in the mean over prompts."""

    @model_validator(mode="after")
    def _has_groups(self) -> "GroupLagConfig":
        if self.estimator != "reinforce" and self.rollout.samples < 2:
            raise ValueError(
                f"rollout.samples: got {self.rollout.samples} with estimator {self.estimator};"
                " expected 2 or more, or estimator reinforce"
            )
        if self.roles.critic != "heads" or self.roles.critics_reach_trunk:
            raise ValueError(
                "roles: critic and critics_reach_trunk are of train ppo-lag; there are no critics here"
            )
        own = type(self).model_fields
        if self.estimator in ("rloo", "reinforce") and self.scale != own["scale"].default:
            raise ValueError(
                f"scale: goes not with estimator {self.estimator}; expected none, or grpo or repo"
            )
        if self.estimator != "repo" and self.slack != own["slack"].default:
            raise ValueError(f"slack: goes not with estimator {self.estimator}; expected none, or repo")
        if self.estimator == "repo" and not self.constraints:
            raise ValueError("estimator: got repo without constraints; expected one, or grpo")
        if self.estimator == "repo" and any(constraint.pessimism for constraint in self.constraints):
            raise ValueError("constraints: pessimism goes not with estimator repo; expected 0, or grpo")
        if self.estimator == "repo":
            _require_one_scale(self, "estimator repo", "kl.place loss, or estimator rloo")
        if self.estimator == "grpo" and self.scale != "none":
            what = f"scale {self.scale}"
            _require_one_scale(self, what, "kl.place loss, scale none, or estimator rloo")
        return self


def _require_one_scale(config: OnlineConfig, got: str, expected: str) -> None:
    """Refuse a divergence in the reward and in costs that do not have the same weight among advantages."""
    if config.constraints and config.kl.place == "reward" and config.kl.beta:
        raise ValueError(
            f"kl.place: got reward with {got}, where the weight of the divergence would change with the"
            f" multipliers; expected {expected}"
        )


def _under(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two mappings as one, section by section; what is in `above` stands."""
    found = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], Mapping) and isinstance(above[name], Mapping):
            found[name] = _under(below[name], above[name])
    return found
