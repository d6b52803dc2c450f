"""Train a guard: `equipoise train guard --set exchanges=[FILE] --out DIR`.

Partly labelled rows mix in one run, since each row trains only the heads it has labels for. A long
response is read in windows, and the loss of its row is that of its pooled logits: the guard learns on
what it will judge by.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from equipoise.config import Config, InputPath, IsAside, ModelRef, TaxonomyRef
from equipoise.data.io import read_exchanges, read_records
from equipoise.lineage import Run, Step
from equipoise.models.backbone import Backbone, load_encoder
from equipoise.models.checkpoints import load_card
from equipoise.models.features import embed
from equipoise.models.guard import GuardCard, GuardModel, adapt, take_start, tuned_names
from equipoise.models.windows import MAX_WINDOWS, encode_all
from equipoise.records import Judgement, Prompt
from equipoise.taxonomy import load_taxonomy
from equipoise.training.cards import model_card
from equipoise.training.guard_rows import guard_rows
from equipoise.training.guard_task import guard_task, side_by_side
from equipoise.training.guard_weights import balanced, doubted, likely_errors
from equipoise.training.trainer import OptimSettings, fit

Tune = Literal["frozen", "top", "lora", "full"]

_GENTLE: dict[str, dict[str, float]] = {
    "top": {"lr": 1e-4, "epochs": 3},
    "lora": {"lr": 3e-4, "epochs": 3},
    "full": {"lr": 5e-5, "epochs": 3},
}
"""Defaults for weights that know something already; fresh heads on a frozen encoder bear more."""


class GuardOptim(OptimSettings):
    """How the guard is optimised, unless said otherwise."""

    lr: float = Field(default=5e-4, gt=0)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    """Rows of one step; where look-alikes are ranked, prompts with all their rows."""
    head_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the heads, which begin with nothing; `lr` where None."""
    weight_decay: float = Field(default=0.1, ge=0)
    checkpoint_every: Annotated[int, Field(ge=1), IsAside()] = 200
    log_every: int = Field(default=10, ge=1)


class GuardConfig(Config):
    """Settings of `train guard`."""

    exchanges: tuple[InputPath, ...] = ()
    pairs: tuple[InputPath, ...] = ()
    """Both answers of each pair are exchanges too."""
    prompts: tuple[InputPath, ...] = ()
    """Prompts with labels of their own, which are judged without a response."""
    judgements: tuple[InputPath, ...] = ()
    """Annotators' labels of exchanges (or answers, `ID#0`); their shares take the place of the record's."""
    taxonomy: TaxonomyRef = "pku19"
    backbone: ModelRef = "minilm"
    tune: Tune = "frozen"
    """frozen: only the heads learn, on features computed once; top: the highest layers too, on what the
    others made once of every token (kept on disk meanwhile); lora: adapters in all layers; full: all
    weights. What is tuned has another learning rate and fewer epochs unless `optim` says so."""
    start: InputPath | None = None
    """A guard on the same backbone to go on from. Of heads alone: an encoder that learns under heads that
    already know their task keeps more of what it knew (Kumar et al. 2022). With tuned top layers: `tune:
    frozen` keeps them and teaches the heads more, `tune: top` goes on with them too."""
    top_layers: int = Field(default=2, ge=1)
    """Layers that learn where `tune` is top."""
    lora_rank: int = Field(default=16, ge=1)
    layers: int = Field(default=6, ge=1)
    """Layers that are pooled, the last and others at even steps below."""
    depth: int | None = Field(default=None, ge=1)
    """Layers of the model that are run at all, the first ones; all where None."""
    max_windows: int = Field(default=MAX_WINDOWS, ge=1)
    """Overlapping windows of a long response, or prompt by itself, that are read, here and by the guard."""
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.6, ge=0, lt=1)
    balance: float = Field(default=0.0, ge=0, le=1)
    """0: every label counts alike; 1: the rarer outcomes of each head count as much as the others in sum."""
    doubt_weight: float = Field(default=1.0, ge=0, le=1)
    """What a harm label counts that is likely wrong by cross-validation; with 1 none is looked for."""
    rank_weight: float = Field(default=0.0, ge=0)
    """Weight of ranking unsafe above safe among the answers to one prompt, and harmful prompts above
    their benign twins."""
    rank_margin: float = Field(default=0.0, ge=0)
    """Log-odds between the two."""
    unsafe_threshold: float = Field(default=0.5, ge=0, le=1)
    """On P(unsafe); stored in the guard."""
    category_threshold: float = Field(default=0.5, ge=0, le=1)
    """On P(category | unsafe)."""
    refusal_threshold: float = Field(default=0.5, ge=0, le=1)
    """On P(partial or full); below it a response counts as no refusal."""
    optim: GuardOptim = GuardOptim()

    @model_validator(mode="before")
    @classmethod
    def _gentle_where_tuned(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("optim", {}), dict):
            return given
        return given | {"optim": _GENTLE.get(str(given.get("tune")), {}) | given.get("optim", {})}

    @model_validator(mode="after")
    def _has_data(self) -> "GuardConfig":
        if not self.exchanges and not self.pairs and not self.prompts:
            raise ValueError("expected exchanges (--data), pairs or prompts")
        return self


