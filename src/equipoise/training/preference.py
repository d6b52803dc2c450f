"""Align a policy on pairs: `equipoise train preference --set pairs=[FILE] --set objective=safe_dpo`.

A pair is one row: the prompt once, both responses behind it. The reference is the model as it was
loaded, so its log-probabilities are computed once, before the first step, and kept for other runs; a
policy that goes on from the output of an earlier run has that run's result for its reference.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from equipoise.config import InputPath, IsAside, ModelRef, bind
from equipoise.data.io import read_records
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import Run, Step
from equipoise.models.backbone import load_causal
from equipoise.models.layout import Row
from equipoise.objectives.message_wise import MESSAGE_WISE_LOSSES, TokenPairs
from equipoise.objectives.multi_objective import MULTI_OBJECTIVE_LOSSES
from equipoise.objectives.preference import PREFERENCE_LOSSES, REFERENCE_FREE, PairLogps
from equipoise.objectives.unpaired import UNPAIRED_LOSSES, LabelledLogps
from equipoise.progress import say
from equipoise.records import Pair
from equipoise.training.cards import model_card
from equipoise.training.margins import Answered, MarginSettings, policy_margins, scorer_margins
from equipoise.training.memory import say_footprint, say_work
from equipoise.training.messages import (
    MessageLosses,
    MessageSettings,
    kept_tokens,
    message_scores,
    message_task,
)
from equipoise.training.pair_order import (
    LabelledRow,
    OrderedPair,
    PairSettings,
    label_answers,
    no_severity,
    order_pairs,
    told,
)
from equipoise.training.paired import PreferenceLosses, pair_task
from equipoise.training.policy import (
    LoraSettings,
    Tune,
    frozen_below,
    prepare,
    save_policy,
    weights_in,
)
from equipoise.training.policy_rows import check_positions
from equipoise.training.reference import ReferenceCache, shared_folder
from equipoise.training.trainer import OptimSettings, Task, fit
from equipoise.training.unpaired import UnpairedLosses, borrowed_rows, unpaired_task

OBJECTIVES: dict[str, Callable[..., Tensor]] = (
    PREFERENCE_LOSSES | MULTI_OBJECTIVE_LOSSES | MESSAGE_WISE_LOSSES | UNPAIRED_LOSSES
)
"""What `objective` may be; an unpaired one is given the answers of a pair one by one."""


class PreferenceOptim(OptimSettings):
    """How a policy is optimised on pairs, unless said otherwise."""

    lr: float = Field(default=5e-5, gt=0)


class PreferenceConfig(PairSettings):
    """Settings of `train preference`."""

    pairs: tuple[InputPath, ...] = Field(min_length=1)
    model: ModelRef = "smollm2-135m"
    objective_params: dict[str, float] = {}
    """Keyword parameters of the objective, for example beta."""
    margin: MarginSettings | None = None
    """What else is wished for, as MODPO and its like need it."""
    messages: MessageSettings | None = None
    """Which tokens are learned from, as ADPO needs it."""
    tune: Tune = "lora"
    """lora: adapters in all layers; top: the highest layers, on what the others made once of every token
    (kept on disk meanwhile), the output embedding as it was; full: all weights."""
    top_layers: int = Field(default=2, ge=1)
    """Layers that learn where `tune` is top."""
    lora: LoraSettings = LoraSettings()
    keep_reference: Annotated[bool, IsAside()] = True
    """Keep what the reference says in the cache, for other runs on the same rows from the same model."""
    optim: PreferenceOptim = PreferenceOptim()

    @model_validator(mode="after")
    def _fits_the_objective(self) -> "PreferenceConfig":
        if self.preference == "is_safe" and self.objective not in UNPAIRED_LOSSES:
            known = ", ".join(UNPAIRED_LOSSES)
            raise ValueError(
                f"preference: is_safe labels single answers, got objective {self.objective}; expected {known}"
            )
        if self.preference == "is_safe" and (self.both_unsafe_weight is not None or self.severity_weight):
            raise ValueError("preference: is_safe makes no pairs, got a weight of pairs; expected none")
        for name, given, table in (
            ("margin", self.margin, MULTI_OBJECTIVE_LOSSES),
            ("messages", self.messages, MESSAGE_WISE_LOSSES),
        ):
            if (given is not None) != (self.objective in table):
                got = "none" if given is None else "one"
                raise ValueError(
                    f"{name}: got {got} with objective {self.objective};"
                    f" expected one with {' or '.join(table)}, and with no other"
                )
        return self


def train_preference(
    config: PreferenceConfig, run: Run, loss: Callable[[PairLogps], Tensor] | None = None
) -> None:
    """Align a policy into `run.out`; `loss` replaces the configured objective by a function of yours."""
    objective: Callable[..., Tensor] = loss or objective_of(config)
    pairs = [record for path in config.pairs for record in read_records(path, Pair)]
    run.licences |= {pair.licence for pair in pairs}
    optim, top = config.optim, config.top_layers if config.tune == "top" else 0
    say_footprint(config.model, config.tune, config.lora, optim.device, top_layers=top)
    backbone = load_causal(config.model, dtype=weights_in(config.tune), device=optim.device, merge=True)
    single = config.objective in UNPAIRED_LOSSES and loss is None
    labelled: list[LabelledRow] = []
    ordered: list[OrderedPair] = []
    borrowed: list[Row] = []
    if single:
        labelled, borrowed, left_out = _label(backbone.tokenizer, pairs, config)
    else:
        ordered, left_out = order_pairs(backbone.tokenizer, pairs, config, optim.seed)
    rows = [one.row for one in labelled or ordered]
    _check_left(rows, left_out)
    every = [*rows, *borrowed]
    check_positions(f"max_tokens: {config.max_tokens}", backbone.model, every)
    _check_severity(ordered, config)
    free = config.objective in REFERENCE_FREE and loss is None
    cache = None if free else _cache(config, run, backbone.model, every)
    policy = prepare(backbone, config.tune, config.lora, optim.seed, top_layers=top)
    with frozen_below(policy, every, top, optim, run.scratch) as below:
        beta = _logged_beta(config)
        if cache is not None and single:
            task = _single_task(UnpairedLosses(policy, objective, beta), labelled, borrowed, cache, run)
        elif cache is not None and config.messages is not None and loss is None:
            losses = MessageLosses(policy, objective, beta)
            task = _message_task(losses, ordered, config, cache, run=run, tokenizer=backbone.tokenizer)
        else:
            paired = PreferenceLosses(policy, objective, beta, has_reference=cache is not None)
            task = _pair_task(paired, ordered, config, cache, run=run, tokenizer=backbone.tokenizer)
        say_work(task.lengths, optim)
        fit(task._replace(beside=below), optim, run, label=f"training policy ({config.objective})")
    save_policy(backbone, policy, run.out)
    run.notes |= {"rows": len(rows), "left_out": dict(left_out), "tokens": sum(r.length for r in rows)}
    model_card(run, "Policy", config.model, f"aligned by {config.objective} on {len(rows)} pairs")


def _cache(config: PreferenceConfig, run: Run, model: nn.Module, rows: Sequence[Row]) -> ReferenceCache:
    optim = config.optim
    return ReferenceCache(
        shared_folder() if config.keep_reference else run.scratch,
        model,
        tokens_per_batch=optim.micro_tokens,
        bf16=optim.bf16,
        top_layers=config.top_layers if config.tune == "top" else 0,
        below=rows,
    )


def _label(
    tokenizer: Any, pairs: Sequence[Pair], config: PreferenceConfig
) -> tuple[list[LabelledRow], list[Row], Counter[str]]:
    """Return rows for an unpaired objective, what each borrows, and what is left out."""
    found, left_out = label_answers(tokenizer, pairs, config, config.optim.seed)
    labelled, borrowed = borrowed_rows(found, config.max_tokens)
    if len(labelled) < len(found):
        reason = f"over {config.max_tokens} tokens with the responses of any other prompt"
        left_out[reason] = len(found) - len(labelled)
    return labelled, borrowed, left_out


def _single_task(
    losses: UnpairedLosses,
    labelled: Sequence[LabelledRow],
    borrowed: Sequence[Row],
    cache: ReferenceCache,
    run: Run,
) -> Task:
    known = cache.logps(losses.policy, [one.row for one in labelled])
    task = unpaired_task(losses, labelled, known, borrowed, cache.logps(losses.policy, borrowed))
    wanted = sum(sum(one.desirable) for one in labelled)
    run.notes |= {"desirable": wanted, "undesirable": sum(task.items) - wanted}
    return task


def _pair_task(
    losses: PreferenceLosses,
    pairs: Sequence[OrderedPair],
    config: PreferenceConfig,
    cache: ReferenceCache | None,
    *,
    run: Run,
    tokenizer: Any,
) -> Task:
    logps: Sequence[Tensor] = (torch.zeros(2),) * len(pairs)
    if cache is not None:
        logps = cache.logps(losses.policy, [one.row for one in pairs])
    return pair_task(losses, pairs, logps, _margin_rewards(config, pairs, logps, run, tokenizer))


def _logged_beta(config: PreferenceConfig) -> float:
    """Return the objective's beta, given or its own; 0.1 where it has none."""
    own = inspect.signature(OBJECTIVES[config.objective]).parameters.get("beta")
    return config.objective_params.get("beta", 0.1 if own is None else own.default)


