"""Online training under constraints: roll out, score, move the multipliers, learn; again and again.

The multipliers move first, by raw costs, and what is learned is blended under what they then are. A run
that is killed at any moment goes on from its last checkpoint with the same numbers (same machine, versions
and threads): log lines that came after it are cut off and written again.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import set_seed

from equipoise.errors import ConfigError, RunStoppedError
from equipoise.lineage import Run
from equipoise.models.layout import Row
from equipoise.models.roles import Roles
from equipoise.policy.credit import credit, moved_by
from equipoise.policy.experience import Experience, collect, seed_of
from equipoise.policy.group_sources import group_names
from equipoise.policy.group_weights import GroupWeights
from equipoise.policy.health import warnings_of
from equipoise.policy.lagrangian import Multiplier
from equipoise.policy.log import Clock, log_line, sample_lines
from equipoise.policy.ranks import gathered, rank, world_size
from equipoise.policy.scoring import Scoring
from equipoise.policy.settings import OnlineConfig
from equipoise.policy.state import Journal, Keeper
from equipoise.policy.tracking import tracking
from equipoise.policy.update import Learner
from equipoise.progress import bar, say
from equipoise.records import Prompt
from equipoise.training.memory import recomputing


def align(
    config: OnlineConfig,
    run: Run,
    roles: Roles,
    scoring: Scoring,
    prompts: Sequence[Prompt],
    *,
    ptx_rows: Sequence[Row] = (),
    label: str = "aligning",
) -> dict[str, Any]:
    """Train the actor in place, and return the last line of the log.

    Args:
        config: The run's settings.
        run: Where `log.jsonl`, `samples.jsonl` and checkpoints go.
        roles: Actor and reference; with critics for PPO-Lag, one per signal of the settings.
        scoring: Gives reward and costs of rollouts.
        prompts: With different ids, at least as many as a rollout takes.
        ptx_rows: Prompts with the answer that is to be remembered.
        label: What the progress says.

    Raises:
        ConfigError: There are more processes than prompts in a rollout.
        RunStoppedError: A score, loss or gradient is not finite, or the scoring cannot go on. The same
            command resumes the run.
    """
    _require_a_prompt_each(config)
    multiplier = Multiplier(config.constraints, config.multiplier)
    learner = Learner(roles, config, ptx_rows)
    log, samples = (Journal(run.out / f"{name}.jsonl") for name in ("log", "samples"))
    journals, groups = {"log": log, "samples": samples}, _groups(config)
    keeper = Keeper(run.shared / "checkpoints", roles, learner.optimizer, multiplier, journals, groups=groups)
    done = keeper.restore()
    history = gathered(log.lines())[0]  # the first process has them
    trackers = config.report_to if rank() == 0 else ()
    with (
        recomputing(roles, config.optim.gradient_checkpointing),
        tracking(trackers, run.out / "trackers", config.roles.device) as track,
        bar(label, config.updates, done) as advance,
    ):
        for update in range(done, config.updates):
            clock = Clock()
            set_seed(seed_of(config.seed, update))  # for what a scoring may draw
            try:
                found = _weigh(collect(config, roles, scoring, prompts, update, clock=clock), groups, update)
            except RunStoppedError:
                if update:
                    keeper.save(update)  # nothing has changed since
                raise
            history.append(_update(config, found, multiplier, learner, update))
            _warn(history)
            line = history[-1] | {"seconds": clock.stop()}
            if rank() == 0:
                log.write(line)
                samples.write(*_samples(config, found.experience, update))
                track(line, update + 1)
            if (update + 1) % config.checkpoint_every == 0:
                keeper.save(update + 1)
            advance()
    return history[-1]


def _require_a_prompt_each(config: OnlineConfig) -> None:
    if world_size() > config.rollout.prompts:
        raise ConfigError(
            f"rollout.prompts: got {config.rollout.prompts} for {world_size()} processes; expected as many"
        )


def _warn(history: Sequence[dict[str, Any]]) -> None:
    """Add what the log as a whole warns of to its last line, and tell all of that line's warnings."""
    line = history[-1]
    line["warnings"] += warnings_of(history)
    for warning in line["warnings"]:
        say(f"update {line['update']}: {warning}")


def _samples(config: OnlineConfig, experience: Experience, update: int) -> list[dict[str, Any]]:
    return sample_lines(update + 1, experience, config.signals[1:], config.samples_logged)


def _groups(config: OnlineConfig) -> GroupWeights | None:
    maxmin = config.scoring.maxmin
    return None if maxmin is None else GroupWeights(group_names(maxmin), maxmin)


class _Weighed(NamedTuple):
    """Experience with one reward, also where groups each have theirs."""

    experience: Experience
    line: dict[str, Any]
    """What the log says of groups."""
    warnings: tuple[str, ...]


def _weigh(experience: Experience, groups: GroupWeights | None, update: int) -> _Weighed:
    """Move the weights of groups, and make one reward of theirs under them."""
    signals = experience.signals
    if groups is None:
        if signals.groups:
            given = ", ".join(signals.groups)
            raise ConfigError(f"scoring: got rewards of groups: {given}; expected none, or scoring.maxmin")
        return _Weighed(experience, {}, ())
    columns = groups.columns(signals.groups)
    warnings = groups.start(columns) if update == 0 else ()
    reward = groups.update(columns) + signals.reward
    seen = {name: reading._asdict() for name, reading in groups.readings(columns).items()}
    return _Weighed(replace(experience, signals=signals._replace(reward=reward)), {"groups": seen}, warnings)


def _update(
    config: OnlineConfig, weighed: _Weighed, multiplier: Multiplier, learner: Learner, update: int
) -> dict[str, Any]:
    """Move the multipliers, then learn under them; return the line of the log."""
    experience = weighed.experience
    costs = experience.signals.costs
    warnings = [*weighed.warnings, *(multiplier.start(costs) if update == 0 else ())]
    budgets = multiplier.budgets
    for constraint, budget in zip(config.constraints, budgets, strict=True):
        if update == 0 and constraint.budget is None:
            what = f"quantile {constraint.quantile} of what the starting policy's responses cost"
            say(f"constraint '{constraint.name}': the budget is {budget:.4g}, {what}")
    readings = multiplier.update(*moved_by(config, costs, budgets))
    learned = learner.learn(experience, credit(config, experience, multiplier.values, budgets), update)
    warnings += [reading.warning for reading in readings if reading.warning is not None]
    line = log_line(update + 1, experience, readings, budgets, learned)
    return {**line, **weighed.line, "warnings": warnings}