def train_guard(config: GuardConfig, run: Run) -> None:
    """Train a guard into `run.out`: weights, card and the training log."""
    taxonomy = load_taxonomy(config.taxonomy)
    exchanges = read_exchanges(config.exchanges, config.pairs)
    prompts = [record for path in config.prompts for record in read_records(path, Prompt)]
    judgements = [record for path in config.judgements for record in read_records(path, Judgement)]
    run.licences |= {record.licence for record in (*exchanges, *prompts, *judgements)}
    texts, targets, kinds, contradicting = guard_rows(exchanges, taxonomy, prompts, judgements)
    kept_layers = load_card(config.start, GuardCard).top_layers if config.start is not None else 0
    backbone = load_encoder(
        config.backbone,
        # few bits are too few to learn in, and to keep what was learned
        dtype="auto" if config.tune == "frozen" and not kept_layers else "float32",
        device=config.optim.device,
        depth=config.depth,
    )
    card = GuardCard(
        taxonomy=taxonomy,
        backbone=str(backbone.model.name_or_path),  # a folder's is absolute
        layers=config.layers,
        depth=config.depth,
        hidden=config.hidden,
        dropout=config.dropout,
        top_layers={"top": config.top_layers, "frozen": kept_layers}.get(config.tune, 0),
        lora_rank=config.lora_rank if config.tune == "lora" else 0,
        max_windows=config.max_windows,
        targets=kinds,
        knows_refusals=bool(targets.refusal.any()),
        unsafe_threshold=config.unsafe_threshold,
        category_threshold=config.category_threshold,
        refusal_threshold=config.refusal_threshold,
    )
    rows = side_by_side(encode_all(backbone.tokenizer, texts, config.max_windows))
    truncated = sum(rows.windows[i].truncated or rows.windows[i].context_truncated for i in rows.first)
    run.notes |= {"rows": len(texts), "windows": len(rows.windows), "truncated": truncated}
    run.notes["contradicting_prompts"] = contradicting
    model = _beginning(config, card, backbone)
    is_frozen, doubts = config.tune == "frozen", config.doubt_weight < 1
    features = embed(model.trunk, rows.windows, bf16=config.optim.bf16) if is_frozen or doubts else None
    if doubts and features is not None:
        doubtful = likely_errors(features[rows.first], targets.unsafe, texts, seed=config.optim.seed)
        targets = doubted(targets, doubtful, config.doubt_weight)
        run.notes["likely_label_errors"] = int(doubtful.sum())
    with guard_task(
        model,
        rows,
        balanced(targets, config.balance) if config.balance else targets,
        features=features if is_frozen else None,
        top_layers=0 if is_frozen else card.top_layers,
        scratch=run.scratch,
        prompts=[text.prompt for text in texts],
        bf16=config.optim.bf16,
        head_lr=config.optim.head_lr,
        rank_weight=config.rank_weight,
        rank_margin=config.rank_margin,
    ) as task:
        fit(
            task._replace(reads_all=config.tune not in ("full", "lora")),
            config.optim,
            run,
            label="training guard",
        )
    model.save(run.out)
    model_card(run, "Guard", config.backbone, f"{len(taxonomy.names)} categories of {taxonomy.name}")


def _beginning(config: GuardConfig, card: GuardCard, backbone: Backbone) -> GuardModel:
    """Return the guard as it begins, in which what is to learn requires gradients, and nothing else."""
    torch.manual_seed(config.optim.seed)
    if config.tune == "lora":
        adapt(backbone.model, config.lora_rank)
    model = GuardModel(card, backbone)
    if config.start is not None:
        take_start(model, config.start)
    model.requires_grad_(config.tune == "full")
    model.heads.requires_grad_(True)
    for name in tuned_names(model.trunk, card) if config.tune != "frozen" else ():
        model.trunk.get_parameter(name).requires_grad_(True)
    return model


TRAIN_GUARD = Step("train.guard", 4, train_guard, config=GuardConfig)
