"""The scorer model: it reads the last token of each response, and its polarity is part of the folder."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from equipoise.errors import ModelError
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.features import TextPair, encode_pair, pad_pairs
from equipoise.models.layout import Row
from equipoise.models.scorer import RowBatch, ScorerCard, ScorerModel, Trunk, load_scorer_model, load_trunk

ROWS = (Row([5, 9, 30, 31], [[7, 8, 2], [40, 2]]), Row([6, 11], [[3, 4, 5, 6, 2], [77, 78, 2]]))


def fresh(ref: Path, trunk: Trunk, lora_rank: int = 0) -> ScorerModel:
    torch.manual_seed(3)
    card = ScorerCard(
        backbone=str(ref), trunk=trunk, layers=2, hidden=6, lora_rank=lora_rank, trained=("reward", "cost")
    )
    return ScorerModel(card, load_trunk(trunk, str(ref), "cpu")).eval()


@torch.no_grad()
def scores(model: ScorerModel) -> torch.Tensor:
    if model.card.trunk == "last":
        return torch.stack(model(RowBatch(ROWS)))
    texts = [TextPair("how do i bake bread", "mix flour and water"), TextPair("hi", "yes")]
    return torch.stack(model(pad_pairs([encode_pair(model.tokenizer, text) for text in texts])))


@torch.no_grad()
def test_a_decoder_reads_the_last_token_of_each_response(tiny_llama: Path) -> None:
    model = fresh(tiny_llama, "last")
    plain = AutoModel.from_pretrained(tiny_llama).eval()
    for k, features in enumerate(model.features(RowBatch(ROWS))):
        row = ROWS[k // 2]
        ids = torch.tensor([row.prompt + row.responses[k % 2]])
        torch.testing.assert_close(features, plain(ids).last_hidden_state[0, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("trunk", "rank"), [("pooled", 0), ("last", 0), ("last", 4)])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_scorer_comes_back_from_its_folder(
    *, tiny_llama: Path, tiny_encoder: Path, tmp_path: Path, trunk: Trunk, rank: int, frozen: bool
) -> None:
    model = fresh(tiny_llama if trunk == "last" else tiny_encoder, trunk, rank)
    if frozen and not rank:
        model.trunk.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save(tmp_path)
    again = load_scorer_model(tmp_path, "cpu")
    assert again.card == model.card.model_copy(update={"own_trunk": not frozen and not rank})
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ('"reward_polarity": "higher_is_better"', '"reward_polarity": "higher_is_worse"'),
        ('"cost_polarity": "higher_is_worse"', '"cost_polarity": "higher_is_better"'),
    ],
)
def test_another_polarity_does_not_load(tiny_encoder: Path, tmp_path: Path, ours: str, theirs: str) -> None:
    fresh(tiny_encoder, "pooled").save(tmp_path)
    text = (tmp_path / "model.json").read_text()
    assert ours in text
    (tmp_path / "model.json").write_text(text.replace(ours, theirs))
    with pytest.raises(ModelError, match=r"model\.json: (reward|cost)_polarity: ") as caught:
        load_scorer_model(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lacks", "rank"), [("heads.cost", 4), (".lora_B.", 4), (".q_proj.", 0)])
def test_weights_that_lack_a_part_do_not_load(
    tiny_llama: Path, tmp_path: Path, lacks: str, rank: int
) -> None:
    fresh(tiny_llama, "last", rank).save(tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors = load_tensors(path)
    kept = {name: tensor for name, tensor in tensors.items() if lacks not in name}
    assert len(kept) < len(tensors)
    save_tensors(path, kept)
    with pytest.raises(ModelError, match=f"{len(tensors) - len(kept)} tensors are missing"):
        load_scorer_model(tmp_path, "cpu")
