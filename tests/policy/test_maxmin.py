"""Whole runs under MaxMin weights: the worst-off group gains, and one group changes nothing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from equipoise.config import deciding, load_config
from equipoise.errors import ConfigError, RunStoppedError
from equipoise.generation.rollouts import Rollout
from equipoise.lineage import Manifest, Step, produce
from equipoise.policy.scoring import Scoring, Signals
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig
from equipoise.policy.train import train_group_lag, train_ppo_lag

BUILDS: dict[type[OnlineConfig], Callable[..., None]] = {
    PpoLagConfig: train_ppo_lag,
    GroupLagConfig: train_group_lag,
}


def train(config: OnlineConfig, out: Path, scoring: Scoring) -> Manifest:
    """Run a training as a command does, with a scoring of our own."""
    build = BUILDS[type(config)]
    step = Step("train.test", 1, lambda c, run: build(c, run, lambda *_: scoring), config=type(config))
    return produce(out, step, config).manifest


def lines_of(out: Path, name: str = "log") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text("utf-8").splitlines()]


def maxmin(*names: str, **more: Any) -> dict[str, Any]:
    """Settings of groups; where their rewards come from is not asked by a scoring of our own."""
    return {"maxmin": {"groups": {name: f"own:{name}" for name in names}, **more}}


def scored_by(**groups: Callable[[Rollout], float]) -> Scoring:
    def score(rollouts: Sequence[Rollout]) -> Signals:
        none = torch.zeros(len(rollouts))
        given = {name: torch.tensor([one(r) for r in rollouts]) for name, one in groups.items()}
        return Signals(none, none[:, None][:, :0], None, given)

    return score


def keeping(seen: list[Rollout], scoring: Scoring) -> Scoring:
    """A scoring that keeps what it scores."""

    def keep(rollouts: Sequence[Rollout]) -> Signals:
        seen.extend(rollouts)
        return scoring(rollouts)

    return keep


def share(rollout: Rollout, ids: range) -> float:
    return sum(i in ids for i in rollout.ids) / len(rollout.ids)


def most(rollout: Rollout) -> float:
    return share(rollout, range(100, 200))


def few(rollout: Rollout) -> float:
    return share(rollout, range(200, 250))


def average(rollouts: Sequence[Rollout]) -> Signals:
    """What raters want on the average, of whom four in five are of one group."""
    found = scored_by(most=most, few=few)(rollouts)
    return found._replace(reward=0.8 * found.groups["most"] + 0.2 * found.groups["few"], groups={})


def test_the_worst_off_group_has_more_than_under_the_average_reward(make_config: Any, tmp_path: Path) -> None:
    """One group wants a kind of token, and a smaller group another."""
    more: dict[str, Any] = {
        "roles": {**make_config("group").roles.model_dump(), "tune": "full"},
        "rollout": {"prompts": 8, "samples": 4, "max_new_tokens": 8},
        "optim": {"lr": 0.004, "minibatches": 2, "clip_norm": 1.0},
        "kl": {"beta": 0.01},
        "scale": "none",
        "constraints": [],
        "updates": 24,
    }
    late: dict[str, dict[str, float]] = {}
    kinds = {
        "average": (average, {}),
        "maxmin": (scored_by(most=most, few=few), maxmin("most", "few", lr=0.1)),
    }
    for name, (scoring, settings) in kinds.items():
        seen: list[Rollout] = []
        train(make_config("group", scoring=settings, **more), tmp_path / name, keeping(seen, scoring))
        written = seen[-8 * 32 :]
        late[name] = {"most": fmean(map(most, written)), "few": fmean(map(few, written))}
        if name == "maxmin":
            start = min(fmean(map(most, seen[:32])), fmean(map(few, seen[:32])))
    assert late["average"]["most"] > 0.5  # those who are many have what they want
    assert late["average"]["few"] < start
    assert min(late["maxmin"].values()) > start
    assert min(late["maxmin"].values()) > min(late["average"].values()) + 0.1


@pytest.mark.parametrize("kind", ["ppo", "group"])
def test_one_group_is_the_plain_run_to_the_last_bit(
    kind: str, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    def of_one(rollouts: Sequence[Rollout]) -> Signals:
        found = arbitrary(rollouts)
        return found._replace(reward=torch.zeros(len(rollouts)), groups={"all": found.reward})

    plain = train(make_config(kind), tmp_path / "plain", arbitrary)
    grouped = train(make_config(kind, scoring=maxmin("all", lr=0.5)), tmp_path / "grouped", of_one)
    for without, line in zip(lines_of(tmp_path / "plain"), lines_of(tmp_path / "grouped"), strict=True):
        own = line.pop("groups")["all"]
        assert own["weight"] == 1
        assert own["reward"] == line["reward"]
        assert "groups" not in without
        assert without | {"seconds": 0} == line | {"seconds": 0}
    name = "adapter_model.safetensors"
    assert grouped.outputs[name] == plain.outputs[name]


def test_what_is_logged_of_groups(make_config: Any, tmp_path: Path) -> None:
    config = make_config("group", scoring=maxmin("most", "few"), constraints=[], updates=2)
    manifest = train(config, tmp_path / "out", scored_by(few=few, most=most))
    lines = lines_of(tmp_path / "out")
    for line in lines:
        assert list(line["groups"]) == ["most", "few"]
        assert line["groups"]["few"].keys() == {"reward", "compared", "weight"}
        assert sum(group["weight"] for group in line["groups"].values()) == pytest.approx(1)
    samples = lines_of(tmp_path / "out", "samples")
    assert samples[0]["groups"].keys() == {"most", "few"}
    rewards = [sample["reward"] for sample in samples]
    assert max(rewards) > min(rewards)  # of the groups together, which the scoring does not give
    assert manifest.notes["last_rollout"]["groups"] == lines[-1]["groups"]  # type: ignore[index, call-overload]
    assert "under min_of_mean of the groups most, few" in (tmp_path / "out" / "card.md").read_text("utf-8")


def test_what_a_scoring_adds_is_added_to_what_groups_give(make_config: Any, tmp_path: Path) -> None:
    def scoring(rollouts: Sequence[Rollout]) -> Signals:
        return scored_by(most=most)(rollouts)._replace(reward=torch.full((len(rollouts),), -5.0))

    config = make_config("group", scoring=maxmin("most"), constraints=[], updates=1)
    train(config, tmp_path / "out", scoring)
    (line,) = lines_of(tmp_path / "out")
    assert line["reward"] == pytest.approx(line["groups"]["most"]["reward"] - 5)


def test_other_groups_than_the_settings_name_are_refused(make_config: Any, tmp_path: Path) -> None:
    both = scored_by(most=most, few=few)
    none: dict[str, Any] = {"constraints": [], "updates": 1}
    with pytest.raises(ConfigError, match=r"got rewards of groups: most, few; expected none, or scoring\.m"):
        train(make_config("group", **none), tmp_path / "a", both)
    with pytest.raises(ConfigError, match="got rewards of the groups: most, few; expected: most, old"):
        train(make_config("group", scoring=maxmin("most", "old"), **none), tmp_path / "b", both)
    wrong = scored_by(most=lambda _: float("nan"))
    with pytest.raises(RunStoppedError, match=r"reward of group 'most' of '\w+#0' is nan \(12 of 12"):
        train(make_config("group", scoring=maxmin("most"), **none), tmp_path / "c", wrong)


def short(rollouts: Sequence[Rollout]) -> Signals:
    found = scored_by(most=most)(rollouts)
    return found._replace(groups={"most": found.groups["most"][1:]})


def test_another_number_of_rewards_is_refused(make_config: Any, tmp_path: Path) -> None:
    config = make_config("group", scoring=maxmin("most"), constraints=[])
    with pytest.raises(ConfigError, match=r"rewards of group 'most' of shape \(11,\); expected \(12,\)"):
        train(config, tmp_path / "out", short)


def test_settings_without_groups_are_those_that_they_were() -> None:
    given = ["prompts=[a.jsonl]", "roles.policy=tiny"]
    assert "maxmin" not in deciding(load_config(GroupLagConfig, None, given))["scoring"]
    config = load_config(GroupLagConfig, None, [*given, "scoring.maxmin.groups={a: 'm:a', b: folder}"])
    assert deciding(config)["scoring"]["maxmin"]["lr"] == 0.05
    assert GroupLagConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maxmin": {}}, "maxmin: got neither groups nor a mixture; expected one of them"),
        ({"maxmin": {"groups": {"a": "m:a"}, "mixture": "m"}}, "got both groups and a mixture"),
        ({**maxmin("a"), "reward": "m:f"}, "reward: goes not with maxmin, got m:f"),
        ({**maxmin("a"), "truncated_reward": 0}, r"truncated_reward: goes not with maxmin, got 0\.0"),
        (maxmin("a", lr=-1), r"maxmin\.lr: .*greater than or equal to 0, got -1"),
        (maxmin("a", aggregates="mean_of_min"), r"no such setting \(did you mean 'aggregate'\?\)"),
        ({"maxmin": {"groups": {"a": "server"}}}, "server: none is given, but asked for"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str) -> None:
    given = ["prompts=[a.jsonl]", "roles.policy=tiny", f"scoring={json.dumps(settings)}"]
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(GroupLagConfig, None, given)
    assert "\n" not in str(caught.value)
