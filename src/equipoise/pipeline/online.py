"""The steps `train.ppo_lag` and `train.group_lag`: `policy.train` with every source of scores."""

from pathlib import Path

from equipoise.data.io import read_records
from equipoise.errors import DataError
from equipoise.judges.rules import RulesCard
from equipoise.lineage import Run, Step
from equipoise.models.checkpoints import load_card
from equipoise.models.guard import GuardCard
from equipoise.moderation.default import guard_folder
from equipoise.pipeline.guarded import check_type
from equipoise.pipeline.scoring import load_scoring
from equipoise.policy.group_sources import check_groups
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig
from equipoise.policy.train import train_group_lag, train_ppo_lag
from equipoise.records import Prompt


def _check(config: OnlineConfig) -> None:
    """Say a mistake before models are loaded."""
    config.scoring.columns(config.signals[1:])
    check_groups(config.scoring)
    if config.scoring.rules is not None:
        _check_types(config, config.scoring.rules)


def _check_types(config: OnlineConfig, folder: Path) -> None:
    """Name a prompt of which the rules cannot know what an answer should be."""
    rules, guard = load_card(folder, RulesCard).rules, config.scoring.guard
    has_guard = guard is not None and "prompt" in load_card(guard_folder(guard), GuardCard).targets
    for path in config.prompts:
        for prompt in read_records(path, Prompt):
            try:
                check_type(rules, prompt.provenance, prompt.is_harmful, has_guard=has_guard)
            except DataError as exc:
                raise DataError(f"{path}: {prompt.id}: {exc}") from exc


def _ppo_lag(config: PpoLagConfig, run: Run) -> None:
    _check(config)
    train_ppo_lag(config, run, load_scoring)


def _group_lag(config: GroupLagConfig, run: Run) -> None:
    _check(config)
    train_group_lag(config, run, load_scoring)


TRAIN_PPO_LAG = Step("train.ppo_lag", 3, _ppo_lag, config=PpoLagConfig)
TRAIN_GROUP_LAG = Step("train.group_lag", 3, _group_lag, config=GroupLagConfig)
