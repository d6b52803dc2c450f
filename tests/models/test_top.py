"""Top layers on what was kept of the layers below: the whole trunk's features and gradients."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from equipoise.errors import ModelError
from equipoise.models.backbone import load_encoder
from equipoise.models.features import PooledFeatures
from equipoise.models.top import TopLayers
from equipoise.models.windows import PairIds, TextPair, encode_pair, pad_pairs

TEXTS = [
    TextPair("how do i bake bread", "mix flour, water and salt, then wait until the dough has doubled"),
    TextPair("take a warm coat", None),
    TextPair("why are there two tides a day", "yes"),
]


def from_folder(folder: Path, layers: int = 2) -> tuple[PooledFeatures, list[PairIds]]:
    backbone = load_encoder(folder, device="cpu")
    trunk = PooledFeatures(backbone.model, layers).eval()
    return trunk, [encode_pair(backbone.tokenizer, text) for text in TEXTS]


def sliding() -> tuple[PooledFeatures, list[PairIds]]:
    """Three layers of which the upper two differ in what they attend to."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        sliding_window=3,
        use_sliding_window=True,
        initializer_range=0.3,
    )
    windows = [PairIds(list(range(5, 5 + n)), [1] * 4 + [2] * (n - 4), False) for n in (20, 9, 14)]
    return PooledFeatures(Qwen3Model(config), 3).eval(), windows


def trunks(name: str, request: pytest.FixtureRequest) -> tuple[PooledFeatures, list[PairIds]]:
    return sliding() if name == "sliding" else from_folder(request.getfixturevalue(name))


CASES = [("tiny_encoder", 1), ("tiny_llama", 1), ("sliding", 1), ("sliding", 2)]


@pytest.mark.parametrize(("name", "top"), CASES)
def test_features_are_those_of_the_whole_trunk(
    name: str, top: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trunk, windows = trunks(name, request)
    with torch.no_grad():
        expected = trunk(pad_pairs(windows))
    layers = TopLayers(trunk, top)
    below = layers.below(windows, tmp_path)
    with layers.cut(), torch.no_grad():
        for rows in ([0, 1, 2], [2, 0], [1]):
            torch.testing.assert_close(layers(below.batch(rows)), expected[rows], rtol=0, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(trunk(pad_pairs(windows)), expected)
    assert not list(tmp_path.iterdir())  # nothing to clean up


@pytest.mark.parametrize(("name", "top"), CASES)
def test_gradients_are_those_of_the_whole_trunk(
    name: str, top: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trunk, windows = trunks(name, request)
    names = dict(trunk.named_parameters())
    layers = TopLayers(trunk, top)
    below = layers.below(windows, tmp_path)
    with layers.cut():
        own = {n for n, p in names.items() if any(p is q for q in layers.parameters()) and ".layer" in n}
        trunk.requires_grad_(False)
        for n in own:
            names[n].requires_grad_(True)
        layers(below.batch([0, 1, 2])).square().sum().backward()
    found = {n: names[n].grad.clone() for n in own if names[n].grad is not None}
    trunk.zero_grad()
    trunk(pad_pairs(windows)).square().sum().backward()
    assert len(found) > 5
    for n, gradient in found.items():
        torch.testing.assert_close(gradient, names[n].grad, rtol=1e-4, atol=1e-4)


def test_fewer_bits_below_give_nearly_the_same(tmp_path: Path, tiny_encoder: Path) -> None:
    trunk, windows = from_folder(tiny_encoder)
    exact, rounded = (
        torch.from_numpy(TopLayers(trunk, 1).below(windows, tmp_path, bf16=bf16).states[:])
        for bf16 in (False, True)
    )
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_the_layers_come_back_when_the_training_stops(tmp_path: Path, tiny_encoder: Path) -> None:
    trunk, windows = from_folder(tiny_encoder)
    before = [name for name, _ in trunk.named_parameters()]
    layers = TopLayers(trunk, 1)

    def stops() -> None:
        with layers.cut():
            assert len(list(trunk.parameters())) < len(before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stops()
    assert [name for name, _ in trunk.named_parameters()] == before
    assert trunk.encoder.config.num_hidden_layers == 2
    assert isinstance(trunk(pad_pairs(windows)), torch.Tensor)


@pytest.mark.parametrize("top", [0, 2, 7])
def test_something_must_stay_below(top: int, tiny_encoder: Path) -> None:
    expected = "1 or more" if top == 0 else "fewer, or tune: full"
    with pytest.raises(
        ModelError, match=f"top_layers: got {top} of a model with 2 layers; expected {expected}"
    ):
        TopLayers(from_folder(tiny_encoder)[0], top)


def test_the_stack_is_saved_once(tiny_encoder: Path) -> None:
    trunk, _ = from_folder(tiny_encoder)
    assert len(TopLayers(trunk, 1).state_dict()) == len(trunk.state_dict())
    assert isinstance(trunk, nn.Module)
