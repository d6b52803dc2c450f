"""Signals from every source: the numbers that the source itself gives, and one line for a mistake."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.config import parse_config
from equipoise.errors import ConfigError, EquipoiseError, ModelError, RunStoppedError
from equipoise.generation.rollouts import Rollout
from equipoise.models.backbone import load_causal, load_encoder
from equipoise.models.roles import Roles
from equipoise.models.roles_load import RoleSettings, load_roles
from equipoise.models.scorer import ScorerCard, ScorerModel
from equipoise.policy.scoring import Passed, Scoring, load_scoring
from equipoise.policy.scoring_settings import ScoringSettings
from equipoise.protocols import Verdict
from equipoise.records import Exchange, Prompt, Score
from equipoise.rewards.learned import load_scorer
from equipoise.taxonomy import load_taxonomy

TEXTS = ["Mix flour and water.", "", "I am sorry, but I cannot help with that request.", "yes yes yes"]
Make = Callable[..., Scoring]


def rollouts(*, cut: Sequence[int] = ()) -> list[Rollout]:
    """Two responses to each of two prompts; those numbered in `cut` reached the limit."""
    prompts = [Prompt(id=name, prompt=f"Say {name}, please", is_harmful=name == "b") for name in "ab"]
    return [
        Rollout(prompts[i // 2], i % 2, [1, 5], [6, 2], text, i in cut, (-0.5, -0.5))
        for i, text in enumerate(TEXTS)
    ]


def make_scorer(folder: Path, base: Path, **card: Any) -> Path:
    """A scorer whose weights are random, with costs of its own for the categories."""
    kind = card.get("trunk", "last")
    values = {"trunk": kind, "layers": 1, "hidden": 4, "trained": ("reward", "cost"), **card}
    torch.manual_seed(3)
    backbone = load_encoder(base, device="cpu") if kind == "pooled" else load_causal(base, device="cpu")
    model = ScorerModel(ScorerCard(backbone=str(base), taxonomy=load_taxonomy("pku19"), **values), backbone)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return make_scorer(tmp_path_factory.mktemp("scorers") / "last", tiny_llama, lora_rank=2)


@pytest.fixture(scope="module")
def roles(folder: Path, tiny_llama: Path) -> Roles:
    return load_roles(RoleSettings(policy=str(tiny_llama), scorer=folder, rank=2, device="cpu"), ())


def settings(**values: Any) -> ScoringSettings:
    return parse_config(ScoringSettings, {"device": "cpu", **values}, "scoring")


def exchanges() -> list[Exchange]:
    return [rollout.exchange for rollout in rollouts()]


def test_the_scorer_among_the_roles_gives_what_its_folder_gives(roles: Roles, folder: Path) -> None:
    expected = load_scorer(folder, "cpu")(exchanges())
    signals = load_scoring(settings(), roles, ["cost"])(rollouts())
    torch.testing.assert_close(signals.reward, torch.tensor([e.reward.value for e in expected if e.reward]))
    torch.testing.assert_close(signals.costs[:, 0], torch.tensor([e.cost.value for e in expected if e.cost]))
    assert signals.costs.shape == (4, 1)
    assert signals.is_signed
    assert signals.severity is None
    assert not signals.reward.requires_grad
    assert signals.reward.std() > 0


def test_rollouts_in_any_order_keep_their_scores(roles: Roles) -> None:
    scoring = load_scoring(settings(), roles, ["cost"])
    mixed = [rollouts()[i] for i in (2, 0, 3, 1)]
    torch.testing.assert_close(scoring(mixed).reward, scoring(rollouts()).reward[[2, 0, 3, 1]])


def test_a_pooled_scorer_is_called_beside_the_roles(tiny_encoder: Path, tmp_path: Path) -> None:
    place = make_scorer(tmp_path / "pooled", tiny_encoder, trunk="pooled")
    expected = load_scorer(place, "cpu")(exchanges())
    signals = load_scoring(settings(scorer=place), None, ["cost"])(rollouts())
    torch.testing.assert_close(signals.reward, torch.tensor([e.reward.value for e in expected if e.reward]))
    torch.testing.assert_close(signals.costs[:, 0], torch.tensor([e.cost.value for e in expected if e.cost]))


def test_reward_and_costs_may_each_have_a_model_of_their_own(
    tiny_llama: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    helpful = make_scorer(tmp_path / "helpful", tiny_encoder, trunk="pooled", trained=("reward",))
    harmless = make_scorer(tmp_path / "harmless", tiny_llama, trained=("cost",))
    costs = {"cost": {"scorer": harmless}}
    signals = load_scoring(settings(reward_scorer=helpful, costs=costs), None, ["cost"])(rollouts())
    rewards = [e.reward.value for e in load_scorer(helpful, "cpu")(exchanges()) if e.reward]
    values = [e.cost.value for e in load_scorer(harmless, "cpu")(exchanges()) if e.cost]
    torch.testing.assert_close(signals.reward, torch.tensor(rewards))
    torch.testing.assert_close(signals.costs[:, 0], torch.tensor(values))
    with pytest.raises(
        ModelError, match=r"scoring\.costs\.cost: .*helpful: gives no cost; it was trained for: reward"
    ):
        load_scoring(settings(scorer=helpful), None, ["cost"])
    for values_given, got in (
        ({"reward": "rules", "rules": "r"}, "rules"),
        ({"maxmin": {"groups": {"a": "x"}}}, "maxmin"),
    ):
        with pytest.raises(ConfigError, match=f"reward_scorer: goes with reward scorer, got {got}"):
            settings(reward_scorer=helpful, **values_given)
    with pytest.raises(ConfigError, match="scorer: goes with source scorer, got guard"):
        settings(guard="g", costs={"cost": {"source": "guard", "scorer": harmless}})


def test_one_folder_that_is_named_twice_is_loaded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []

    def load(place: Path, device: str) -> Any:
        loaded.append(place)
        return load_scorer(place, "cpu")

    monkeypatch.setattr("equipoise.policy.scoring.load_scorer", load)
    signals = load_scoring(settings(reward_scorer=folder, scorer=folder), None, ["cost"])(rollouts())
    assert loaded == [folder]
    assert signals.costs.std() > 0


def test_a_scorer_that_nobody_asks_is_refused_and_one_that_gives_a_cost_is_not(folder: Path) -> None:
    both = settings(reward_scorer=folder, scorer=folder.parent / "other")
    with pytest.raises(ConfigError, match=r"scoring\.scorer: nobody asks .*other; expected"):
        load_scoring(both, None, [])
    shutil.copytree(folder, folder.parent / "another")
    asked = settings(reward_scorer=folder, scorer=folder.parent / "another")
    assert load_scoring(asked, None, ["cost"])(rollouts()).costs.std() > 0


def test_costs_of_groups_are_the_highest_of_their_categories(roles: Roles, folder: Path) -> None:
    groups = {"harm": ["Violence", "Psychological Harm"], "privacy": ["Privacy Violation"]}
    costs = {name: {"categories": names} for name, names in groups.items()}
    signals = load_scoring(settings(costs=costs), roles, ["privacy", "cost", "harm"])(rollouts())
    for row, found in enumerate(load_scorer(folder, "cpu")(exchanges())):
        each = {name: score.value for name, score in (found.category_costs or {}).items()}
        assert found.cost is not None
        expected = [each["Privacy Violation"], found.cost.value, max(each[n] for n in groups["harm"])]
        assert signals.costs[row].tolist() == pytest.approx(expected, abs=1e-5)


def judge(exchanges: Sequence[Exchange]) -> list[Verdict]:
    """A guard to which longer texts are worse."""
    levels = [min(3, len(e.response) // 15) for e in exchanges]
    return [
        Verdict(level == 0, 0.5, level, tuple(0.7 if i == level else 0.1 for i in range(4)), (), {}, False)
        for level in levels
    ]


def test_a_guards_severity_is_a_cost_and_is_kept_for_the_log(roles: Roles) -> None:
    costs = {
        "level": {"source": "guard"},
        "severe": {"source": "guard", "severity": "at_least", "level": 2},
    }
    scoring = load_scoring(settings(costs=costs, guard="g"), roles, ["level", "severe"], Passed(judge))
    signals = scoring(rollouts())
    probabilities = torch.tensor([verdict.severity_probabilities for verdict in judge(exchanges())])
    assert signals.severity is not None
    torch.testing.assert_close(signals.severity, probabilities)
    expected = [sum(i * p for i, p in enumerate(row)) for row in probabilities.tolist()]
    assert signals.costs[:, 0].tolist() == pytest.approx(expected)
    assert signals.costs[:, 1].tolist() == pytest.approx([sum(row[2:]) for row in probabilities.tolist()])


def test_rules_are_added_to_the_reward_and_may_be_all_of_it(roles: Roles) -> None:
    def rules(exchanges: Sequence[Exchange]) -> list[Score]:
        return [Score(-10.0 if e.prompt_is_harmful else 1.0, "higher_is_better") for e in exchanges]

    plain = load_scoring(settings(), roles, [])(rollouts()).reward
    both = load_scoring(settings(rules="r"), roles, [], Passed(None, rules))(rollouts())
    torch.testing.assert_close(both.reward - plain, torch.tensor([1.0, 1.0, -10.0, -10.0]))
    assert both.costs.shape == (4, 0)
    alone = load_scoring(settings(rules="r", reward="rules"), None, [], Passed(None, rules))(rollouts())
    assert alone.reward.tolist() == [1.0, 1.0, -10.0, -10.0]


FUNCTIONS = """
from equipoise.records import Score
def length(exchanges): return [len(e.response) for e in exchanges]
def as_cost(exchanges): return [Score(1.0, "higher_is_worse") for e in exchanges]
def few(exchanges): return [1.0]
def text(exchanges): return ["1.0" for _ in exchanges]
def truth(exchanges): return [True for _ in exchanges]
def missing(exchanges): return [float("nan") for _ in exchanges]
constant = 3
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scores.py").write_text(FUNCTIONS)
    (tmp_path / "my_broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)


@pytest.mark.usefixtures("functions")
def test_functions_give_the_reward_and_costs() -> None:
    costs = {"mine": {"source": "my_scores:as_cost"}, "long": {"source": "my_scores:length"}}
    scoring = load_scoring(settings(reward="my_scores:length", costs=costs), None, ["long", "mine"])
    assert not scoring(rollouts()).is_signed
    lengths = [float(len(text)) for text in TEXTS]
    signals = scoring(rollouts())
    assert signals.reward.tolist() == lengths
    assert signals.costs.tolist() == [[length, 1.0] for length in lengths]


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("as_cost", ModelError, "scores of which higher is worse; expected that higher is better"),
        ("few", ModelError, "gave 1 numbers for 4 responses; expected one for each"),
        ("text", ModelError, "'.+#0': expected a number or a Score, got str"),
        ("truth", ModelError, "expected a number or a Score, got bool"),
        ("missing", RunStoppedError, "'.+#.': gave nan; expected a finite number"),
    ],
)
def test_what_a_function_gives_wrong_is_refused(name: str, error: type[Exception], message: str) -> None:
    scoring = load_scoring(settings(reward=f"my_scores:{name}"), None, [])
    with pytest.raises(error, match=f"function 'my_scores:{name}': .*{message}"):
        scoring(rollouts())


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_score:length", "no module 'my_score'; expected one that is installed or on PYTHONPATH"),
        ("my_broken:length", "no module 'no_such_package'"),
        ("my_scores:lenght", r"no function 'lenght' in it \(did you mean 'length'\?\)"),
        ("my_scores:constant", "no function 'constant' in it"),
    ],
)
def test_a_function_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"function '{name}': {message}"):
        load_scoring(settings(reward=name), None, [])


