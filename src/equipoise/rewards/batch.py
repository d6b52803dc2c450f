"""`score --file`: rows of prompt and response in, the same rows with reward and cost out."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from equipoise.batch import Row, conversation, run_batch, text
from equipoise.config import Config, InputPath
from equipoise.lineage import Run, Step
from equipoise.models.backbone import Device, DType
from equipoise.records import Exchange
from equipoise.rewards.learned import RewardCost, load_scorer


class ScoreConfig(Config):
    """Settings of `score`."""

    file: InputPath
    """JSON Lines of `{"id", "prompt", "response"}`."""
    scorer: InputPath
    chunk: Annotated[int, Field(ge=1)] = 256
    """Rows at a time."""
    device: Device = "auto"
    dtype: DType = "auto"
    """Number format of the trunk; auto is bfloat16 on a GPU that computes in it, about 1e-3 from float32."""


def score_file(config: ScoreConfig, run: Run) -> None:
    """Score every row; a head that was not trained gives null, and only heads of categories give theirs."""
    scorer = load_scorer(config.scorer, config.device, config.dtype)

    def parse(row: Row) -> Exchange:
        return Exchange(id=str(row["id"]), prompt=conversation(row), response=text(row, "response"))

    def compute(exchanges: Sequence[Exchange]) -> list[Row]:
        return [_row(found) for found in scorer(exchanges)]

    counts = run_batch(
        config.file, run.out, parse, compute, chunk=config.chunk, scratch=run.scratch, label="scoring"
    )
    run.notes |= counts._asdict()
    run.notes |= {"reward": scorer.card.reward_polarity, "cost": scorer.card.cost_polarity}


def _row(found: RewardCost) -> Row:
    row: Row = {
        "reward": None if found.reward is None else round(found.reward.value, 6),
        "cost": None if found.cost is None else round(found.cost.value, 6),
    }
    if found.category_costs is not None:
        row["category_costs"] = {name: round(c.value, 6) for name, c in found.category_costs.items()}
    return row


SCORE = Step("score", 1, score_file, writes_file=True, config=ScoreConfig)
