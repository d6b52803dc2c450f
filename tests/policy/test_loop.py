"""Whole runs of online training: what they log, how they go on after a kill, what stops them."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.config import load_config
from equipoise.errors import ConfigError, DataError, RunStoppedError
from equipoise.generation.local import load_generator
from equipoise.generation.rollouts import Rollout
from equipoise.lineage import Manifest, Step, produce, read_manifest
from equipoise.policy.scoring import Scoring, Signals
from equipoise.policy.settings import GroupLagConfig, OnlineConfig, PpoLagConfig
from equipoise.policy.train import train_group_lag, train_ppo_lag
from equipoise.protocols import Sampling

KEYS = {
    *("update", "responses", "reward", "reward_std", "costs", "excess", "budgets", "multipliers", "states"),
    *("kl", "harmful", "severity", "length", "truncated", "repetition", "entropy", "drift", "clip_fraction"),
    *("policy_loss", "value_losses", "ptx_loss", "grad_norm", "lr", "warnings", "seconds"),
}


def train(config: OnlineConfig, out: Path, scoring: Scoring) -> Manifest:
    """Run a training as a command does, with a scoring of our own."""
    builds: dict[type[OnlineConfig], Callable[..., None]] = {
        PpoLagConfig: train_ppo_lag,
        GroupLagConfig: train_group_lag,
    }
    build = builds[type(config)]
    step = Step("train.test", 1, lambda c, run: build(c, run, lambda *_: scoring), config=type(config))
    return produce(out, step, config).manifest


def lines_of(out: Path, name: str = "log") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text("utf-8").splitlines()]


def numbers_of(out: Path) -> list[str]:
    """The log without its clocks, as text: every bit counts."""
    return [json.dumps({k: v for k, v in line.items() if k != "seconds"}) for line in lines_of(out)]


class At:
    """A scoring that does something else in one of its calls, counted from 1."""

    def __init__(self, scoring: Scoring, call: int, instead: Callable[[Signals], Signals]) -> None:
        self.scoring, self.call, self.instead, self.calls = scoring, call, instead, 0

    def __call__(self, rollouts: Sequence[Rollout]) -> Signals:
        self.calls += 1
        found = self.scoring(rollouts)
        return self.instead(found) if self.calls == self.call else found


def killed(_: Signals) -> Signals:
    raise KeyError("as good as a kill")


def in_groups(scoring: Scoring) -> Scoring:
    """A scoring whose reward and cost are the rewards of two groups."""

    def score(rollouts: Sequence[Rollout]) -> Signals:
        found = scoring(rollouts)
        groups = {"a": found.reward, "b": 3 * found.costs[:, 0]}
        return found._replace(reward=torch.zeros(len(rollouts)), groups=groups)

    return score


def watching(scoring: Scoring) -> tuple[list[Rollout], Scoring]:
    """A list that fills with what is scored, and the scoring that fills it."""
    seen: list[Rollout] = []

    def watched(rollouts: Sequence[Rollout]) -> Signals:
        seen.extend(rollouts)
        return scoring(rollouts)

    return seen, watched


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ppo", {"multiplier": {"rule": "log_sgd", "window": 20}, "optim": {"schedule": "cosine"}}),
        ("group", {"optim": {"epochs": 2}, "kl": {"beta": 0.1}}),
        ("group", {"scoring": {"maxmin": {"groups": {"a": "own:a", "b": "own:b"}, "lr": 0.5}}}),
    ],
)
def test_a_run_that_is_killed_goes_on_with_the_same_log(
    kind: str, more: dict[str, Any], make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    ptx = tmp_path / "good.jsonl"
    ptx.write_text('{"id": "a", "prompt": "what of bread", "response": "bake it well"}\n', "utf-8")
    config = make_config(kind, checkpoint_every=2, ptx={"exchanges": [ptx], "batch_size": 1}, **more)
    scoring = arbitrary if config.scoring.maxmin is None else in_groups(arbitrary)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, whole, scoring)
    with pytest.raises(KeyError):
        train(config, broken, At(scoring, 4, killed))  # the third update is written, and not yet kept
    assert len(lines_of(broken)) == 3
    assert [f.name for f in (broken / "scratch" / "checkpoints").iterdir()] == ["checkpoint-2"]
    one = read_manifest(whole / "manifest.json")
    two = train(config, broken, counted := At(scoring, 0, killed))
    assert counted.calls == 2
    assert numbers_of(broken) == numbers_of(whole)
    assert lines_of(broken, "samples") == lines_of(whole, "samples")
    assert two.attempts == 2
    assert two.outputs["adapter_model.safetensors"] == one.outputs["adapter_model.safetensors"]
    assert two.notes == one.notes
    assert not (broken / "scratch").exists()


def test_a_torn_checkpoint_is_passed_over(make_config: Any, arbitrary: Scoring, tmp_path: Path) -> None:
    config = make_config("group", updates=3, checkpoint_every=1)
    train(config, tmp_path / "whole", arbitrary)
    broken = tmp_path / "broken"
    with pytest.raises(KeyError):
        train(config, broken, At(arbitrary, 3, killed))
    weights = broken / "scratch" / "checkpoints" / "checkpoint-2" / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    train(config, broken, arbitrary)
    assert numbers_of(broken) == numbers_of(tmp_path / "whole")


def test_what_is_logged_saved_and_published(make_config: Any, arbitrary: Scoring, tmp_path: Path) -> None:
    config = make_config("ppo", updates=2, samples_logged=2)

    def severe(rollouts: Sequence[Rollout]) -> Signals:
        return arbitrary(rollouts)._replace(severity=torch.tensor([[0.5, 0.25, 0.25, 0.0]] * len(rollouts)))

    out = tmp_path / "out"
    manifest = train(config, out, severe)
    lines = lines_of(out)
    assert [line["update"] for line in lines] == [1, 2]
    for line in lines:
        assert line.keys() == KEYS
        assert line["seconds"].keys() == {"rollout", "score", "learn"}
        assert line["responses"] == 12
        assert line["budgets"] == {"cost": 0.0}
        assert line["value_losses"].keys() == {"reward", "cost"}
        assert line["severity"] == [0.5, 0.25, 0.25, 0.0]
        assert line["harmful"] == 0.5
        assert 0 < line["length"] <= 10
        assert line["ptx_loss"] is None
    samples = lines_of(out, "samples")
    assert len(samples) == 4
    assert samples[0].keys() == {"update", "id", "sample", "prompt", "response", "reward", "costs"}
    assert manifest.notes["last_rollout"]["costs"] == lines[-1]["costs"]  # type: ignore[index, call-overload]
    card = (out / "card.md").read_text("utf-8")
    assert "- cost: budget 0, mean cost" in card
    assert set(manifest.outputs) >= {"adapter_model.safetensors", "log.jsonl", "samples.jsonl", "card.md"}
    found = load_generator(out, device="cpu")(
        [[{"role": "user", "content": "hi"}]], Sampling(max_new_tokens=4)
    )
    assert len(found) == 1


def test_the_first_lines_numbers_are_those_of_the_starting_policy(
    make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    seen, watched = watching(arbitrary)
    constraints = [{"name": "cost", "quantile": 0.25}]
    train(make_config("group", updates=1, constraints=constraints), tmp_path / "out", watched)
    (line,) = lines_of(tmp_path / "out")
    reward, costs, *_ = arbitrary(seen)
    assert line["reward"] == pytest.approx(reward.mean().item())
    assert line["reward_std"] == pytest.approx(reward.std().item())
    assert line["costs"]["cost"] == pytest.approx(costs.mean().item())
    assert line["budgets"]["cost"] == pytest.approx(costs[:, 0].quantile(0.25).item())
    assert line["harmful"] == pytest.approx((costs > 0).double().mean().item())
    assert line["kl"] == pytest.approx(0, abs=1e-5)
    logps = [logp for rollout in seen for logp in rollout.logps]
    assert line["entropy"] == pytest.approx(-math.fsum(logps) / len(logps), rel=1e-4)
    assert line["length"] == len(logps) / len(seen)
    assert line["truncated"] == sum(rollout.is_truncated for rollout in seen) / len(seen)
    assert line["drift"] < 1e-4


def test_a_first_cost_that_is_a_probability_says_nothing_of_how_many_are_harmful(
    make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    def probabilities(rollouts: Sequence[Rollout]) -> Signals:
        found = arbitrary(rollouts)
        return found._replace(costs=found.costs.sigmoid())

    train(make_config("group", updates=1), tmp_path / "out", probabilities)
    assert lines_of(tmp_path / "out")[0]["harmful"] is None
    train(
        make_config("group", updates=1),
        tmp_path / "signed",
        lambda rollouts: probabilities(rollouts)._replace(is_signed=True),
    )
    assert lines_of(tmp_path / "signed")[0]["harmful"] == 1.0


def test_a_score_that_is_no_number_stops_the_run_which_then_goes_on(
    make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    def spoilt(signals: Signals) -> Signals:
        signals.costs[3, 0] = math.nan
        return signals

    config = make_config("group", updates=3)
    train(config, tmp_path / "whole", arbitrary)
    with pytest.raises(RunStoppedError, match=r"update 2: cost of '\w+#0' is nan \(1 of 12 are not finite\)"):
        train(config, tmp_path / "broken", At(arbitrary, 2, spoilt))
    train(config, tmp_path / "broken", counted := At(arbitrary, 0, spoilt))
    assert counted.calls == 2  # what was done before the stop was kept, though no checkpoint was due
    assert numbers_of(tmp_path / "broken") == numbers_of(tmp_path / "whole")


@pytest.mark.parametrize("estimator", ["rloo", "repo", "reinforce"])
def test_other_estimators_and_no_constraints_run(
    estimator: str, make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"estimator": estimator, "updates": 2}
    if estimator == "rloo":
        more["constraints"] = []

    def scoring(rollouts: Sequence[Rollout]) -> Signals:
        found = arbitrary(rollouts)
        return found if estimator != "rloo" else found._replace(costs=found.costs[:, :0])

    train(make_config("group", **more), tmp_path / "out", scoring)
    last = lines_of(tmp_path / "out")[-1]
    assert (last["harmful"] is None) == (estimator == "rloo")
    assert math.isfinite(last["grad_norm"])


def test_repo_compares_the_mean_excess_of_prompts_with_the_slack(
    make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    seen, watched = watching(arbitrary)
    config = make_config("group", estimator="repo", updates=1, slack=0.1)
    train(config, tmp_path / "out", watched)
    costs = arbitrary(seen).costs
    excess = costs.reshape(4, 3).mean(1).clamp(min=0).mean().item() - 0.1
    unit = costs.square().mean().sqrt().item()
    (line,) = lines_of(tmp_path / "out")
    assert line["multipliers"]["cost"] == pytest.approx(max(0.0, 1.05 * excess / unit), abs=1e-6)


def test_repo_is_warned_of_by_what_prompts_exceed_the_budget_by(make_config: Any, tmp_path: Path) -> None:
    """Each prompt's cost is 1 or -3: the mean is within the budget, half of the prompts are not."""

    def scoring(rollouts: Sequence[Rollout]) -> Signals:
        costs = torch.tensor([[1.0 if i < len(rollouts) // 2 else -3.0] for i in range(len(rollouts))])
        return Signals(torch.tensor([float(len(r.ids)) for r in rollouts]), costs, None)

    found = {}
    for estimator in ("repo", "grpo"):
        config = make_config("group", estimator=estimator, updates=1)
        train(config, tmp_path / estimator, scoring)
        (found[estimator],) = lines_of(tmp_path / estimator)
    assert found["repo"]["warnings"] == []
    assert found["repo"]["states"] == {"cost": "active"}
    assert "is inactive (cost -1, budget 0, multiplier 0, from the start)" in found["grpo"]["warnings"][0]


def share(rollout: Rollout, ids: range) -> float:
    return sum(i in ids for i in rollout.ids) / len(rollout.ids)


def toy(rollouts: Sequence[Rollout]) -> Signals:
    """Tokens of two kinds are wished for, and the one that is wished for most costs."""
    good, costly = (
        torch.tensor([4 * share(r, ids) for r in rollouts]) for ids in (range(100, 150), range(150, 200))
    )
    return Signals(0.4 * good + costly, costly[:, None], None)


@pytest.mark.parametrize("kind", ["ppo", "group"])
def test_a_toy_reward_rises_and_its_cost_keeps_to_the_budget(
    kind: str, make_config: Any, tmp_path: Path
) -> None:
    budget = 0.8
    more: dict[str, Any] = {
        "roles": {**make_config(kind).roles.model_dump(), "tune": "full"},
        "rollout": {"prompts": 8, "samples": 4, "max_new_tokens": 8},
        "optim": {"lr": 0.004, "minibatches": 2, "clip_norm": 1.0},
        "kl": {"beta": 0.0},
        "constraints": [{"name": "cost", "budget": budget}],
    }
    damped = {"rule": "pid", "rule_params": {"kp": 4.0, "ki": 0.5, "smoothing": 0.5}}
    train(make_config(kind, updates=24, multiplier=damped, **more), tmp_path / "held", toy)
    still = {"rule": "fixed", "initial": 0.0}
    train(make_config(kind, updates=14, multiplier=still, **more), tmp_path / "free", toy)
    held, free = lines_of(tmp_path / "held"), lines_of(tmp_path / "free")
    late = held[-8:]
    assert math.fsum(line["reward"] for line in late) / 8 > held[0]["reward"] + 0.4
    assert math.fsum(line["costs"]["cost"] for line in late) / 8 < budget + 0.1
    assert free[-1]["costs"]["cost"] > budget + 0.8
    assert free[-1]["multipliers"]["cost"] == 0


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        (
            PpoLagConfig,
            ["kl={place: reward, estimator: k2}"],
            "kl: estimator: got k2 in the reward; expected k1",
        ),
        (PpoLagConfig, ["kl.estimator=k1"], "got k1 in the loss, where its gradient is 0"),
        (PpoLagConfig, ["objective=pop"], r"objective: got 'pop' \(did you mean 'ppo'\?\)"),
        (PpoLagConfig, ["objective_params.dual_clip=0.5"], r"objective_params: ppo: dual_clip: got 0\.5"),
        (
            GroupLagConfig,
            ["objective_params.clip=-0.2"],
            r"objective_params\.clip: .*or equal to 0, got -0\.2",
        ),
        *(
            (PpoLagConfig, [f"paper={value}"], r"paper: Input should be a valid boolean, got '?\w+'?$")
            for value in ("yes", "on", "1", '"true"')
        ),
        *(
            (PpoLagConfig, [f"{name}={value}"], f"{name}: Input should be a finite number")
            for name in ("kl.beta", "optim.lr", "critic.lr", "score_clip")
            for value in (".nan", ".inf")
        ),
        (
            GroupLagConfig,
            ["constraints=[{budget: .nan}]"],
            r"constraints\.0\.budget: .* finite number, got nan",
        ),
        (PpoLagConfig, ["constraints=[{name: reward}]"], "got the name 'reward' twice"),
        (PpoLagConfig, ["optim.minibatches=17"], "got 17 of 16 prompts"),
        (PpoLagConfig, ["critics.lr=1"], r"critics: no such setting \(did you mean 'critic'\?\)"),
        (GroupLagConfig, ["rollout.samples=1"], r"rollout\.samples: got 1 with estimator grpo"),
        (GroupLagConfig, ["estimator=repo", "constraints=[]"], "got repo without constraints"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    kind: type[OnlineConfig], overrides: list[str], message: str
) -> None:
    given = ["prompts=[a.jsonl]", "roles.policy=tiny", *overrides]
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(kind, None, given)
    assert "\n" not in str(caught.value)


def test_the_papers_settings_stand_below_what_is_said() -> None:
    given = [
        "prompts=[a.jsonl]",
        "roles.policy=tiny",
        "paper=true",
        "multiplier.ceiling=3",
        "ptx.exchanges=[b]",
    ]
    config = load_config(PpoLagConfig, None, given)
    assert (config.whiten, config.score_clip, config.mean_over) == ("none", 50.0, "responses")
    assert (config.kl.place, config.kl.beta) == ("reward", 0.01)
    assert (config.multiplier.rule, config.multiplier.window, config.multiplier.ceiling) == (
        "log_sgd",
        128,
        3.0,
    )
    assert not config.multiplier.scaled
    assert config.ptx is not None
    assert config.ptx.coef == 16.0
    assert config.constraints[0].budget == 0.0
    assert PpoLagConfig.model_validate(config.model_dump()) == config
    assert load_config(PpoLagConfig, None, given[:2]).multiplier.rule == "pid"


def test_another_rule_under_paper_has_parameters_of_its_own() -> None:
    given = ["prompts=[a.jsonl]", "roles.policy=tiny", "paper=true", "multiplier.rule=pid"]
    config = load_config(PpoLagConfig, None, given)
    assert (config.multiplier.rule, config.multiplier.rule_params) == ("pid", {})
    assert config.multiplier.scaled
    assert (config.multiplier.window, config.multiplier.ceiling) == (128, 5.0)
    assert PpoLagConfig.model_validate(config.model_dump()) == config
    config = load_config(PpoLagConfig, None, [*given, "multiplier.rule_params.kp=2"])
    assert config.multiplier.rule_params == {"kp": 2}


def test_prompts_that_cannot_make_a_rollout_are_told(
    make_config: Any, arbitrary: Scoring, tmp_path: Path
) -> None:
    few = make_config("group", rollout={"max_prompt_tokens": 14, "prompts": 8})
    with pytest.raises(DataError, match=r"prompts: got \d \(\d+ over 14 tokens\); expected at least the 8"):
        train(few, tmp_path / "few", arbitrary)
    path = tmp_path / "prompts.jsonl"
    path.write_text(path.read_text("utf-8") * 2, "utf-8")
    with pytest.raises(DataError, match="prompts: id 'flour': there 2 times; expected ids that differ"):
        train(make_config("group"), tmp_path / "twice", arbitrary)


def test_scores_of_another_number_are_refused(make_config: Any, arbitrary: Scoring, tmp_path: Path) -> None:
    def short(rollouts: Sequence[Rollout]) -> Signals:
        return arbitrary(rollouts[:-1])

    with pytest.raises(ConfigError, match=r"got rewards of shape \(11,\).*expected \(12,\) and \(12, 1\)"):
        train(make_config("group"), tmp_path / "out", short)