def objective_of(config: PreferenceConfig) -> Callable[..., Tensor]:
    """Return the configured objective with its parameters fixed, tried once on numbers of our own.

    Raises:
        ConfigError: There is no such objective or parameter, or a value that it cannot work with.
    """
    objective = bind("objective", OBJECTIVES, config.objective, config.objective_params)
    one, two = torch.ones(1), torch.ones(2)
    sample: NamedTuple = PairLogps(*[one] * 8)
    if config.objective in UNPAIRED_LOSSES:
        sample = LabelledLogps(*[one] * 4)
    elif config.objective in MESSAGE_WISE_LOSSES:
        sample = TokenPairs(two, two, torch.arange(2), two > 0, pairs=1)
    try:
        objective(sample)
    except ValueError as exc:
        raise ConfigError(f"objective_params: {exc}") from exc
    return objective


def _message_task(
    losses: MessageLosses,
    pairs: Sequence[OrderedPair],
    config: PreferenceConfig,
    cache: ReferenceCache,
    *,
    run: Run,
    tokenizer: Any,
) -> Task:
    """Score every token, choose those that count, and ask the reference."""
    rows, settings = [one.row for one in pairs], config.messages
    assert settings is not None
    scores = message_scores(
        settings,
        rows,
        run.scratch / "scores.safetensors",
        tokenizer=tokenizer,
        tokens_per_batch=config.optim.micro_tokens,
        device=config.optim.device,
    )
    kept = kept_tokens(scores, rows, settings, (True, False))
    run.notes |= {"response_tokens": sum(map(len, kept)), "kept_tokens": int(torch.cat(kept).sum())}
    return message_task(losses, pairs, cache.logps(losses.policy, rows, each_token=True), kept)


