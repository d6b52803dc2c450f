"""A folder of rules: what is asked of an answer, who grades it, what each proposition is worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from equipoise.config import Config, ModelRef
from equipoise.errors import ModelError
from equipoise.generation.client import EndpointConfig
from equipoise.generation.endpoint import EndpointGenerator
from equipoise.generation.endpoint_options import EndpointOptionScorer
from equipoise.generation.sources import Device, DType
from equipoise.judges.propositions import PropositionGrader
from equipoise.lineage import content_hash
from equipoise.models.checkpoints import load_card
from equipoise.protocols import Reward
from equipoise.records import Exchange, Score
from equipoise.rewards.rules import Grader, RuleReward, RuleSet, TypeOf


class TrainedBy(BaseModel):
    """Heads that were trained on labelled answers; they lie in the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    layers: int = Field(ge=1)


class AskedOf(Config):
    """A language model that is asked, in this process or behind a server."""

    model: ModelRef
    """With an endpoint, the name that the server knows."""
    endpoint: EndpointConfig | None = None
    dtype: DType = "auto"


class RulesCard(BaseModel):
    """What a folder of rules says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["equipoise-rules"] = "equipoise-rules"
    version: Literal[1] = 1
    rules: RuleSet
    """The folder's own copy."""
    grader: Annotated[TrainedBy | AskedOf, Field(union_mode="smart")]
    weights: dict[str, list[float]]
    """Response type -> weight of each proposition."""
    reward: str | None = None
    """Content hash of the scorer that the weights were fitted beside; None where there was none."""


def load_rules(
    folder: Path,
    *,
    scorer: Path | None = None,
    alone: bool = False,
    type_of: TypeOf | None = None,
    device: Device = "auto",
) -> RuleReward:
    """Load rules that `equipoise train rules` wrote, as a `protocols.Reward`.

    Args:
        folder: Where they are.
        scorer: The scorer that they were fitted beside, whose reward they are added to.
        alone: Leave its reward out, where it is added elsewhere.
        type_of: What answers should be; what the exchanges say themselves where None.
        device: Where models run.

    Raises:
        ModelError: Another folder, or another scorer than that of the fit.
    """
    card = load_card(folder, RulesCard)
    found = None if scorer is None else content_hash(scorer)
    if found != card.reward:
        had = "without a scorer" if card.reward is None else "beside a scorer"
        got = "none" if scorer is None else f"{scorer}"
        raise ModelError(f"{folder}: its weights were fitted {had}, got {got}; expected the same as then")
    grader = (
        load_trained(folder, card, device) if isinstance(card.grader, TrainedBy) else asking(card, device)
    )
    reward = None if scorer is None or alone else scorer_reward(scorer, device)
    return RuleReward(card.rules, grader, card.weights, reward=reward, type_of=type_of)


def load_trained(folder: Path, card: RulesCard, device: Device) -> Grader:
    """Load the trained heads of a folder."""
    from equipoise.models.backbone import load_encoder
    from equipoise.rewards.trained_grader import load_grader

    assert isinstance(card.grader, TrainedBy)
    backbone = load_encoder(card.grader.backbone, device=device)
    return load_grader(folder, backbone, card.grader.layers, len(card.rules.names))


def asking(card: RulesCard, device: Device, journal: Path | None = None) -> PropositionGrader:
    """Return the grader that asks a language model."""
    asked = card.grader
    assert isinstance(asked, AskedOf)
    if asked.endpoint is not None:
        generator = EndpointGenerator(asked.model, asked.endpoint, journal=journal, missing="")
        return PropositionGrader(card.rules, EndpointOptionScorer(generator))
    from equipoise.generation.options import load_option_scorer

    return PropositionGrader(card.rules, load_option_scorer(asked.model, dtype=asked.dtype, device=device))


def scorer_reward(folder: Path, device: Device = "auto") -> Reward:
    """Load a scorer as a reward; one that gives none raises ModelError."""
    from equipoise.rewards.learned import load_scorer

    scorer = load_scorer(folder, device)
    if "reward" not in scorer.card.trained:
        raise ModelError(f"{folder}: gives no reward; expected a scorer that was trained for one")

    def reward(exchanges: Sequence[Exchange]) -> list[Score]:
        return [found.reward for found in scorer(exchanges) if found.reward is not None]

    return reward
