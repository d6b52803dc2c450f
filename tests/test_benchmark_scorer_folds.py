"""Scorers over folds: what is on which side, features computed once, and the numbers, with tiny models."""

import json
import random
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest

from equipoise.data.io import write_records
from equipoise.lineage import produce
from equipoise.records import Answer, Pair
from equipoise.rewards.learned import load_scorer
from equipoise.stats import auroc
from equipoise.training.scorer import TRAIN_SCORER, ScorerConfig

NAMES = ("common", "scorer_folds", "scorer_folds_split", "scorer_folds_steps")
WORDS = ["bread", "water", "salt", "flour", "coat", "tides", "weather", "kind", "short", "yeast"]
BAD = "mountains"
"""The planted truth: it stands in every unsafe answer."""


@pytest.fixture(scope="module")
def scripts(load_scripts: Any) -> Any:
    return load_scripts(*NAMES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of our own in the files; `pku_saferlhf_pairs` has four pairs of four answers to a prompt."""
    place = tmp_path_factory.mktemp("data")
    draw = random.Random(0)

    def text(safe: bool | None) -> str:
        return " ".join([*draw.sample(WORDS, 4), *([BAD] if safe is False else [])])

    files: dict[str, list[dict[str, Any]]] = {"pku_saferlhf_pairs": []}
    for i in range(15):
        safe, unsafe = ([text(kind) for _ in range(2)] for kind in (True, False))
        for k, (good, bad) in enumerate((a, b) for a in safe for b in unsafe):
            files["pku_saferlhf_pairs"].append(row(f"pairs-{i}-{k}", f"ask {i}?", [good, bad], [True, False]))
    for name, count in (("pku_saferlhf_mini", 24), ("hh_harmless_test", 24)):
        files[name] = []
        for i in range(count):
            labels = None if name.startswith("hh") else [i % 4 < 2, i % 2 == 0]
            texts = [text(True), text(False)] if labels is None else [text(one) for one in labels]
            files[name].append(row(f"{name}-{i}", f"{name[:3]} {i}?", texts, labels))
    prompts = [f"ask {i}?" for i in range(15)] + [f"other {i}?" for i in range(9)]
    files["pku_saferlhf_safe_sft"] = [
        {
            "id": f"sft-{i}",
            "prompt": prompt.upper(),
            "response": text(True),
            "is_safe": True,
            "label_origin": "human",
        }
        for i, prompt in enumerate(prompts)
    ]
    known = files["pku_saferlhf_pairs"][0]  # as an answer of a pair
    files["pku_saferlhf_safe_sft"][0] |= {"prompt": known["prompt"].upper(), "response": known["response_0"]}
    for name, rows in files.items():
        draw.shuffle(rows)
        (place / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    return place


def row(name: str, prompt: str, texts: list[str], labels: list[bool] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"id": name, "prompt": prompt, "label_origin": "human"}
    found |= {f"response_{k}": text for k, text in enumerate(texts)}
    found |= {f"is_response_{k}_safe": one for k, one in enumerate(labels or ())}
    if labels is None or labels[0] != labels[1]:
        found["safer_response_id"] = 0 if labels is None or labels[0] else 1
    return found


@pytest.fixture
def small(tiny_encoder: Path) -> dict[str, Any]:
    """Settings of `train scorer`."""
    optim = {"epochs": 4, "lr": 3e-3, "device": "cpu"}
    return {"backbone": str(tiny_encoder), "layers": 2, "hidden": 4, "optim": optim}


def test_by_prompt_nothing_is_seen_before_and_at_random_most_answers_are(scripts: Any, data: Path) -> None:
    module = scripts["scorer_folds"]
    by_prompt, at_random = (module.read_split(data, name) for name in ("pku, by prompt", "pku, at random"))
    assert at_random.pairs == by_prompt.pairs
    for split in (by_prompt, at_random):
        assert sorted(i for _, test in split.folds for i in test) == list(range(60 + 24))
        for train, test in split.folds:
            assert sorted([*train, *test]) == list(range(60 + 24))
    for train, test in by_prompt.folds:
        assert not {by_prompt.prompts[i] for i in train} & {by_prompt.prompts[i] for i in test}
    assert module.seen_before(by_prompt) == {"answers": 120, "in_training_too": 0, "to_the_same_prompt": 0}
    # an answer stands in two pairs; at random the other one is on the same side in a fifth of the draws
    found = module.seen_before(at_random)
    assert found["in_training_too"] == found["to_the_same_prompt"]
    assert 0.6 < found["to_the_same_prompt"] / found["answers"] < 0.95


def test_a_share_of_the_prompts_is_learned_from_whole_and_what_is_scored_stays(
    scripts: Any, data: Path
) -> None:
    whole = scripts["scorer_folds"].read_split(data, "pku, by prompt")
    half, quarter = whole.with_share(0.5), whole.with_share(0.25)
    assert whole.with_share(1.0).folds[0][0].tolist() == whole.folds[0][0].tolist()
    for (train, test), (some, same), (few, also) in zip(whole.folds, half.folds, quarter.folds, strict=True):
        assert test.tolist() == same.tolist() == also.tolist()
        assert set(few) < set(some) < set(train)
        taken = {whole.prompts[i] for i in some}
        assert all(i in some for i in train if whole.prompts[i] in taken)
        assert 0.25 < len(taken) / len({whole.prompts[i] for i in train}) < 0.75


def test_a_fold_is_scored_by_what_train_scorer_makes_of_the_other_rows(
    scripts: Any, data: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    module = scripts["scorer_folds"]
    split = module.read_split(data, "pku, by prompt")
    places, scores, _ = module.run_folds(split, tmp_path / "runs" / "split", 1, small)
    train, test = split.folds[0]
    assert places.tolist() == test.tolist()
    write_records(tmp_path / "train.jsonl", [split.pairs[i] for i in train])
    config = ScorerConfig.model_validate({"pairs": [tmp_path / "train.jsonl"], **small})
    produce(tmp_path / "scorer", TRAIN_SCORER, config)
    exchanges = [split.pairs[i].exchange(k) for i in test for k in (0, 1)]
    costs = [one.cost.value for one in load_scorer(tmp_path / "scorer", "cpu")(exchanges) if one.cost]
    assert scores.order.ravel().tolist() == pytest.approx(costs, abs=1e-4)
    assert scores.sign.tolist() == scores.order.tolist()


def test_single_answers_are_learned_from_only_where_their_prompt_is_not_scored(
    scripts: Any, data: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    module = scripts["scorer_folds"]
    alone = module.read_split(data, "pku, by prompt")
    split = module.read_split(data, "pku, by prompt, beside safe answers")
    assert split.pairs == alone.pairs
    assert [test.tolist() for _, test in split.folds] == [test.tolist() for _, test in alone.folds]
    assert len(split.beside) == 23  # of 24 one is an answer of a pair to its prompt
    for k, (_, test) in enumerate(split.folds):
        learned, scored = split.learned_beside(k), {str(split.pairs[i].prompt).upper() for i in test}
        assert [row for row in split.beside if row.prompt not in scored] == learned
        assert 9 <= len(learned) < 23
    known, more = (
        module.run_folds(one, tmp_path / name, 1, small)
        for name, one in (("alone", alone), ("beside", split))
    )
    assert known.places.tolist() == more.places.tolist()
    assert known.scores.sign.tolist() != more.scores.sign.tolist()


def test_order_and_sign_are_those_of_the_pairs_by_hand(scripts: Any) -> None:
    module = scripts["scorer_folds"]
    unsafe = [(True, False), (False, True), (False, False)]
    pairs = [
        Pair(
            id=f"p{i}",
            prompt=f"ask {i}",
            answers=(Answer(response="a", is_safe=not one), Answer(response="b", is_safe=not other)),
            safer=None if one == other else int(one),
        )
        for i, (one, other) in enumerate(unsafe)
    ]
    split = module.Split(pairs, [True, True, False], [], [])
    ours = np.array([[3.0, 1.0], [2.0, 4.0], [0.0, 5.0]])  # both in order
    theirs = np.array([[3.0, 1.0], [4.0, 2.0], [0.0, 0.0]])
    both = [module.Scores(scores, scores) for scores in (ours, theirs)]
    found = module.compared(split, np.arange(3), *both)
    assert [found["ordering"][name]["value"] for name in ("scorer", "tfidf", "difference")] == [1.0, 0.5, 0.5]
    assert found["ordering"]["scorer"]["n"] == 2
    flat = [one for pair in unsafe for one in pair]
    by_hand = [auroc(scores.ravel(), flat) for scores in (ours, theirs)]
    assert [found["sign"][name]["value"] for name in ("scorer", "tfidf")] == by_hand
    assert found["sign"]["difference"]["value"] == by_hand[0] - by_hand[1]
    assert found["sign"]["difference"]["n"] == 6
    assert found["sign_of_the_pairs_in_order"]["scorer"] == {
        **found["sign_of_the_pairs_in_order"]["scorer"],
        "value": 1.0,
        "n": 4,
        "clusters": 2,
    }


def test_what_is_done_stays_and_what_is_added_stands_beside_it(
    scripts: Any, data: Path, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = scripts["scorer_folds"]
    monkeypatch.setattr(scripts["common"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "DRAWS", 50)
    splits = ["pku, by prompt", "hh_harmless, by prompt"]
    for split in splits:
        first = module.measure(data, tmp_path / "runs", {"frozen": small}, split, 2, join=False)
    runs = sorted((tmp_path / "runs").rglob("manifest.json"))
    assert len(runs) == 2 * (1 + 2 + 2)  # features once, then each fold by the baseline and by the scorer
    times = [path.stat().st_mtime_ns for path in runs]
    top = {**small, "tune": "top", "top_layers": 1}
    found = module.measure(data, tmp_path / "runs", {"frozen": small, "top": top}, splits[0], 2, join=True)
    assert [path.stat().st_mtime_ns for path in runs] == times
    assert json.loads((tmp_path / "results" / "scorer_folds.json").read_text("utf-8")).keys() == {
        "machine",
        "splits",
    }
    told = found["splits"][splits[0]]["scorers"]
    assert told["frozen"] == json.loads(json.dumps(first["splits"][splits[0]]["scorers"]["frozen"]))
    assert list(told) == ["frozen", "top", "frozen + top"]
    assert told["frozen + top"]["settings"] == {"mean_of": ["frozen", "top"]}
    took = [told[name]["took"]["cpu_seconds"] for name in told]
    assert took[2] == pytest.approx(took[0] + took[1], abs=0.11)
    for name in ("ordering", "sign"):
        for one in told.values():
            moved = one[name]["scorer"]["value"] - one[name]["tfidf"]["value"]
            assert one[name]["difference"]["value"] == pytest.approx(moved, abs=1e-9)
        assert told["top"][name]["tfidf"] == told["frozen"][name]["tfidf"]
    assert told["frozen"]["ordering"]["tfidf"]["value"] > 0.9  # one word tells
    assert "sign" not in found["splits"][splits[1]]["scorers"]["frozen"]  # nobody says what is safe there


def test_joined_scorers_say_the_mean_of_their_costs_each_by_its_own_spread(scripts: Any) -> None:
    module = scripts["scorer_folds"]
    said = [[[1.0, 3.0], [5.0, 0.0], [2.0, 4.0]], [[10.0, -10.0], [0.0, 40.0], [7.0, 9.0]]]
    members = [
        module.Folds(np.arange(3), module.Scores(np.array(one), -np.array(one)), {"cpu_seconds": 1.5})
        for one in said
    ]
    found = module.joined(members)
    spreads = [pstdev(value for pair in one for value in pair) for one in said]
    by_hand = [
        [fmean(one[i][k] / spread for one, spread in zip(said, spreads, strict=True)) for k in (0, 1)]
        for i in range(3)
    ]
    assert found.scores.order.tolist() == [pytest.approx(pair, rel=1e-12) for pair in by_hand]
    assert found.scores.sign.tolist() == (-found.scores.order).tolist()
    assert found.took == {"cpu_seconds": 3.0}


def test_one_scorer_alone_is_not_joined(
    scripts: Any, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["scorer_folds.py", "--data", str(data), "--scorers", "minilm", "--join"])
    with pytest.raises(SystemExit) as stopped:
        scripts["scorer_folds"].main()
    assert stopped.value.code == 2
    assert "--join: got one scorer; expected two at least" in capsys.readouterr().err


def test_the_settings_of_a_scorer_are_those_given_over_its_own(scripts: Any) -> None:
    module = scripts["scorer_folds"]
    settings = module.settings_of("smollm2-135m", "top", ["optim.epochs=1", "depth=30"])
    config = ScorerConfig.model_validate({"pairs": ["pairs.jsonl"], **settings})
    assert (config.depth, config.layers, config.top_layers) == (30, 4, 10)
    assert (config.optim.epochs, config.optim.lr, config.optim.head_lr) == (1, 1e-4, 1e-3)
    assert module.settings_of("smollm2-135m", "top", [])["optim"]["epochs"] == 2
    assert module.SCORERS["smollm2-135m"]["depth"] == 20
