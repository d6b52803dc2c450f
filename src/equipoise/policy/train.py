"""Align a policy online under constraints: `equipoise train ppo-lag` and `equipoise train group-lag`.

Prompts, roles and scoring are loaded, the loop runs, and the actor is published as a model of its own. The
steps that commands and recipes run are in `pipeline.online`, which adds guards and rules to the scoring.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from equipoise.data.io import read_records
from equipoise.errors import DataError
from equipoise.generation.client import read_key
from equipoise.lineage import Run
from equipoise.models.backbone import Backbone, positions_of
from equipoise.models.chat import chat_ids
from equipoise.models.layout import Row
from equipoise.models.roles import Roles
from equipoise.models.roles_load import ACTOR, load_roles, save_actor
from equipoise.policy.loop import align
from equipoise.policy.scoring import Scoring, load_scoring
from equipoise.policy.scoring_settings import ScoringSettings
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig
from equipoise.progress import say
from equipoise.records import Exchange, Prompt, messages_of
from equipoise.training.cards import model_card
from equipoise.training.pair_order import told
from equipoise.training.policy_rows import make_row

LoadScoring = Callable[[ScoringSettings, Roles, Sequence[str]], Scoring]
"""Loads what scores, for constraints of these names."""


def train_ppo_lag(config: PpoLagConfig, run: Run, load: LoadScoring = load_scoring) -> None:
    """Align a policy with critics into `run.out`; `load` may give a scoring of your own."""
    _train(config, run, load, config.signals, "ppo-lag")


def train_group_lag(config: GroupLagConfig, run: Run, load: LoadScoring = load_scoring) -> None:
    """Align a policy without critics into `run.out`; `load` may give a scoring of your own."""
    _train(config, run, load, (), "group-lag")


def _train(config: OnlineConfig, run: Run, load: LoadScoring, critics: Sequence[str], kind: str) -> None:
    if config.rollout.engine is not None:
        read_key(config.rollout.engine)  # a mistake is said before models are loaded
    prompts = _read_prompts(config)
    good = [] if config.ptx is None else [r for p in config.ptx.exchanges for r in read_records(p, Exchange)]
    run.licences |= {record.licence for record in (*prompts, *good)}
    roles = load_roles(config.roles, critics, seed=config.seed)
    backbone = roles.roles[ACTOR].backbone
    scoring = load(config.scoring, roles, config.signals[1:])
    fitting, left_out = _fitting(prompts, backbone, config)
    rows = _ptx_rows(good, backbone.tokenizer, config)
    drawn = config.updates * config.rollout.prompts * config.rollout.samples
    say(f"{config.updates:,} updates, {drawn:,} responses to {len(fitting):,} prompts")
    line = align(config, run, roles, scoring, fitting, ptx_rows=rows, label=kind)
    save_actor(roles, run.out)
    last = {name: line[name] for name in ("reward", "costs", "budgets", "multipliers", "kl")}
    run.notes |= {"rows": len(fitting), "left_out": dict(left_out), "responses": drawn, "ptx_rows": len(rows)}
    run.notes |= {"last_rollout": last}
    about = f"aligned by {kind} over {config.updates} updates and {drawn} responses of its own"
    if config.scoring.maxmin is not None:
        last["groups"] = line["groups"]
        about += f", under {config.scoring.maxmin.aggregate} of the groups {', '.join(line['groups'])}"
    model_card(run, "Policy", config.roles.policy, about, constraints=_held(line))


def _held(line: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"budget {line['budgets'][name]:.4g}, mean cost {cost:.4g} in the last rollout, "
        f"multiplier {line['multipliers'][name]:.4g} ({line['states'][name]})"
        for name, cost in line["costs"].items()
    }


def _read_prompts(config: OnlineConfig) -> list[Prompt]:
    """Return all prompts, whose ids decide what is drawn."""
    prompts = [record for path in config.prompts for record in read_records(path, Prompt)]
    counts = Counter(prompt.id for prompt in prompts)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"prompts: id '{twice}': there {counts[twice]} times; expected ids that differ")
    return prompts


def _fitting(
    prompts: Sequence[Prompt], backbone: Backbone, config: OnlineConfig
) -> tuple[list[Prompt], Counter[str]]:
    """Return the prompts that are not too long, and how many are."""
    limit = config.rollout.max_prompt_tokens
    positions = positions_of(backbone.model)
    if positions is not None:
        limit = min(limit, positions - config.rollout.max_new_tokens)
    lengths = [len(chat_ids(backbone.tokenizer, messages_of(prompt.prompt))) for prompt in prompts]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= limit]
    left_out = Counter({f"over {limit} tokens": len(prompts) - len(kept)} if len(kept) < len(prompts) else {})
    if len(kept) < config.rollout.prompts:
        why = f" ({told(left_out)})" if left_out else ""
        raise DataError(
            f"prompts: got {len(kept)}{why}; expected at least the {config.rollout.prompts} of a rollout"
        )
    if left_out:
        say(f"prompts left out: {told(left_out)}")
    return kept, left_out


def _ptx_rows(
    exchanges: Sequence[Exchange], tokenizer: PreTrainedTokenizerBase, config: OnlineConfig
) -> list[Row]:
    """Return what is to be remembered, in tokens."""
    if config.ptx is None:
        return []
    good = [record for record in exchanges if record.is_safe is not False and record.response.strip()]
    rows = [make_row(tokenizer, record.prompt, [record.response]) for record in good]
    kept = [row for row in rows if row.length <= config.ptx.max_tokens]
    if not kept:
        raise DataError("ptx.exchanges: none is left; expected answers that are not unsafe and not too long")
    if len(kept) < len(exchanges):
        say(f"ptx.exchanges left out: {len(exchanges) - len(kept)} unsafe, empty or too long")
    return kept
