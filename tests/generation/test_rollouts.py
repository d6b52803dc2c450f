"""Rollouts against the model that wrote them."""

from pathlib import Path

import torch

from equipoise.generation.local import LocalGenerator, load_generator
from equipoise.generation.rollouts import Rollout, roll_out, rows_of
from equipoise.models.backbone import add_lora, load_causal
from equipoise.models.layout import Row, response_logps
from equipoise.models.roles import Role, Roles
from equipoise.protocols import Sampling
from equipoise.records import Message, Prompt

CHAT = (
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Yes"),
    Message(role="user", content="Why are there tides?"),
)
PROMPTS = [
    Prompt(id="bread", prompt="How do I bake bread?", source="own", licence="CC0-1.0"),
    Prompt(id="tides", prompt=CHAT, source="own", licence="CC0-1.0"),
]
SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, samples=3, seed=4)


def generator_that_ends(folder: Path) -> LocalGenerator:
    generator = load_generator(folder, device="cpu")
    generator.stop_ids = frozenset({*generator.stop_ids, *range(100, 130)})  # often enough to see some
    return generator


def test_log_probabilities_are_what_the_policy_says_of_the_rows(tiny_llama: Path) -> None:
    generator = generator_that_ends(tiny_llama)
    found = roll_out(generator, PROMPTS, SAMPLING)
    flat = [r for responses in found for r in responses]
    rows = rows_of(flat)
    assert [len(row.responses) for row in rows] == [3, 3]
    said = response_logps(generator.model, rows)
    assert said.lengths.tolist() == [len(r.logps) for r in flat]
    torch.testing.assert_close(
        said.tokens.detach(), torch.tensor([p for r in flat for p in r.logps]), rtol=0, atol=2e-5
    )


def test_what_ended_is_told_from_what_was_cut_off(tiny_llama: Path) -> None:
    generator = generator_that_ends(tiny_llama)
    flat = [r for responses in roll_out(generator, PROMPTS, SAMPLING) for r in responses]
    assert {r.is_truncated for r in flat} == {True, False}
    for r in flat:
        assert (r.ids[-1] in generator.stop_ids) is not r.is_truncated
        assert not generator.stop_ids & set(r.ids[:-1])
        assert len(r.ids) == 12 or not r.is_truncated
    texts = generator([[m.model_dump() for m in CHAT]], SAMPLING, ["tides"])[0]
    assert [r.text for r in flat[3:]] == texts
    assert [(r.prompt.id, r.sample) for r in flat] == [(i, k) for i in ("bread", "tides") for k in range(3)]
    assert (flat[4].exchange.id, flat[4].exchange.prompt) == ("tides#1", CHAT)


def test_an_actor_writes_with_its_adapter_and_the_base_without(tiny_llama: Path) -> None:
    backbone = load_causal(tiny_llama, device="cpu")
    trunk = backbone._replace(model=add_lora(backbone.model, rank=2))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in trunk.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    roles = Roles({"actor": Role(trunk, "default", learns=True), "reference": Role(trunk)}, {})

    def written(name: str) -> list[list[int]]:
        with roles.use(name, learning=False) as role:
            return tokens(roll_out(LocalGenerator(role.backbone), PROMPTS, SAMPLING))

    base = tokens(roll_out(load_generator(tiny_llama, device="cpu"), PROMPTS, SAMPLING))
    assert written("reference") == base
    assert written("actor") != base


def tokens(rollouts: list[list[Rollout]]) -> list[list[int]]:
    return [r.ids for responses in rollouts for r in responses]


def test_only_neighbours_share_a_row() -> None:
    def one(name: str, ids: list[int]) -> Rollout:
        prompt = Prompt(id=name, prompt=name, source="own", licence="CC0-1.0")
        return Rollout(prompt, 0, [1, len(name)], ids, "", False, ())

    rollouts = [one("a", [5]), one("a", [6]), one("bb", [7]), one("a", [8])]
    assert rows_of(rollouts) == [Row([1, 1], [[5], [6]]), Row([1, 2], [[7]]), Row([1, 1], [[8]])]
