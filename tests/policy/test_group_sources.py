"""Rewards of groups from every kind of source: the numbers that the source itself gives."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.config import parse_config
from equipoise.errors import ConfigError, ModelError
from equipoise.generation.rollouts import Rollout
from equipoise.lineage import content_hash, produce
from equipoise.models.backbone import load_causal, load_encoder
from equipoise.models.features import PooledFeatures, TextPair
from equipoise.models.mixture import MixtureCard, MixtureModel, load_mixture
from equipoise.models.roles import Roles
from equipoise.models.roles_load import RoleSettings, load_roles
from equipoise.models.scorer import ScorerCard, ScorerModel
from equipoise.pipeline.online import TRAIN_GROUP_LAG
from equipoise.policy.group_sources import check_groups, group_names
from equipoise.policy.scoring import Passed, load_scoring
from equipoise.policy.scoring_settings import ScoringSettings
from equipoise.records import Exchange, Prompt, Score
from equipoise.rewards.learned import load_scorer

TEXTS = ["Mix flour and water.", "", "I am sorry, but I cannot help with that request.", "yes yes yes"]


def rollouts() -> list[Rollout]:
    prompts = [Prompt(id=name, prompt=f"Say {name}, please") for name in "ab"]
    return [
        Rollout(prompts[i // 2], i % 2, [1, 5], [6, 2], text, i == 3, (-0.5, -0.5))
        for i, text in enumerate(TEXTS)
    ]


def exchanges() -> list[Exchange]:
    return [rollout.exchange for rollout in rollouts()]


def settings(groups: dict[str, str] | Path, **more: Any) -> ScoringSettings:
    given = {"mixture": groups} if isinstance(groups, Path) else {"groups": groups}
    return parse_config(ScoringSettings, {"device": "cpu", "maxmin": given, **more}, "scoring")


def rewards_of(folder: Path) -> torch.Tensor:
    return torch.tensor(
        [found.reward.value for found in load_scorer(folder, "cpu")(exchanges()) if found.reward]
    )


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, Path]:
    """Two scorers whose weights are random, and differ."""
    folders = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        card = ScorerCard(
            backbone=str(tiny_llama),
            trunk="last",
            layers=1,
            hidden=4,
            lora_rank=2,
            trained=("reward", "cost"),
        )
        folders.append(tmp_path_factory.mktemp("scorers"))
        ScorerModel(card, load_causal(tiny_llama, device="cpu")).save(folders[-1])
    return folders[0], folders[1]


@pytest.fixture(scope="module")
def roles(scorers: tuple[Path, Path], tiny_llama: Path) -> Roles:
    return load_roles(RoleSettings(policy=str(tiny_llama), scorer=scorers[0], rank=2, device="cpu"), ())


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def length(exchanges): return [len(e.response) for e in exchanges]\n"
    (tmp_path / "group_scores.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "group_scores", raising=False)


@pytest.mark.usefixtures("functions")
def test_scorers_and_functions_give_each_group_its_reward(roles: Roles, scorers: tuple[Path, Path]) -> None:
    given = settings({"own": "scorer", "other": str(scorers[1]), "long": "group_scores:length"})
    signals = load_scoring(given, roles, ["cost"])(rollouts())
    assert signals.reward.tolist() == [0.0] * 4
    assert set(signals.groups) == {"own", "other", "long"}
    torch.testing.assert_close(signals.groups["own"], rewards_of(scorers[0]))
    torch.testing.assert_close(signals.groups["other"], rewards_of(scorers[1]))
    assert not torch.allclose(signals.groups["own"], signals.groups["other"])
    assert signals.groups["long"].tolist() == [float(len(text)) for text in TEXTS]
    costs = [found.cost.value for found in load_scorer(scorers[0], "cpu")(exchanges()) if found.cost]
    torch.testing.assert_close(signals.costs[:, 0], torch.tensor(costs))


@pytest.mark.usefixtures("functions")
def test_rules_and_what_was_cut_off_are_the_same_to_all_groups() -> None:
    def rules(exchanges: Sequence[Exchange]) -> list[Score]:
        return [Score(2.0, "higher_is_better") for _ in exchanges]

    given = settings({"long": "group_scores:length"}, rules="r", truncated_less=0.5)
    signals = load_scoring(given, None, [], Passed(None, rules))(rollouts())
    assert signals.reward.tolist() == [2.0, 2.0, 2.0, 1.5]
    assert signals.groups["long"].tolist() == [float(len(text)) for text in TEXTS]


@pytest.fixture
def server(serve_json: Callable[..., Any]) -> Iterator[str]:
    """The address of a server to whose groups `a` and `b` each response is worth its length, or less."""

    def reply(asked: Any) -> tuple[int, Any]:
        lengths = [len(row["response"]) for row in asked.body["exchanges"]]
        groups = {"a": lengths, "b": [-length for length in lengths]}
        return 200, {"groups": groups, "costs": {"cost": lengths}}

    with serve_json(reply) as desk:
        yield f"http://127.0.0.1:{desk.server_port}/score"
        desk.shutdown()


def test_a_server_gives_groups_their_rewards_and_costs_in_one_reply(server: str) -> None:
    costs = {"cost": {"source": "server"}}
    given = settings({"b": "server", "a": "server"}, server={"url": server}, costs=costs)
    signals = load_scoring(given, None, ["cost"])(rollouts())
    lengths = [float(len(text)) for text in TEXTS]
    assert signals.groups["a"].tolist() == lengths
    assert signals.groups["b"].tolist() == [-length for length in lengths]
    assert signals.costs[:, 0].tolist() == lengths
    assert signals.reward.tolist() == [0.0] * 4


@pytest.fixture(scope="module")
def mixture(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = load_encoder(tiny_encoder, device="cpu")
    card = MixtureCard(backbone=str(tiny_encoder), layers=2, unit="annotator", shares=(0.75, 0.25))
    width = PooledFeatures(backbone.model, 2).width
    heads = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("mixture")
    MixtureModel(card, backbone, heads).save(folder)
    return folder


def test_a_mixtures_heads_are_the_groups(mixture: Path) -> None:
    given = settings(mixture)
    assert given.maxmin is not None
    assert group_names(given.maxmin) == ("group1", "group2")
    signals = load_scoring(given, None, [])(rollouts())
    found = load_mixture(mixture, "cpu")([TextPair(e.prompt, e.response) for e in exchanges()])  # type: ignore[arg-type]
    assert list(signals.groups) == ["group1", "group2"]
    torch.testing.assert_close(torch.stack(list(signals.groups.values()), dim=1), found)


def test_a_mixture_is_trained_for_with_one_setting(mixture: Path, make_config: Any, tmp_path: Path) -> None:
    scoring = {"maxmin": {"mixture": mixture}, "device": "cpu"}
    config = make_config("group", scoring=scoring, constraints=[], updates=2)
    manifest = produce(tmp_path / "out", TRAIN_GROUP_LAG, config).manifest
    assert manifest.inputs["scoring.maxmin.mixture"].sha256 == content_hash(mixture)
    last = json.loads((tmp_path / "out" / "log.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["groups"].keys() == {"group1", "group2"}


def test_what_cannot_give_a_reward_is_refused(
    mixture: Path, scorers: tuple[Path, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    without = load_roles(RoleSettings(policy=str(tiny_llama), rank=2, device="cpu"), ())
    with pytest.raises(ConfigError, match=r"no scorer for group 'a' \(a folder of that name is \./scorer\)"):
        load_scoring(settings({"a": "scorer"}), without, [])
    with pytest.raises(ModelError, match="kind: holds equipoise-mixture; expected equipoise-scorer"):
        load_scoring(settings({"a": str(mixture)}), None, [])
    with pytest.raises(ModelError, match="kind: holds equipoise-scorer; expected equipoise-mixture"):
        load_scoring(settings(scorers[0]), None, [])
    with pytest.raises(ModelError, match=r"nothing: no model\.json; expected a folder written by"):
        load_scoring(settings({"a": str(tmp_path / "nothing")}), None, [])


@pytest.mark.usefixtures("functions")
def test_mistakes_are_found_before_anything_is_loaded(
    mixture: Path, scorers: tuple[Path, Path], tmp_path: Path
) -> None:
    check_groups(settings(mixture))
    check_groups(settings({"a": str(scorers[0]), "b": "group_scores:length", "c": "scorer"}))
    check_groups(parse_config(ScoringSettings, {}, "scoring"))
    with pytest.raises(ModelError, match="kind: holds equipoise-mixture; expected equipoise-scorer"):
        check_groups(settings({"a": str(mixture)}))
    with pytest.raises(ModelError, match="kind: holds equipoise-scorer; expected equipoise-mixture"):
        check_groups(settings(scorers[0]))
    card = (scorers[0] / "model.json").read_text("utf-8")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.json").write_text(
        card.replace('"reward",', "").replace('"reward"', ""), "utf-8"
    )
    with pytest.raises(ModelError, match=r"groups\.b: .*half: gives no reward; it was trained for: cost"):
        check_groups(settings({"b": str(tmp_path / "half")}))
