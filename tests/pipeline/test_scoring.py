"""Scores with a guard and rules loaded beside the scorer among the roles."""

from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.config import parse_config
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError, EquipoiseError, ModelError
from equipoise.generation.rollouts import Rollout
from equipoise.judges.rules import AskedOf, RulesCard, load_rules
from equipoise.lineage import content_hash, produce
from equipoise.models.backbone import load_causal, load_encoder
from equipoise.models.checkpoints import save_card
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.models.roles import Roles
from equipoise.models.roles_load import RoleSettings, load_roles
from equipoise.models.scorer import ScorerCard, ScorerModel
from equipoise.moderation.guard import load_guard
from equipoise.pipeline.online import TRAIN_GROUP_LAG
from equipoise.pipeline.scoring import load_scoring
from equipoise.policy.scoring_settings import ScoringSettings
from equipoise.policy.settings import GroupLagConfig
from equipoise.records import Prompt
from equipoise.rewards.rules import RuleSet
from equipoise.taxonomy import load_taxonomy

ANY = {
    "ideal": {"all": ["kind"]},
    "minimum_style": {"any": ["kind"]},
    "illogical": {"any": ["rude"]},
    "disallowed": {"any": ["harm"]},
}
RULES = {
    "name": "tiny",
    "propositions": [{"name": name, "question": f"Is it {name}?"} for name in ("kind", "rude", "harm")],
    "response_types": {"decline": ANY, "answer": ANY},
    "harmful": "decline",
    "harmless": "answer",
}
WEIGHTS = {"decline": [5.0, -1.0, -2.0], "answer": [-3.0, 1.0, 4.0]}


