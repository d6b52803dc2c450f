"""`generate` with a guard and a scorer, over a file and from the command line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from equipoise.cli.main import app
from equipoise.config import load_config
from equipoise.errors import ConfigError, DataError, ModelError
from equipoise.generation.local import LocalGenerator, load_generator
from equipoise.lineage import produce
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.models.scorer import ScorerCard, ScorerModel, load_trunk
from equipoise.moderation.guard import load_guard
from equipoise.pipeline.guarded import GENERATE, GuardedGenerateConfig
from equipoise.protocols import Sampling
from equipoise.records import Exchange
from equipoise.rewards.learned import load_scorer
from equipoise.taxonomy import load_taxonomy

TRIES = 3
WARM = Sampling(max_new_tokens=6, temperature=1.0)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"Say {i}"}) + "\n" for i in range(10)))
    return path


def make_guard(folder: Path, encoder: Path, **more: Any) -> Path:
    torch.manual_seed(1)
    card = GuardCard(
        taxonomy=load_taxonomy("pku19"),
        backbone=str(encoder),
        layers=2,
        hidden=8,
        targets=more.pop("targets", ("response",)),
        knows_refusals=False,
        **more,
    )
    folder.mkdir()
    model = GuardModel(card, load_encoder(encoder, device="cpu"))
    model.trunk.requires_grad_(False)
    for parameter in model.heads.parameters():
        parameter.data *= 8  # random heads hardly differ from text to text
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def draws(tiny_llama: Path) -> list[list[str]]:
    """All texts that the model writes for each prompt in three tries."""
    chats = [[{"role": "user", "content": f"Say {i}"}] for i in range(10)]
    ids = [f"p{i}" for i in range(10)]
    return load_generator(tiny_llama)(chats, WARM._replace(samples=TRIES), ids)


def exchange(number: int, text: str) -> Exchange:
    return Exchange(id="x", prompt=f"Say {number}", response=text)


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, draws: list[list[str]]) -> Path:
    """A guard to which two of three draws are unsafe."""
    place = tmp_path_factory.mktemp("guards")
    open_guard = load_guard(make_guard(place / "open", tiny_encoder))
    judged = open_guard([exchange(i, text) for i, row in enumerate(draws) for text in row])
    levels = sorted(verdict.unsafe_probability for verdict in judged)
    between = (levels[9] + levels[10]) / 2
    return make_guard(place / "guard", tiny_encoder, unsafe_threshold=between)


def settings(prompts: Path, model: Path, *overrides: str) -> GuardedGenerateConfig:
    sampling = ["sampling.temperature=1", "sampling.max_new_tokens=6", f"tries={TRIES}", "batch_size=2"]
    given = [f"models=[{model}]", f"prompts={prompts}", *sampling, *overrides]
    return load_config(GuardedGenerateConfig, overrides=given)


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_row_is_the_safest_draw_or_a_refusal(
    tiny_llama: Path, prompts: Path, guard: Path, draws: list[list[str]], tmp_path: Path
) -> None:
    config = settings(prompts, tiny_llama, f"guard={guard}", "refusal_text=No.")
    outcome = produce(tmp_path / "out.jsonl", GENERATE, config)
    judge = load_guard(guard)
    refused = 0
    for number, (row, texts) in enumerate(zip(read(tmp_path / "out.jsonl"), draws, strict=True)):
        verdicts = judge([exchange(number, text) for text in texts])
        best = min(range(TRIES), key=lambda t: verdicts[t].unsafe_probability)
        is_safe = verdicts[best].is_safe
        refused += not is_safe
        assert row["response"] == (texts[best] if is_safe else "No.")
        assert row["guard"]["outcome"] == ("accepted" if is_safe else "refused")
        assert row["guard"]["tries"] == TRIES
        assert row["guard"]["unsafe_probability"] == pytest.approx(
            verdicts[best].unsafe_probability, abs=1e-5
        )
    assert 0 < refused < 10
    notes = outcome.manifest.notes
    assert notes == {
        "rows": 10,
        "errors": 0,
        "missing": 0,
        "guard": {"accepted": 10 - refused, "refused": refused},
    }
    assert outcome.manifest.inputs.keys() >= {"guard", "prompts"}


@pytest.fixture
def scorer(tiny_encoder: Path, tmp_path: Path) -> Path:
    """A scorer with random heads that gives a reward."""
    torch.manual_seed(2)
    card = ScorerCard.model_validate(
        {"backbone": str(tiny_encoder), "trunk": "pooled", "layers": 2, "hidden": 6, "trained": ("reward",)}
    )
    model = ScorerModel(card, load_trunk("pooled", str(tiny_encoder), "cpu"))
    model.trunk.requires_grad_(False)
    folder = tmp_path / "scorer"
    folder.mkdir()
    model.save(folder)
    return folder


def test_a_scorer_chooses_among_the_safe_draws(
    tiny_llama: Path,
    *,
    prompts: Path,
    guard: Path,
    scorer: Path,
    draws: list[list[str]],
    tmp_path: Path,
) -> None:
    produce(
        tmp_path / "out.jsonl",
        GENERATE,
        settings(prompts, tiny_llama, f"guard={guard}", f"scorer={scorer}", "refusal_text=No."),
    )
    judge, score = load_guard(guard), load_scorer(scorer)
    choices = 0
    for number, (row, texts) in enumerate(zip(read(tmp_path / "out.jsonl"), draws, strict=True)):
        exchanges = [exchange(number, text) for text in texts]
        safe = [e for e, verdict in zip(exchanges, judge(exchanges), strict=True) if verdict.is_safe]
        rewards = {e.response: s.reward.value for e, s in zip(safe, score(safe), strict=True) if s.reward}
        assert row["response"] == max(rewards, key=rewards.__getitem__, default="No.")
        choices += len(safe) > 1
    assert choices


def test_without_a_guard_a_scorer_chooses_among_all_draws_and_refuses_none(
    tiny_llama: Path, prompts: Path, scorer: Path, draws: list[list[str]], tmp_path: Path
) -> None:
    outcome = produce(tmp_path / "out.jsonl", GENERATE, settings(prompts, tiny_llama, f"scorer={scorer}"))
    score = load_scorer(scorer)
    rows = read(tmp_path / "out.jsonl")
    for number, (row, texts) in enumerate(zip(rows, draws, strict=True)):
        found = score([exchange(number, text) for text in texts])
        rewards = [one.reward.value for one in found if one.reward]
        assert row["response"] == texts[rewards.index(max(rewards))]
    assert [row["response"] for row in rows] != [texts[0] for texts in draws]
    assert not any("guard" in row for row in rows)
    assert outcome.manifest.inputs.keys() >= {"scorer", "prompts"}


def test_a_policy_decides_what_is_safe(tiny_llama: Path, prompts: Path, guard: Path, tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("{name: none, unsafe: 0.0}\n")
    (tmp_path / "shadow.yaml").write_text("{name: quiet, unsafe: 0.0, shadow: true}\n")
    given = [f"guard={guard}", f"policy={tmp_path}/none.yaml"]
    outcome = produce(tmp_path / "out.jsonl", GENERATE, settings(prompts, tiny_llama, *given))
    assert outcome.manifest.notes["guard"] == {"accepted": 0, "refused": 10}
    assert outcome.manifest.inputs.keys() >= {"guard", "policy"}
    for policy, message in (
        (f"{tmp_path}/shadow.yaml", "policy: 'quiet' is in shadow mode; expected one that decides"),
        ("defalt", r"no policy 'defalt' \(did you mean 'default'\?\)"),
    ):
        config = settings(prompts, tiny_llama, f"guard={guard}", f"policy={policy}")
        with pytest.raises(ConfigError, match=message):
            produce(tmp_path / "other.jsonl", GENERATE, config)


@pytest.mark.parametrize(("method", "last"), [("best_of_n", 2), ("reject", 4)])
def test_a_stopped_run_goes_on_and_equals_a_whole_one(
    method: str,
    last: int,
    *,
    tiny_llama: Path,
    prompts: Path,
    guard: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(prompts, tiny_llama, f"guard={guard}", f"guarded={method}", "batch_size=1")
    produce(tmp_path / "whole.jsonl", GENERATE, config)
    write, calls = LocalGenerator.write, []

    def stops(
        self: LocalGenerator, prompts: Sequence[Sequence[int]], sampling: Sampling, ids: Sequence[str]
    ) -> Any:
        calls.append(list(ids))
        if len(calls) == last:  # in the second chunk of four prompts
            raise KeyboardInterrupt
        return write(self, prompts, sampling, ids)

    monkeypatch.setattr(LocalGenerator, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        produce(tmp_path / "out.jsonl", GENERATE, config)
    outcome = produce(tmp_path / "out.jsonl", GENERATE, config)
    assert outcome.manifest.attempts == 2
    assert calls[last] != calls[0]  # the first chunk was not written again
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_without_a_guard_the_rows_are_those_of_the_model(
    tiny_llama: Path, prompts: Path, draws: list[list[str]], tmp_path: Path
) -> None:
    config = load_config(
        GuardedGenerateConfig,
        overrides=[
            f"models=[{tiny_llama}]",
            f"prompts={prompts}",
            "sampling.temperature=1",
            "sampling.max_new_tokens=6",
        ],
    )
    produce(tmp_path / "out.jsonl", GENERATE, config)
    rows = read(tmp_path / "out.jsonl")
    assert [row["response"] for row in rows] == [texts[0] for texts in draws]
    assert not any("guard" in row for row in rows)


def test_the_command_takes_a_guard_and_says_what_it_refused(
    tiny_llama: Path, prompts: Path, guard: Path, tmp_path: Path
) -> None:
    words = ["generate", "--model", str(tiny_llama), "--prompts", str(prompts)]
    words += ["--out", str(tmp_path / "out.jsonl"), "--guard", str(guard)]
    sampled = ["sampling.temperature=1", "sampling.max_new_tokens=6", "guarded=reject", "tries=2"]
    result = CliRunner().invoke(app, [*words, *(word for item in sampled for word in ("--set", item))])
    assert result.exit_code == 0, result.output
    refused = sum(row["guard"]["outcome"] == "refused" for row in read(tmp_path / "out.jsonl"))
    assert f"0 bad lines, {refused} answers refused by the guard\n" in result.stdout
    greedy = CliRunner().invoke(app, [*words, "--force"])
    assert isinstance(greedy.exception, ConfigError)
    assert "4 greedy tries are all the same; expected sampling.temperature above 0" in str(greedy.exception)


def test_what_cannot_judge_or_reward_responses_is_refused_at_once(
    tiny_llama: Path, tiny_encoder: Path, prompts: Path, guard: Path, tmp_path: Path
) -> None:
    prompts_only = make_guard(tmp_path / "prompt-guard", tiny_encoder, targets=("prompt",))
    with pytest.raises(DataError, match="response: this guard was not trained to judge it"):
        produce(tmp_path / "out.jsonl", GENERATE, settings(prompts, tiny_llama, f"guard={prompts_only}"))
    config = settings(prompts, tiny_llama, f"guard={guard}", f"scorer={guard}")
    with pytest.raises(ModelError):  # a guard is no scorer
        produce(tmp_path / "out.jsonl", GENERATE, config)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tries=2"], "tries: nobody chooses; expected a guard, a scorer or rules beside it"),
        (["policy=strict"], "policy: nothing is refused; expected a guard beside it"),
        (["scorer=s", "refusal_text=No."], "refusal_text: nothing is refused; expected a guard beside it"),
        (["guarded=reject"], "guarded: nothing is refused; expected a guard beside it"),
        (["scorer=s"], "tries: 4 greedy tries are all the same"),
        (["rules=r"], "tries: 4 greedy tries are all the same"),
        (
            ["guard=g", "guarded=reject", "scorer=s", "sampling.temperature=1"],
            "scorer: reject takes the first",
        ),
        (["guard=g"], "tries: 4 greedy tries are all the same"),
        (["guard=g", "tries=0"], "tries: .*got 0"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(GuardedGenerateConfig, overrides=["models=[m]", "prompts=p", *overrides])
    load_config(GuardedGenerateConfig, overrides=["models=[m]", "prompts=p", "guard=g", "tries=1"])