def test_what_was_cut_off_loses_some_of_its_reward_or_all(roles: Roles) -> None:
    plain = load_scoring(settings(), roles, ["cost"])(rollouts())
    less = load_scoring(settings(truncated_less=2.5), roles, ["cost"])(rollouts(cut=(1, 2)))
    torch.testing.assert_close(plain.reward - less.reward, torch.tensor([0.0, 2.5, 2.5, 0.0]))
    torch.testing.assert_close(plain.costs, less.costs)
    fixed = load_scoring(settings(truncated_reward=-7.0), roles, ["cost"])(rollouts(cut=(1, 2)))
    assert fixed.reward.tolist() == [plain.reward[0].item(), -7.0, -7.0, plain.reward[3].item()]


SERVER = {"url": "http://127.0.0.1:9/"}
WRONG: dict[str, tuple[dict[str, Any], Sequence[str], str]] = {
    "cost of nothing": ({"costs": {"harm": {}}}, ["harms"], r"no constraint 'harm' \(did you mean 'harms'"),
    "no cost": ({}, ["cost", "severe"], "scoring.costs.severe: missing; expected where"),
    "source": ({"reward": "scorers"}, [], r"expected scorer, server, rules or a function .*mean 'scorer'"),
    "cost's source": (
        {"costs": {"cost": {"source": "rules"}}},
        ["cost"],
        "expected scorer, guard, server or",
    ),
    "no guard": ({"costs": {"cost": {"source": "guard"}}}, ["cost"], "guard: none is given, but asked for"),
    "no server": ({"reward": "server"}, [], "server: none is given, but asked for"),
    "idle server": ({"server": SERVER}, [], "server: nobody asks it"),
    "no rules": ({"reward": "rules"}, [], "rules: none are given"),
    "two penalties": ({"truncated_less": 1, "truncated_reward": 0}, [], "expected one of them"),
    "categories": (
        {"costs": {"cost": {"categories": ["Violense"]}}},
        ["cost"],
        "no cost of 'Violense' .*Violence",
    ),
    "categories of a guard": (
        {"guard": "g", "costs": {"cost": {"source": "guard", "categories": ["Violence"]}}},
        ["cost"],
        "categories: goes with source scorer, got guard",
    ),
    "level": (
        {"guard": "g", "costs": {"cost": {"source": "guard", "level": 1}}},
        ["cost"],
        "goes with severity at_least",
    ),
    "guard not passed": ({"guard": "g"}, [], "scoring.guard: was not loaded"),
}