@pytest.fixture(scope="module")
def scorer(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    card = ScorerCard(
        backbone=str(tiny_llama), trunk="last", layers=1, hidden=4, lora_rank=2, trained=("reward", "cost")
    )
    folder = tmp_path_factory.mktemp("scorers") / "scorer"
    ScorerModel(card, load_causal(tiny_llama, device="cpu")).save(folder)
    return folder


@pytest.fixture(scope="module")
def roles(scorer: Path, tiny_llama: Path) -> Roles:
    return load_roles(RoleSettings(policy=str(tiny_llama), scorer=scorer, rank=2, device="cpu"), ())


@pytest.fixture(scope="module")
def rules(scorer: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rules fitted beside the scorer, graded by a language model."""
    folder = tmp_path_factory.mktemp("rules")
    card = RulesCard(
        rules=parse_config(RuleSet, RULES, "test"),
        grader=AskedOf(model=str(tiny_llama), dtype="float32"),
        weights=WEIGHTS,
        reward=content_hash(scorer),
    )
    save_card(folder, card)
    return folder


def make_guard(folder: Path, encoder: Path, **more: Any) -> Path:
    torch.manual_seed(1)
    values = {"layers": 2, "hidden": 8, "knows_refusals": False, **more}
    card = GuardCard(taxonomy=load_taxonomy("pku19"), backbone=str(encoder), **values)
    folder.mkdir()
    model = GuardModel(card, load_encoder(encoder, device="cpu"))
    model.trunk.requires_grad_(False)
    model.save(folder)
    return folder


def rollouts(is_harmful: bool | None = True) -> list[Rollout]:
    prompt = Prompt(id="p", prompt="How do I bake bread?", is_harmful=is_harmful)
    texts = ["Mix flour and water.", "I am sorry, but I cannot help."]
    return [Rollout(prompt, k, [1, 5], [6, 2], text, False, (-1.0, -1.0)) for k, text in enumerate(texts)]


def settings(**values: Any) -> ScoringSettings:
    return parse_config(ScoringSettings, {"device": "cpu", **values}, "scoring")


def test_a_guard_is_loaded_and_its_severity_is_the_cost(
    roles: Roles, tiny_encoder: Path, tmp_path: Path
) -> None:
    guard = make_guard(tmp_path / "guard", tiny_encoder, targets=("response",))
    costs = {"severity": {"source": "guard"}}
    signals = load_scoring(settings(guard=str(guard), costs=costs), roles, ["severity"])(rollouts())
    verdicts = load_guard(guard, "cpu")([rollout.exchange for rollout in rollouts()])
    for row, verdict in enumerate(verdicts):
        assert signals.severity is not None
        assert signals.severity[row].tolist() == pytest.approx(verdict.severity_probabilities, abs=1e-6)
        expected = sum(level * p for level, p in enumerate(verdict.severity_probabilities))
        assert signals.costs[row].item() == pytest.approx(expected, abs=1e-5)


def test_a_guard_that_judges_prompts_alone_is_refused(
    roles: Roles, tiny_encoder: Path, tmp_path: Path
) -> None:
    guard = make_guard(tmp_path / "guard", tiny_encoder, targets=("prompt",))
    with pytest.raises(DataError, match="response: this guard was not trained to judge it"):
        load_scoring(settings(guard=str(guard)), roles, ["cost"])


@pytest.mark.parametrize("is_harmful", [True, False])
def test_rules_are_added_once_by_what_the_prompt_calls_for(
    roles: Roles, rules: Path, scorer: Path, is_harmful: bool
) -> None:
    plain = load_scoring(settings(), roles, ["cost"])(rollouts())
    both = load_scoring(settings(rules=rules), roles, ["cost"])(rollouts(is_harmful))
    loaded = load_rules(rules, scorer=scorer, alone=True, device="cpu")
    known = {"prompt_is_harmful": is_harmful}
    exchanges = [rollout.exchange.model_copy(update=known) for rollout in rollouts()]
    assert {found.response_type for found in loaded.explain(exchanges)} == {
        "decline" if is_harmful else "answer"
    }
    added = torch.tensor([score.value for score in loaded(exchanges)])
    torch.testing.assert_close(both.reward - plain.reward, added, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.costs, plain.costs)


def test_a_guard_says_what_the_prompt_calls_for_where_it_can(
    roles: Roles, rules: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    found = {}
    for name, threshold in (("strict", 0.0), ("open", 1.0)):  # every prompt harmful, or none
        guard = make_guard(
            tmp_path / name, tiny_encoder, targets=("response", "prompt"), unsafe_threshold=threshold
        )
        given = settings(rules=rules, guard=str(guard))
        found[name] = load_scoring(given, roles, ["cost"])(rollouts(None)).reward
    for name, is_harmful in (("strict", True), ("open", False)):
        expected = load_scoring(settings(rules=rules), roles, ["cost"])(rollouts(is_harmful)).reward
        torch.testing.assert_close(found[name], expected)
    assert not torch.equal(found["strict"], found["open"])


@pytest.mark.parametrize(
    ("last", "guard", "why"),
    [
        (
            {},
            None,
            r"prompts.jsonl: p3: is_harmful: expected true or false, or provenance.response_type",
        ),
        ({"response_type": "declin"}, None, "p3: provenance.response_type: no response type 'declin'"),
        ({"response_type": "declin"}, "default", "no response type 'declin'"),
        ({}, "default", "gone"),  # the guard will say what the prompt calls for
        ({}, "of responses", "p3: is_harmful: expected true or false"),
    ],
)
def test_a_prompt_that_rules_cannot_use_is_named_before_a_model_is_loaded(
    last: dict[str, Any], guard: str | None, why: str, rules: Path, tmp_path: Path
) -> None:
    told = {"layers": 2, "hidden": 8, "knows_refusals": False, "targets": ("response",)}
    card = GuardCard(taxonomy=load_taxonomy("pku19"), backbone="minilm", **told)
    save_card(tmp_path / "of responses", card)
    found = str(tmp_path / guard) if guard == "of responses" else guard
    prompts = [Prompt(id=f"p{i}", prompt=f"Say {i}", is_harmful=i % 2 == 0) for i in range(3)]
    prompts.append(Prompt(id="p3", prompt="Say 3", provenance=last))
    write_records(tmp_path / "prompts.jsonl", prompts)
    config = parse_config(
        GroupLagConfig,
        {
            "prompts": [tmp_path / "prompts.jsonl"],
            "roles": {"policy": str(tmp_path / "gone")},
            "constraints": [],
            "scoring": {"reward": "rules", "rules": rules, "guard": found},
            "rollout": {"prompts": 4, "samples": 2},
        },
        "test",
    )
    with pytest.raises(EquipoiseError, match=why):
        produce(tmp_path / "out", TRAIN_GROUP_LAG, config)


def test_rules_need_the_scorer_that_they_were_fitted_beside(roles: Roles, rules: Path) -> None:
    with pytest.raises(ModelError, match="fitted beside a scorer, got none"):
        load_scoring(settings(rules=rules, reward="rules"), roles, [])
    with pytest.raises(ModelError, match="fitted beside a scorer, got none"):
        load_scoring(settings(rules=rules, maxmin={"groups": {"a": "scorer"}}), roles, [])


def test_what_does_not_fit_is_said_before_anything_is_loaded(roles: Roles) -> None:
    with pytest.raises(ConfigError, match=r"scoring.costs.other: missing"):
        load_scoring(settings(guard="no-such-guard", rules="no-such-rules"), roles, ["other"])
