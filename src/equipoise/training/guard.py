"""Train a guard: `equipoise train guard --set exchanges=[FILE] --out DIR`.

Partly labelled rows mix in one run, since each row trains only the heads it has labels for: a row
with nothing but `is_safe` trains the first severity threshold, which is P(unsafe). A prompt with a
label of its own becomes a row without a response.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from equipoise.config import Config, InputPath, ModelRef
from equipoise.data.io import read_exchanges, read_records
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.models.backbone import load_encoder
from equipoise.models.features import PairBatch, PairIds, TextPair, embed, encode_pair, pad_pairs
from equipoise.models.guard import GuardCard, GuardModel, Target
from equipoise.objectives.classification import masked_bce, masked_cross_entropy, ordinal_nll
from equipoise.records import REFUSALS, Exchange, Prompt, text_of
from equipoise.taxonomy import Taxonomy, load_taxonomy
from equipoise.training.cards import model_card
from equipoise.training.trainer import OptimSettings, Task, fit

UNKNOWN = -1


class GuardOptim(OptimSettings):
    """How the guard is optimised, unless said otherwise."""

    lr: float = Field(default=5e-4, gt=0)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.1, ge=0)
    checkpoint_every: int = Field(default=200, ge=1)
    log_every: int = Field(default=10, ge=1)


class GuardConfig(Config):
    """Settings of `train guard`."""

    exchanges: tuple[InputPath, ...] = ()
    pairs: tuple[InputPath, ...] = ()
    """Both answers of each pair are exchanges too."""
    prompts: tuple[InputPath, ...] = ()
    """Prompts with labels of their own, which are judged without a response."""
    taxonomy: str = "pku19"
    backbone: ModelRef = "minilm"
    tune: Literal["frozen", "full"] = "frozen"
    """frozen: only the heads learn, on features computed once; full: the encoder learns too."""
    layers: int = Field(default=6, ge=1)
    """Layers that are pooled, the last and others at even steps below."""
    depth: int | None = Field(default=None, ge=1)
    """Layers of the model that are run at all, the first ones; all where None."""
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.6, ge=0, lt=1)
    unsafe_threshold: float = Field(default=0.5, ge=0, le=1)
    """On P(unsafe); stored in the guard."""
    category_threshold: float = Field(default=0.5, ge=0, le=1)
    """On P(category | unsafe)."""
    refusal_threshold: float = Field(default=0.5, ge=0, le=1)
    """On P(partial or full); below it a response counts as no refusal."""
    optim: GuardOptim = GuardOptim()

    @model_validator(mode="after")
    def _has_data(self) -> "GuardConfig":
        if not self.exchanges and not self.pairs and not self.prompts:
            raise ValueError("expected exchanges (--data), pairs or prompts")
        return self


class GuardTargets(NamedTuple):
    """Labels of rows; -1 or mask 0 where there is none."""

    level: Tensor
    """[B] severity."""
    unsafe: Tensor
    """[B] 1 unsafe, 0 safe."""
    categories: Tensor
    """[B, C] 0/1."""
    category_mask: Tensor
    """[B, C] 1 where looked at."""
    refusal: Tensor
    """[B] index into `records.REFUSALS`."""

    def pick(self, rows: Tensor) -> "GuardTargets":
        """Return the targets of some rows."""
        return GuardTargets(*(tensor[rows] for tensor in self))


class GuardBatch(NamedTuple):
    """Inputs (pairs, or features computed before) with their targets."""

    inputs: PairBatch | Tensor
    targets: GuardTargets

    def to(self, device: torch.device) -> "GuardBatch":
        """Return the batch on another device."""
        return GuardBatch(self.inputs.to(device), GuardTargets(*(t.to(device) for t in self.targets)))


class GuardLosses(nn.Module):
    """The guard under training: one loss per row, the sum over the heads it has labels for."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap the whole guard, or its heads alone where features are given."""
        super().__init__()
        self.model = model

    def forward(self, batch: GuardBatch) -> Tensor:
        """Loss of each row, [B]."""
        logits, targets = self.model(batch.inputs), batch.targets
        return (
            ordinal_nll(logits.severity, targets.level, targets.unsafe)
            + masked_bce(logits.categories, targets.categories, targets.category_mask)
            + masked_cross_entropy(logits.refusal, targets.refusal)
        )


def train_guard(config: GuardConfig, run: Run) -> None:
    """Train a guard into `run.out`: weights, card and the training log."""
    taxonomy = load_taxonomy(config.taxonomy)
    exchanges = read_exchanges(config.exchanges, config.pairs)
    prompts = [record for path in config.prompts for record in read_records(path, Prompt)]
    run.licences |= {record.licence for record in (*exchanges, *prompts)}
    texts, targets, kinds = guard_rows(exchanges, taxonomy, prompts)
    backbone = load_encoder(
        config.backbone,
        dtype="auto" if config.tune == "frozen" else "float32",  # few bits are too few to learn in
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
        targets=kinds,
        knows_refusals=bool((targets.refusal != UNKNOWN).any()),
        unsafe_threshold=config.unsafe_threshold,
        category_threshold=config.category_threshold,
        refusal_threshold=config.refusal_threshold,
    )
    torch.manual_seed(config.optim.seed)
    model = GuardModel(card, backbone)
    pairs = [encode_pair(model.tokenizer, text) for text in texts]
    fit(_task(model, pairs, targets, config.tune), config.optim, run, label="training guard")
    model.save(run.out)
    run.notes |= {"rows": len(texts), "truncated": sum(pair.truncated for pair in pairs)}
    model_card(run, "Guard", config.backbone, f"{len(taxonomy.names)} categories of {taxonomy.name}")


