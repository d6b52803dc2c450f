"""The steps `train.ppo_lag` and `train.group_lag`: `policy.train` with every source of scores."""

from equipoise.data.io import read_records
from equipoise.judges.rules import RulesCard
from equipoise.lineage import Run, Step
from equipoise.models.checkpoints import load_card
from equipoise.pipeline.scoring import load_scoring
from equipoise.policy.group_sources import check_groups
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig
from equipoise.policy.train import train_group_lag, train_ppo_lag
from equipoise.records import Prompt
from equipoise.rewards.rules import RESPONSE_TYPE


def _check(config: OnlineConfig) -> None:
    """Say a mistake before models are loaded."""
    config.scoring.columns(config.signals[1:])
    check_groups(config.scoring)
    if config.scoring.rules is not None:
        rules = load_card(config.scoring.rules, RulesCard).rules
        for prompt in (record for path in config.prompts for record in read_records(path, Prompt)):
            if config.scoring.guard is None or RESPONSE_TYPE in prompt.provenance:
                rules.type_of(prompt.exchange(""))


def _ppo_lag(config: PpoLagConfig, run: Run) -> None:
    _check(config)
    train_ppo_lag(config, run, load_scoring)


def _group_lag(config: GroupLagConfig, run: Run) -> None:
    _check(config)
    train_group_lag(config, run, load_scoring)


TRAIN_PPO_LAG = Step("train.ppo_lag", 3, _ppo_lag, config=PpoLagConfig)
TRAIN_GROUP_LAG = Step("train.group_lag", 3, _group_lag, config=GroupLagConfig)
