"""Train a scorer, reward and cost together: `equipoise train scorer --set pairs=[FILE] --out DIR`.

Every pair trains the heads it has labels for: `better` the reward; `safer` the rank term of the cost
and `is_safe` of each answer its sign terms. Ties train no rank term. With `category_weight` each category
has a cost of its own beside the overall one. With pooled features each answer is a row; where a language
model's last token is read a pair is one row whose answers share the prompt. Exchanges train the sign
of the cost by their own labels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from equipoise.config import Config, InputPath, IsAside, ModelRef
from equipoise.data.resolve import OnContradiction
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.models.features import (
    PairBatch,
    PairIds,
    PooledFeatures,
    embed,
    encode_pair,
    pad_pairs,
)
from equipoise.models.heads import ScorerHeads, Scores
from equipoise.models.scorer import RowBatch, ScorerCard, ScorerModel, Trunk, load_trunk
from equipoise.models.top import TopBatch, TopLayers
from equipoise.objectives.scoring import CostPairs, RewardPairs, bradley_terry, category_cost, cost
from equipoise.progress import say
from equipoise.training.cards import model_card
from equipoise.training.policy import frozen_below
from equipoise.training.policy_rows import check_positions, make_row
from equipoise.training.scorer_labels import PairLabels, pair_labels, read_pairs
from equipoise.training.scorer_rows import ScorerRows, read_single, scorer_rows, with_texts
from equipoise.training.trainer import OptimSettings, Task, fit

Embedder = Callable[[PooledFeatures, Sequence[PairIds]], Tensor]
"""Features of answers, [N, F], from a frozen trunk."""

_GENTLE: dict[str, dict[str, float]] = {"top": {"lr": 1e-4, "epochs": 3}}
"""Defaults for layers that know something already; fresh heads on a frozen trunk bear more."""


class ScorerOptim(OptimSettings):
    """How the scorer is optimised, unless said otherwise."""

    lr: float = Field(default=1e-3, gt=0)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    head_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the heads, which begin with nothing; `lr` where None."""
    weight_decay: float = Field(default=0.05, ge=0)
    checkpoint_every: Annotated[int, Field(ge=1), IsAside()] = 200
    log_every: int = Field(default=10, ge=1)


class ScorerConfig(Config):
    """Settings of `train scorer`."""

    pairs: tuple[InputPath, ...] = ()
    exchanges: tuple[InputPath, ...] = ()
    """Single answers that say whether they are safe, beside the pairs or alone; with a pooled trunk."""
    backbone: ModelRef = "minilm"
    trunk: Trunk = "pooled"
    tune: Literal["frozen", "top", "full", "lora"] = "frozen"
    """frozen: only the heads learn, with a pooled trunk on features computed once; top: the highest layers
    too, on what the others made once of every token (kept on disk meanwhile), with another learning rate
    and fewer epochs unless `optim` says so; lora: adapters in all layers; full: all weights."""
    top_layers: int = Field(default=2, ge=1)
    """Layers that learn where `tune` is top."""
    layers: int = Field(default=6, ge=1)
    """Layers that are pooled, the last and others at even steps below."""
    depth: int | None = Field(default=None, ge=1)
    """Layers of the model that are run at all, the first ones; all where None."""
    hidden: int = Field(default=128, ge=0)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    lora_rank: int = Field(default=16, ge=1)
    margin: float = 0.0
    """Margin of the reward's Bradley-Terry loss."""
    rank_weight: float = Field(default=1.0, ge=0)
    sign_weight: float = Field(default=1.0, ge=0)
    severity_margin: float = Field(default=0.0, ge=0)
    """Margin of the cost's rank terms for each level of severity between the two answers."""
    both_unsafe_weight: float = Field(default=1.0, ge=0)
    """What the cost's rank term of two unsafe answers counts for: 0 drops it, 1 keeps it."""
    category_weight: float = Field(default=0.0, ge=0)
    """Weight of the costs of single categories; 0 makes no heads for them."""
    centring: float = Field(default=0.001, ge=0)
    """Weight of the mean square of the scores, which keeps them near zero."""
    on_contradiction: OnContradiction = "error"
    """What becomes of pairs whose `safer` contradicts the safety labels, or that stand twice with
    opposite preferences; see `equipoise data check --on-contradiction`."""
    optim: ScorerOptim = ScorerOptim()

    @model_validator(mode="before")
    @classmethod
    def _gentle_where_tuned(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("optim", {}), dict):
            return given
        return given | {"optim": _GENTLE.get(str(given.get("tune")), {}) | given.get("optim", {})}

    @model_validator(mode="after")
    def _fits_the_trunk(self) -> "ScorerConfig":
        if self.tune == "lora" and self.trunk == "pooled":
            raise ValueError("tune: lora goes with trunk last, got pooled; expected frozen, top or full")
        if self.depth is not None and self.trunk == "last":
            raise ValueError("depth: goes with trunk pooled, got last; expected none")
        if self.exchanges and self.trunk == "last":
            raise ValueError("exchanges: go with trunk pooled, got last; expected pairs")
        if not self.pairs and not self.exchanges:
            raise ValueError("expected pairs (--data) or exchanges")
        return self


