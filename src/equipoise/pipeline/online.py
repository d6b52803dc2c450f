"""The steps `train.ppo_lag` and `train.group_lag`: `policy.train` with every source of scores."""

from equipoise.lineage import Run, Step
from equipoise.pipeline.scoring import load_scoring
from equipoise.policy.group_sources import check_groups
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig
from equipoise.policy.train import train_group_lag, train_ppo_lag


def _check(config: OnlineConfig) -> None:
    """Say a mistake before models are loaded."""
    config.scoring.columns(config.signals[1:])
    check_groups(config.scoring)


def _ppo_lag(config: PpoLagConfig, run: Run) -> None:
    _check(config)
    train_ppo_lag(config, run, load_scoring)


def _group_lag(config: GroupLagConfig, run: Run) -> None:
    _check(config)
    train_group_lag(config, run, load_scoring)


TRAIN_PPO_LAG = Step("train.ppo_lag", 2, _ppo_lag, config=PpoLagConfig)
TRAIN_GROUP_LAG = Step("train.group_lag", 2, _group_lag, config=GroupLagConfig)