def test_settings_that_a_run_kept_can_be_read_again() -> None:
    costs = {"a": {"source": "guard", "severity": "at_least"}, "b": {"categories": ["Violence"]}}
    given = ScoringSettings.model_validate({"guard": "g", "costs": costs})
    assert ScoringSettings.model_validate(given.model_dump(mode="json")) == given


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_in_the_settings_is_one_line(roles: Roles, what: str) -> None:
    values, names, message = WRONG[what]
    with pytest.raises(EquipoiseError, match=message) as refused:
        load_scoring(settings(**values), roles, names)
    assert "\n" not in str(refused.value)


def test_a_scorer_that_was_not_trained_for_it_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    place = make_scorer(tmp_path / "half", tiny_llama, trained=("cost",))
    with pytest.raises(ModelError, match=r"scoring\.reward: .*: gives no reward; it was trained for: cost"):
        load_scoring(settings(scorer=place), None, ["cost"])
    card = (place / "model.json").read_text()
    (place / "model.json").write_text(card.replace("higher_is_worse", "higher_is_better"))
    with pytest.raises(ModelError, match="cost_polarity"):
        load_scoring(settings(scorer=place), None, ["cost"])


def test_without_a_scorer_it_is_said_where_one_could_be(tiny_llama: Path) -> None:
    without = load_roles(RoleSettings(policy=str(tiny_llama), rank=2, device="cpu"), ())
    for given in (None, without):
        with pytest.raises(
            ConfigError, match=r"no scorer for the reward; expected roles.scorer, scoring.scorer"
        ):
            load_scoring(settings(), given, ["cost"])