class ScorerBatch(NamedTuple):
    """Inputs of both answers of each pair, answer 0 and answer 1 in turn, with their labels."""

    inputs: PairBatch | RowBatch | TopBatch | Tensor
    labels: PairLabels

    def to(self, device: torch.device) -> "ScorerBatch":
        """Return the batch on another device."""
        return ScorerBatch(self.inputs.to(device), self.labels.to(device))


class ScorerLosses(nn.Module):
    """The scorer under training: one loss per pair, reward and cost terms added."""

    def __init__(self, model: nn.Module, config: ScorerConfig) -> None:
        """Wrap the whole scorer, or its heads alone where features are given."""
        super().__init__()
        self.model = model
        self.settings = config

    def forward(self, batch: ScorerBatch) -> Tensor:
        """Loss of each pair, [B]."""
        labels, config = batch.labels, self.settings
        if config.category_weight:
            found: Scores = self.model.every_score(batch.inputs)  # type: ignore[operator]
            rewards, costs, by_category = found
        else:
            rewards, costs = self.model(batch.inputs)
        reward_loss = bradley_terry(
            RewardPairs(rewards[0::2], rewards[1::2], labels.better),
            margin=config.margin,
            centring=config.centring,
        )
        terms = {
            "rank_weight": config.rank_weight,
            "sign_weight": config.sign_weight,
            "centring": config.centring,
            "severity_margin": config.severity_margin,
        }
        cost_loss = cost(
            CostPairs(costs[0::2], costs[1::2], *labels.harm),
            **terms,
            both_unsafe_weight=config.both_unsafe_weight,
        )
        if config.category_weight:
            each = CostPairs(by_category[0::2], by_category[1::2], *labels.categories)
            cost_loss = cost_loss + config.category_weight * category_cost(each, **terms)
        return reward_loss + cost_loss


class _HeadsOnTop(nn.Module):
    """The heads on what the top layers make of what was kept."""

    def __init__(self, top: TopLayers, heads: ScorerHeads) -> None:
        super().__init__()
        self.top = top
        self.heads = heads

    def forward(self, batch: TopBatch) -> tuple[Tensor, Tensor]:
        scores: tuple[Tensor, Tensor] = self.heads(self.top(batch))
        return scores

    def every_score(self, batch: TopBatch) -> Scores:
        return self.heads.every_score(self.top(batch))


