"""`score --file`: rows of prompt and response in, the same rows with reward and cost out."""

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from equipoise.batch import Row, conversation, run_batch, text
from equipoise.config import Config, InputPath, IsLater
from equipoise.lineage import Run, Step
from equipoise.models.backbone import Device, DType
from equipoise.records import Exchange
from equipoise.rewards.implicit import ImplicitScorer, PolicySettings
from equipoise.rewards.learned import RewardCost, load_scorer


class ScoreConfig(Config):
    """Settings of `score`."""

    file: InputPath
    """JSON Lines of `{"id", "prompt", "response"}`."""
    scorer: InputPath | None = None
    policies: Annotated[PolicySettings | None, IsLater()] = None
    """Score by what two aligned policies imply, in the place of a scorer."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Rows at a time."""
    device: Device = "auto"
    dtype: DType = "auto"
    """Number format of the trunk; auto is bfloat16 on a GPU that computes in it, about 1e-3 from float32, and
    float32 where policies score."""

    @model_validator(mode="after")
    def _one_source(self) -> "ScoreConfig":
        if (self.scorer is None) == (self.policies is None):
            got = "none" if self.scorer is None else "both"
            raise ValueError(f"scorer: expected a scorer or policies, got {got}")
        return self


def score_file(config: ScoreConfig, run: Run) -> None:
    """Score every row; a head that was not trained gives null, and only heads of categories give theirs."""
    scorer = _load(config)

    def parse(row: Row) -> Exchange:
        found = Exchange(id=str(row["id"]), prompt=conversation(row), response=text(row, "response"))
        if isinstance(scorer, ImplicitScorer):
            scorer.require(found)
        return found

    def compute(exchanges: Sequence[Exchange]) -> list[Row]:
        return [_row(found) for found in scorer(exchanges)]

    counts = run_batch(
        config.file, run.out, parse, compute, chunk=config.chunk, scratch=run.scratch, label="scoring"
    )
    run.notes |= counts._asdict()
    run.notes |= {"reward": "higher_is_better", "cost": "higher_is_worse"}


def _load(config: ScoreConfig) -> Callable[[Sequence[Exchange]], list[RewardCost]]:
    if config.policies is not None:
        return ImplicitScorer(config.policies, config.device, config.dtype)
    assert config.scorer is not None
    return load_scorer(config.scorer, config.device, config.dtype)


def _row(found: RewardCost) -> Row:
    row: Row = {
        "reward": None if found.reward is None else round(found.reward.value, 6),
        "cost": None if found.cost is None else round(found.cost.value, 6),
    }
    if found.category_costs is not None:
        row["category_costs"] = {name: round(c.value, 6) for name, c in found.category_costs.items()}
    return row | {"score_truncated": found.truncated}


SCORE = Step("score", 3, score_file, writes_file=True, config=ScoreConfig)
