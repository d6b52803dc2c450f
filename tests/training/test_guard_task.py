"""A step of the guard's training: the loss of a row is that of its pooled windows, groups stay whole."""

from pathlib import Path

import pytest
import torch

from equipoise.models.backbone import load_encoder
from equipoise.models.features import embed
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.models.windows import encode_windows, pad_pairs, pool_windows
from equipoise.objectives.classification import ordinal_nll, within_group_ranking
from equipoise.records import Exchange
from equipoise.taxonomy import load_taxonomy
from equipoise.training.guard_rows import guard_rows
from equipoise.training.guard_task import WindowedRows, guard_task, side_by_side

KINDS = load_taxonomy("pku19")
ROWS = [
    Exchange(id="a", prompt="bake bread", response="mix flour and water", is_safe=True),
    Exchange(id="b", prompt="take a coat", response="the weather changes " * 60, is_safe=False),
    Exchange(id="c", prompt="bake bread", response="wait " * 200, is_safe=False),
    Exchange(id="d", prompt="take a coat", response="yes", is_safe=True),
]
TEXTS, TARGETS, _, _ = guard_rows(ROWS, KINDS)


def fresh(encoder: Path) -> tuple[GuardModel, WindowedRows]:
    torch.manual_seed(0)
    card = GuardCard(
        taxonomy=KINDS,
        backbone=str(encoder),
        layers=2,
        hidden=8,
        targets=("response",),
        knows_refusals=False,
    )
    model = GuardModel(card, load_encoder(encoder, device="cpu"))
    return model, side_by_side([encode_windows(model.tokenizer, text) for text in TEXTS])


def expected(model: GuardModel, rank: float) -> torch.Tensor:
    """Loss of each row, its logits computed one row at a time."""
    each = []
    for text in TEXTS:
        windows = encode_windows(model.tokenizer, text)
        each.append(pool_windows(model(pad_pairs(windows)), [len(windows)]).severity)
    logits = torch.cat(each)
    losses = ordinal_nll(logits, TARGETS.passed, TARGETS.failed)
    return losses + rank * within_group_ranking(logits[:, 0], TARGETS.unsafe, TARGETS.group)


@pytest.mark.parametrize("tune", ["frozen", "top", "tokens"])
@pytest.mark.parametrize("rank", [0.0, 0.7])
@torch.no_grad()
def test_every_way_of_tuning_sees_the_same_losses(
    tune: str, rank: float, tiny_encoder: Path, tmp_path: Path
) -> None:
    model, rows = fresh(tiny_encoder)
    features = embed(model.trunk, rows.windows) if tune == "frozen" else None
    wanted = expected(model, rank)
    with guard_task(
        model,
        rows,
        TARGETS,
        features=features,
        top_layers=int(tune == "top"),
        scratch=tmp_path,
        rank_weight=rank,
    ) as task:
        order = [0, 2, 1, 3] if rank else [0, 1, 2, 3]  # with ranking an example is a prompt
        assert task.items == ([2, 2] if rank else [1] * 4)
        task.model.eval()
        found = task.model(task.collate(range(len(task.items))))
        torch.testing.assert_close(found, wanted[order], rtol=0, atol=1e-5)
        single = torch.cat([task.model(task.collate([i])) for i in range(len(task.items))])
        torch.testing.assert_close(single, wanted[order], rtol=0, atol=1e-5)


def test_an_examples_length_is_what_its_windows_take(tiny_encoder: Path, tmp_path: Path) -> None:
    model, rows = fresh(tiny_encoder)
    assert [count > 1 for count in rows.counts] == [False, True, True, False]
    with guard_task(model, rows, TARGETS, scratch=tmp_path) as task:
        for row, length in enumerate(task.lengths):
            batch = task.collate([row])
            assert batch.inputs.ids.numel() == length
            assert batch.counts == (rows.counts[row],)