def train_scorer(config: ScorerConfig, run: Run, embedder: Embedder = embed) -> None:
    """Train a scorer into `run.out`: weights, card with polarity, and the training log.

    `embedder` gives the features of a frozen trunk; one that remembers them serves many trainings.
    """
    pairs, treated = read_pairs(config.pairs, config.on_contradiction)
    pairs, exchanges, left_out = with_texts(pairs, read_single(config.exchanges))
    run.licences |= {record.licence for record in (*pairs, *exchanges)}
    rows = scorer_rows(pairs, exchanges)
    labels, trained, taxonomy = pair_labels(
        rows.pairs,
        alone=rows.alone,
        categories=config.category_weight > 0,
        taxonomies={exchange.taxonomy for exchange in exchanges},
    )
    if config.severity_margin and not labels.harm.severity_gap.any():
        raise DataError("severity_margin: no pair has answers of two known severities; expected one, or 0")
    backbone = load_trunk(
        config.trunk,
        config.backbone,
        config.optim.device,
        config.depth,
        dtype="float32" if config.tune in ("top", "full") else "auto",  # few bits are too few to learn in
    )
    card = ScorerCard(
        backbone=str(backbone.model.name_or_path),  # a folder's is absolute
        trunk=config.trunk,
        layers=config.layers,
        depth=config.depth,
        hidden=config.hidden,
        dropout=config.dropout,
        top_layers=config.top_layers if config.tune == "top" else 0,
        lora_rank=config.lora_rank if config.tune == "lora" else 0,
        trained=trained,
        taxonomy=taxonomy,
    )
    torch.manual_seed(config.optim.seed)
    model = ScorerModel(card, backbone)
    if config.tune in ("frozen", "top"):
        model.trunk.requires_grad_(False)
    for name in model.top_names():
        model.trunk.get_parameter(name).requires_grad_(True)
    with _task(model, rows, labels, config, embedder=embedder, run=run) as made:
        rates = () if config.optim.head_lr is None else [(model.heads, config.optim.head_lr)]
        task = made._replace(rates=rates, reads_all=config.tune != "full")
        fit(task, config.optim, run, label="training scorer")
    model.save(run.out)
    run.notes |= {"rows": len(pairs) + len(exchanges), "left_out": dict(left_out)}
    if any(treated):
        counts = {name: len(places) for name, places in treated._asdict().items()}
        say(f"pairs that contradict: {', '.join(f'{n} {name}' for name, n in counts.items())}")
        run.notes["contradicting"] = {**counts}
    model_card(
        run,
        "Scorer",
        config.backbone,
        f"scores {' and '.join(trained)} of a response",
        polarity={"reward": card.reward_polarity, "cost": card.cost_polarity},
    )


@contextmanager
def _task(
    model: ScorerModel,
    rows: ScorerRows,
    labels: PairLabels,
    config: ScorerConfig,
    *,
    embedder: Embedder,
    run: Run,
) -> Iterator[Task]:
    """Yield what to train, and note how many answers are cut; the model is whole again at the end."""
    ones = [1] * len(rows.pairs)
    if config.trunk == "last":
        shared = [make_row(model.tokenizer, p.prompt, [a.response for a in p.answers]) for p in rows.pairs]
        check_positions("pairs", model.trunk, shared)
        lengths = [row.length for row in shared]

        def collate_rows(chosen: Sequence[int]) -> ScorerBatch:
            return ScorerBatch(RowBatch(tuple(shared[i] for i in chosen)), labels.pick(torch.tensor(chosen)))

        with frozen_below(model.trunk, shared, model.card.top_layers, config.optim, run.scratch) as out:
            losses = ScorerLosses(model, config)
            yield Task(losses, lengths, ones, collate_rows, groups=rows.groups, beside=out)
        return
    encoded: list[PairIds] = [encode_pair(model.tokenizer, text) for row in rows.texts for text in row]
    run.notes["truncated"] = sum(one.truncated for one in encoded)
    if run.notes["truncated"]:
        say(f"answers that do not fit their window, whose end is not read: {run.notes['truncated']}")

    def task(module: nn.Module, lengths: Sequence[int], inputs: Callable[[list[int]], Any]) -> Task:
        """`inputs` are those of some answers."""

        def collate(chosen: Sequence[int]) -> ScorerBatch:
            answers = [2 * i + k for i in chosen for k in (0, 1)]
            return ScorerBatch(inputs(answers), labels.pick(torch.tensor(chosen)))

        return Task(ScorerLosses(module, config), lengths, ones, collate, groups=rows.groups)

    trunk: Any = model.trunk
    if config.tune == "frozen":
        features = embedder(trunk, encoded)
        yield task(model.heads, ones, lambda answers: features[answers])
        return
    lengths = [2 * max(len(encoded[2 * i].ids), len(encoded[2 * i + 1].ids)) for i in range(len(ones))]
    if config.tune == "full":
        yield task(model, lengths, lambda answers: pad_pairs([encoded[i] for i in answers]))
        return
    top = TopLayers(trunk, config.top_layers)
    below = top.below(encoded, run.scratch, bf16=config.optim.bf16)
    with top.cut() as out:
        yield task(_HeadsOnTop(top, model.heads), lengths, below.batch)._replace(beside=out)


TRAIN_SCORER = Step("train.scorer", 2, train_scorer, config=ScorerConfig)