def guard_rows(
    exchanges: Sequence[Exchange], taxonomy: Taxonomy, prompts: Sequence[Prompt] = ()
) -> tuple[list[TextPair], GuardTargets, tuple[Target, ...]]:
    """Turn exchanges and prompts into texts and targets; rows without any label raise DataError.

    A prompt label becomes a row of its own, once per prompt. A harmful prompt takes the severity and
    categories of the worst response that goes along with it, where there is one; of a `prompts` record
    with the same text the own labels count.
    """
    texts: list[TextPair] = []
    rows: list[Exchange] = []
    asked: dict[str, Exchange] = {}
    for record in exchanges:
        if record.is_safe is not None or record.severity is not None or record.refusal is not None:
            texts.append(TextPair(text_of(record.prompt), record.response))
            rows.append(record)
        if record.prompt_is_harmful is not None:
            prompt = text_of(record.prompt)
            if prompt not in asked or (record.severity or 0) > (asked[prompt].severity or 0):
                asked[prompt] = record
    kinds: tuple[Target, ...] = ("response",) if rows else ()
    asked |= {text_of(p.prompt): _asked_alone(p) for p in prompts if p.is_harmful is not None}
    for prompt, record in asked.items():
        texts.append(TextPair(prompt, None))
        rows.append(_prompt_row(record))
    if not rows:
        raise DataError(
            "exchanges, pairs and prompts: no row has a label;"
            " expected is_safe, severity or refusal, or is_harmful of a prompt"
        )
    kinds += ("prompt",) if asked else ()
    return texts, _targets(rows, taxonomy), kinds


def _asked_alone(prompt: Prompt) -> Exchange:
    """Return a labelled prompt in the form of an exchange that went along with it."""
    own = prompt.model_dump(include={"id", "prompt", "source", "severity", "categories"})
    return Exchange(**own, response="", prompt_is_harmful=prompt.is_harmful, is_safe=not prompt.is_harmful)


def _prompt_row(record: Exchange) -> Exchange:
    harmful = bool(record.prompt_is_harmful)
    known = harmful and record.is_safe is False
    return record.model_copy(
        update={
            "is_safe": not harmful,
            "severity": record.severity if known else None if harmful else 0,
            "categories": record.categories if known else None if harmful else frozenset(),
            "refusal": None,
        }
    )


def _targets(rows: Sequence[Exchange], taxonomy: Taxonomy) -> GuardTargets:
    shape = (len(rows), len(taxonomy.names))
    level, unsafe, refusal = (torch.full((len(rows),), UNKNOWN) for _ in range(3))
    categories, mask = torch.zeros(shape), torch.zeros(shape)
    highest = len(taxonomy.severities) - 1
    for i, row in enumerate(rows):
        if row.severity is not None:
            if row.severity > highest:
                raise DataError(
                    f"{row.source}: {row.id}: severity is not on the scale of {taxonomy.name},"
                    f" got {row.severity}; expected 0 to {highest}"
                )
            level[i] = row.severity
        if row.is_safe is not None:
            unsafe[i] = int(not row.is_safe)
        elif row.severity is not None:
            unsafe[i] = int(row.severity > 0)
        if row.refusal is not None:
            refusal[i] = REFUSALS.index(row.refusal)
        if row.categories and unsafe[i] == 1:  # the head is P(category | unsafe)
            rated = taxonomy.names if row.rated is None else row.rated
            mask[i, [taxonomy.index(name) for name in rated]] = 1.0
            categories[i, [taxonomy.index(name) for name in row.categories]] = 1.0
    return GuardTargets(level, unsafe, categories, mask, refusal)


def _task(model: GuardModel, pairs: Sequence[PairIds], targets: GuardTargets, tune: str) -> Task:
    count = len(pairs)
    if tune == "frozen":
        model.trunk.requires_grad_(False)
        features = embed(model.trunk, pairs)

        def collate(rows: Sequence[int]) -> GuardBatch:
            index = torch.tensor(rows)
            return GuardBatch(features[index], targets.pick(index))

        return Task(GuardLosses(model.heads), [1] * count, [1] * count, collate)

    def collate_tokens(rows: Sequence[int]) -> GuardBatch:
        return GuardBatch(pad_pairs([pairs[i] for i in rows]), targets.pick(torch.tensor(rows)))

    return Task(GuardLosses(model), [len(pair.ids) for pair in pairs], [1] * count, collate_tokens)


TRAIN_GUARD = Step("train.guard", 1, train_guard, config=GuardConfig)