def _margin_rewards(
    config: PreferenceConfig,
    pairs: Sequence[OrderedPair],
    reference: Sequence[Tensor],
    run: Run,
    tokenizer: Any,
) -> Tensor | None:
    if config.margin is None:
        return None
    if config.margin.scorer is not None:
        texts = [Answered(one.prompt, one.texts) for one in pairs]
        return scorer_margins(config.margin, texts, config.optim.device)
    return policy_margins(
        config.margin,
        [one.row for one in pairs],
        reference,
        run.scratch / "margin.safetensors",
        tokenizer=tokenizer,
        tokens_per_batch=config.optim.micro_tokens,
        device=config.optim.device,
    )


def _check_left(kept: Sequence[Any], left_out: Counter[str]) -> None:
    if not kept:
        raise DataError(f"pairs: none is left to train on ({told(left_out)})")
    if left_out:
        say(f"pairs left out: {told(left_out)}; {len(kept)} are trained on")


def _check_severity(pairs: Sequence[OrderedPair], config: PreferenceConfig) -> None:
    if config.objective_params.get("severity_margin") and all(one.severity_gap is None for one in pairs):
        raise no_severity("objective_params.severity_margin")


TRAIN_PREFERENCE = Step("train.preference", 4, train_preference, config=PreferenceConfig)
