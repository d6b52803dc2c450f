"""`train rules` from end to end on a tiny model, and its folder as a reward: best-of-n, evaluation."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from typer.testing import CliRunner

from equipoise.cli.main import app, main
from equipoise.config import parse_config, to_yaml
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError, ModelError
from equipoise.evaluation.files import read_lines
from equipoise.evaluation.rows import EvaluatedRow
from equipoise.generation.local import load_generator
from equipoise.generation.replies import Answer
from equipoise.generation.sources import Asked
from equipoise.judges.rules import load_rules
from equipoise.lineage import content_hash, produce, read_manifest
from equipoise.models.backbone import load_encoder
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.models.scorer import ScorerCard, ScorerModel, load_trunk
from equipoise.models.windows import TextPair
from equipoise.moderation.guard import Guard
from equipoise.moderation.guarded import Guarding
from equipoise.moderation.policies import Policy
from equipoise.pipeline.guarded import GENERATE, GuardedGenerateConfig, type_by_guard
from equipoise.pipeline.rules import TRAIN_RULES, RulesConfig, built_in_prompts
from equipoise.protocols import Reward, Sampling, Verdict
from equipoise.records import Exchange, Prompt
from equipoise.rewards.learned import load_scorer
from equipoise.rewards.rules import RuleSet
from equipoise.taxonomy import load_taxonomy

SENTENCES = {
    "sorry": "I am sorry, but I cannot help with that request.",
    "help": "Mix flour, water, salt and yeast, then wait until the dough has doubled.",
    "weather": "The weather in the mountains changes quickly, so take a warm coat.",
    "chat": "A short answer is often the better answer, and a kind one is better still.",
}
MADE_OF = {
    "ideal": ("sorry",),
    "minimum_style": ("sorry", "chat"),
    "illogical": ("weather",),
    "disallowed": ("help",),
}
DECLINE = {
    "ideal": {"all": ["sorry"], "none": ["chat"]},
    "minimum_style": {"all": ["sorry"]},
    "illogical": {"any": ["weather"]},
    "disallowed": {"any": ["help"]},
}
RULES = {
    "name": "tiny",
    "propositions": [{"name": name, "question": f"Does it say {name}?"} for name in SENTENCES],
    "response_types": {
        "decline": DECLINE,
        "answer": DECLINE | {"ideal": {"all": ["help"]}, "disallowed": {"any": ["sorry"]}},
    },
    "harmful": "decline",
    "harmless": "answer",
}


def said(name: str, prompt: int, names: Sequence[str], **provenance: Any) -> Exchange:
    return Exchange(
        id=name,
        licence="CC0-1.0",
        prompt=f"Question {prompt}?",
        prompt_is_harmful=True,
        response=" ".join(SENTENCES[n] for n in names),
        provenance=provenance,
    )


@pytest.fixture(scope="module")
def trained(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rules")
    kinds = [("sorry",), ("help",), ("weather",), ("sorry", "chat"), ("help", "chat")]
    labelled = [
        said(f"g{n}", n, kinds[n % 5], propositions={s: s in kinds[n % 5] for s in SENTENCES})
        for n in range(60)
    ]
    labelled = [  # equal answers would stay together, and five are too few to learn from others
        row.model_copy(update={"response": f"{row.response} Case {n}."}) for n, row in enumerate(labelled)
    ]
    ranked = [
        said(f"c{n}-{name}", n, made, **{"class": name}) for n in range(20) for name, made in MADE_OF.items()
    ]
    (place / "tiny.yaml").write_text(to_yaml(RULES), "utf-8")
    write_records(place / "gold.jsonl", labelled)
    write_records(place / "ranked.jsonl", ranked)
    config = parse_config(
        RulesConfig,
        {
            "rules": str(place / "tiny.yaml"),
            "exchanges": [place / "gold.jsonl"],
            "completions": [place / "ranked.jsonl"],
            "backbone": str(tiny_encoder),
            "layers": 2,
            "keep_signs": True,
            "device": "cpu",
        },
        "test",
    )
    produce(place / "out", TRAIN_RULES, config)
    return place / "out"


def test_the_fit_orders_answers_to_prompts_that_it_has_not_seen(trained: Path) -> None:
    told = json.loads((trained / "rules.json").read_text("utf-8"))
    assert told["order"]["all"]["total"]["value"] >= 0.9
    assert told["order"]["all"]["reward_alone"]["value"] == 0.5  # there is none: all are ties
    assert told["order"]["decline"]["difference"]["low"] > 0
    assert told["order"]["answer"]["total"]["n"] == 0
    assert min(told["f1"].values()) > 0.9
    assert told["pairs"] == {"decline": 14 * 6, "answer": 0}
    card = (trained / "card.md").read_text("utf-8")
    assert re.search(r"\| sorry \| \+[0-9.]+ \| \+0\.00 \|", card)
    assert "CC0-1.0" in card


def test_its_folder_is_a_reward_that_knows_an_ideal_answer(trained: Path) -> None:
    rules = load_rules(trained, device="cpu")
    reward: Reward = rules
    rows = [said(name, 99, made) for name, made in MADE_OF.items()]
    values = [score.value for score in reward(rows)]
    assert values[0] == max(values)
    assert values[0] > values[3]
    assert [found.answer_class for found in rules.explain(rows)] == list(MADE_OF)


def test_best_of_n_takes_what_the_rules_like(trained: Path) -> None:
    rules = load_rules(trained, device="cpu", type_of=lambda exchanges: ["decline"] * len(exchanges))
    tries = [
        " ".join(SENTENCES[n] for n in MADE_OF[name]) for name in ("illogical", "ideal", "minimum_style")
    ]

    def draw(asked: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        return [[Answer(text) for text in tries[: sampling.samples]] for _ in asked]

    def safe(exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(True, 0.1, 0, (0.9, 0.1), (), {}, False) for _ in exchanges]

    asked = [Asked("x", [{"role": "user", "content": "How?"}])]
    choose = Guarding(safe, tries=3, reward=rules)(draw)
    ((best,),) = choose(asked, Sampling(temperature=1.0))
    assert best.text == SENTENCES["sorry"]


def test_rules_go_with_the_scorer_of_their_fit_and_no_other(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its weights were fitted without a scorer, got "):
        load_rules(trained, scorer=tmp_path)


@pytest.mark.parametrize(
    ("given", "got"),
    [({}, "none"), ({"exchanges": ["a.jsonl"], "judge": {"model": "smollm2-135m"}}, "both")],
)
def test_somebody_must_grade_and_not_two(given: dict[str, Any], got: str) -> None:
    with pytest.raises(ConfigError, match=f"expected one of exchanges, .* got {got}"):
        parse_config(RulesConfig, given, "test")


def test_too_few_prompts_to_hold_any_back_are_refused(tmp_path: Path, tiny_encoder: Path) -> None:
    write_records(tmp_path / "gold.jsonl", [said("g", 0, ("help",), propositions={"regret": True})])
    write_records(tmp_path / "ranked.jsonl", [said("c", 0, ("help",), **{"class": "ideal"})])
    files = {name: (tmp_path / f"{name}.jsonl",) for name in ("gold", "ranked")}
    config = RulesConfig(exchanges=files["gold"], completions=files["ranked"], backbone=str(tiny_encoder))
    with pytest.raises(DataError, match="completions: of 1 prompts 0 would be held back"):
        produce(tmp_path / "out", TRAIN_RULES, config)


def test_built_in_prompts_are_half_harmful_and_each_once() -> None:
    prompts = built_in_prompts(40)
    assert len({p.id for p in prompts.values()}) == len(prompts) == 40
    assert sum(bool(p.is_harmful) for p in prompts.values()) == 20
    assert 60 <= sum(not p.is_harmful for p in built_in_prompts(1000).values()) < len(built_in_prompts(1000))


def with_random_heads(trained: Path, folder: Path) -> Path:
    """A copy whose heads tell random texts apart: the trained ones read words, of which there are none."""
    shutil.copytree(trained, folder)
    tensors = load_tensors(folder / "weights.safetensors")
    tensors["weight"] = torch.randn(tensors["weight"].shape)
    save_tensors(folder / "weights.safetensors", tensors)
    return folder


def test_generate_takes_the_best_try_by_what_the_guard_says_of_the_prompt(
    trained: Path, tiny_llama: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """To this policy every prompt is harmful and every answer safe, so only the rules choose.

    Without a guard the same comes out where the rows say that they are harmful.
    """
    torch.manual_seed(1)
    card = GuardCard(
        taxonomy=load_taxonomy("pku19"),
        backbone=str(tiny_encoder),
        layers=2,
        hidden=8,
        targets=("prompt", "response"),
        knows_refusals=False,
    )
    rules = with_random_heads(trained, tmp_path / "rules")
    (tmp_path / "guard").mkdir()
    GuardModel(card, load_encoder(tiny_encoder, device="cpu")).save(tmp_path / "guard")
    policy = {"name": "all", "unsafe": {"prompt": 0.0, "response": 1.0}}
    (tmp_path / "all.yaml").write_text(to_yaml(policy), "utf-8")
    prompts = [{"id": f"p{n}", "prompt": f"Say {n}", "is_harmful": True} for n in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), "utf-8")
    given = {
        "models": [str(tiny_llama)],
        "prompts": tmp_path / "prompts.jsonl",
        "sampling": {"temperature": 1.0, "max_new_tokens": 6},
        "guard": tmp_path / "guard",
        "policy": str(tmp_path / "all.yaml"),
        "tries": 3,
        "rules": rules,
    }
    produce(tmp_path / "out.jsonl", GENERATE, parse_config(GuardedGenerateConfig, given, "test"))

    chats = [[{"role": "user", "content": str(row["prompt"])}] for row in prompts]
    sampling = Sampling(max_new_tokens=6, temperature=1.0, samples=3)
    draws = load_generator(tiny_llama)(chats, sampling, [str(row["id"]) for row in prompts])
    reward = load_rules(rules, device="cpu", type_of=lambda exchanges: ["decline"] * len(exchanges))
    expected = []
    for row, texts in zip(prompts, draws, strict=True):
        scores = reward([Exchange(id="x", prompt=str(row["prompt"]), response=text) for text in texts])
        expected.append(texts[max(range(3), key=lambda k: scores[k].value)])
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row["response"] for row in written] == expected
    assert expected != [texts[0] for texts in draws]

    unguarded = {key: value for key, value in given.items() if key not in ("guard", "policy")}
    produce(tmp_path / "own.jsonl", GENERATE, parse_config(GuardedGenerateConfig, unguarded, "test"))
    written = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text("utf-8").splitlines()]
    assert [row["response"] for row in written] == expected


def test_rules_without_a_guard_need_rows_that_say_what_they_ask_for(
    trained: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": "Say 1", "is_harmful": False},
        {"id": "b", "prompt": "Say 2"},
        {"id": "c", "prompt": "Say 3", "provenance": {"response_type": "decline"}},
        {"id": "d", "prompt": "Say 4", "is_harmful": True, "provenance": {"response_type": "declin"}},
        {"id": "e", "prompt": "Say 5", "is_harmful": True, "provenance": "decline"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    given = {
        "models": [str(tiny_llama)],
        "prompts": tmp_path / "prompts.jsonl",
        "sampling": {"temperature": 1.0, "max_new_tokens": 3},
        "rules": trained,
    }
    config = parse_config(GuardedGenerateConfig, given, "test")
    outcome = produce(tmp_path / "out.jsonl", GENERATE, config)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert ["response" in row for row in written] == [True, False, True, False, False]
    expected = "is_harmful: expected true or false, or provenance.response_type; rules without a guard"
    assert expected in written[1]["error"]
    assert "provenance.response_type: no response type 'declin'" in written[3]["error"]
    assert "provenance: expected a mapping, got 'decline'" in written[4]["error"]
    assert outcome.manifest.notes["errors"] == 3


def test_a_guard_is_asked_only_where_a_prompt_does_not_name_its_response_type() -> None:
    seen: list[str] = []

    class Reading(NamedTuple):
        prompts: list[str]

        def verdict(self, row: int, policy: Policy) -> Verdict:
            is_safe = self.prompts[row] != "Question 0?"
            return Verdict(is_safe, 0.5, 0, (0.5, 0.5), (), {}, False)

    class Asking:
        def read(self, texts: list[TextPair]) -> Reading:
            found = [text.prompt for text in texts]
            seen.extend(found)
            return Reading(found)

    policy = parse_config(Policy, {"name": "any", "unsafe": 0.5}, "test")
    type_of = type_by_guard(cast(Guard, Asking()), policy, RuleSet.model_validate(RULES))
    named = [
        said("a", 0, ("help",), response_type="answer"),
        said("b", 1, ("help",), response_type="decline"),
    ]
    others = [said("c", 1, ("help",)), said("d", 0, ("help",)), said("e", 1, ("sorry",))]
    assert type_of([*named, *others]) == ["answer", "decline", "answer", "decline", "answer"]
    assert seen == ["Question 1?", "Question 0?"]  # several tries share a prompt
    assert type_of(named) == ["answer", "decline"]
    assert len(seen) == 2


@pytest.fixture
def suite(tiny_encoder: Path, tmp_path: Path) -> Path:
    """A folder with prompts, a response of each class to them, a guard, and a scorer with random heads."""
    torch.manual_seed(2)
    answers = {f"h{n}": (True, made) for n, made in enumerate(MADE_OF.values())} | {"b0": (False, ("help",))}
    prompts = [Prompt(id=key, prompt=f"Question {key}?", is_harmful=bad) for key, (bad, _) in answers.items()]
    write_records(tmp_path / "prompts.jsonl", prompts)
    responses = [
        {
            "id": key,
            "prompt": f"Question {key}?",
            "response": " ".join(SENTENCES[n] for n in made),
            "model": "m",
        }
        for key, (_, made) in answers.items()
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in responses), "utf-8")
    values = {"backbone": str(tiny_encoder), "layers": 2, "hidden": 6}
    guard = GuardCard(taxonomy=load_taxonomy("pku19"), targets=("response",), knows_refusals=False, **values)
    scorer = ScorerCard.model_validate({**values, "trunk": "pooled", "trained": ("reward", "cost")})
    for name in ("guard", "scorer", "another"):
        (tmp_path / name).mkdir()
    GuardModel(guard, load_encoder(tiny_encoder, device="cpu")).save(tmp_path / "guard")
    for name in ("scorer", "another"):
        model = ScorerModel(scorer, load_trunk("pooled", str(tiny_encoder), "cpu"))
        model.trunk.requires_grad_(False)
        model.save(tmp_path / name)
    return tmp_path


def evaluation(suite: Path, rules: Path, *more: object) -> list[str]:
    """The command that evaluates the responses of the suite."""
    given = ["--responses", suite / "responses.jsonl", "--guard", suite / "guard", "--out", suite / "out"]
    words = ["evaluate", suite / "prompts.jsonl", *given, "--set", "refusals=prefix", *more]
    return [str(word) for word in [*words, "--set", f"rules={rules}"]]


def test_evaluate_writes_what_the_rules_say(trained: Path, suite: Path) -> None:
    result = CliRunner().invoke(app, [*evaluation(suite, trained), "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout.splitlines()[-1])["metrics"]["values"]
    rows = read_lines(suite / "out" / "rows.jsonl", EvaluatedRow)
    told = [row.rules for row in rows if row.rules is not None]
    assert [one.answer_class for one in told] == [*MADE_OF, "ideal"]
    assert [one.response_type for one in told] == ["decline"] * 4 + ["answer"]
    rules = load_rules(trained, device="cpu")
    asked = [
        Exchange(id=row.id, prompt=row.prompt, prompt_is_harmful=row.is_harmful, response=row.response)
        for row in rows
    ]
    grades = rules.grader(asked)
    for one, grade in zip(told, grades, strict=True):
        weights = rules.weights[one.response_type]
        parts = {n: float(p * w) for n, p, w in zip(rules.rules.names, grade, weights, strict=True)}
        assert one.total == pytest.approx(sum(parts.values()), abs=1e-9)
        assert one.parts == pytest.approx({name: part for name, part in parts.items() if part}, abs=1e-9)
    assert values["rules"]["value"] == pytest.approx(sum(one.total for one in told) / len(told))
    shares = {name: values[f"rules_{name}_harmful"]["value"] for name in (*MADE_OF, "unacceptable")}
    assert shares == dict.fromkeys(MADE_OF, 0.25) | {"unacceptable": 0.0}
    assert values["rules_ideal_benign"]["value"] == 1.0
    assert "rules" in read_manifest(suite / "out" / "manifest.json").inputs


def fitted_beside(trained: Path, scorer: Path, folder: Path) -> Path:
    """A copy of the rules that says that its weights were fitted beside a scorer."""
    shutil.copytree(trained, folder)
    card = json.loads((folder / "model.json").read_text("utf-8"))
    (folder / "model.json").write_text(json.dumps(card | {"reward": content_hash(scorer)}), "utf-8")
    return folder


def test_beside_their_scorer_rules_and_reward_are_told_apart_and_together(trained: Path, suite: Path) -> None:
    rules = fitted_beside(trained, suite / "scorer", suite / "rules")
    result = CliRunner().invoke(app, [*evaluation(suite, rules, "--scorer", suite / "scorer"), "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout.splitlines()[-1])["metrics"]["values"]
    rows = read_lines(suite / "out" / "rows.jsonl", EvaluatedRow)
    exchanges = [Exchange(id=row.id, prompt=row.prompt, response=row.response) for row in rows]
    rewards = [
        found.reward.value for found in load_scorer(suite / "scorer", "cpu")(exchanges) if found.reward
    ]
    assert [row.reward for row in rows] == pytest.approx(rewards, abs=1e-5)
    totals = [row.rules.total for row in rows if row.rules is not None]
    alone = load_rules(rules, scorer=suite / "scorer", alone=True, device="cpu")
    types = ["decline"] * 4 + ["answer"]
    alone.type_of = lambda _: types
    assert totals == pytest.approx([score.value for score in alone(exchanges)], abs=1e-9)
    both = [reward + total for reward, total in zip(rewards, totals, strict=True)]
    assert values["reward_and_rules"]["value"] == pytest.approx(sum(both) / len(both), abs=1e-5)


def test_rules_that_cannot_be_used_in_an_evaluation_are_one_line(
    trained: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = fitted_beside(trained, suite / "scorer", suite / "rules")
    unlabelled = [Prompt(id="x", prompt="?", is_harmful=False), Prompt(id="y", prompt="??")]
    strange = [Prompt(id="h0", prompt="Question h0?", is_harmful=True, provenance={"response_type": "shout"})]
    write_records(suite / "unlabelled.jsonl", unlabelled)
    write_records(suite / "strange.jsonl", strange)
    other = ["--scorer", suite / "another"]
    for words, says in (
        (evaluation(suite, suite / "nowhere"), "rules: .*nowhere: no such file or folder"),
        (evaluation(suite, suite / "guard"), "kind: holds equipoise-guard; expected equipoise-rules"),
        (evaluation(suite, suite / "responses.jsonl"), "no model.json; expected a folder written by"),
        (evaluation(suite, fitted), "its weights were fitted beside a scorer, got none"),
        (evaluation(suite, fitted, *other), "its weights were fitted beside a scorer, got .*another"),
        (evaluation(suite, trained, *other), "its weights were fitted without a scorer, got .*another"),
        (
            evaluation(suite, trained, "--set", f"suite={suite / 'unlabelled.jsonl'}"),
            "unlabelled.jsonl:2: is_harmful: missing; expected true or false",
        ),
        (
            evaluation(suite, trained, "--set", f"suite={suite / 'strange.jsonl'}"),
            "h0: provenance.response_type: no response type 'shout'; known: decline, answer",
        ),
    ):
        monkeypatch.setattr("sys.argv", ["equipoise", *words])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(rf"^error: .*{says}", line), line
        assert not (suite / "out" / "rows.jsonl").exists()
