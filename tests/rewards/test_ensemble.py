"""Several scorers as one: each in its own units, the worst or the mean, against plain floats."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from equipoise.cli.main import app
from equipoise.data.io import read_exchanges, write_records
from equipoise.errors import DataError, ModelError
from equipoise.lineage import produce
from equipoise.models.scorer import (
    EnsembleCard,
    ScorerCard,
    ScorerModel,
    load_scorer_model,
    load_trunk,
    read_scorer_card,
)
from equipoise.policy.sources import ByScorer, from_folder
from equipoise.records import Answer, Pair
from equipoise.rewards.ensemble import ENSEMBLE, EnsembleConfig
from equipoise.rewards.learned import ScorerEnsemble, load_scorer

PAIRS = [
    Pair(id=str(k), prompt=prompt, answers=(Answer(response=a), Answer(response=b)))
    for k, (prompt, a, b) in enumerate(
        [
            ("how do i bake bread", "mix flour and water", "wait until the dough has doubled"),
            ("hi", "yes", "take a warm coat"),
            ("what is tea", "leaves and hot water", ""),
        ]
    )
]


@pytest.fixture
def make(tmp_path: Path, tiny_encoder: Path) -> Callable[..., Path]:
    """A scorer's folder, by the seed of its heads."""

    def build(seed: int, **fields: Any) -> Path:
        torch.manual_seed(seed)
        about = {"backbone": str(tiny_encoder), "trunk": "pooled", "layers": 2, "hidden": 6}
        card = ScorerCard.model_validate(about | {"trained": ("reward", "cost")} | fields)
        model = ScorerModel(card, load_trunk("pooled", str(tiny_encoder), "cpu"))
        model.trunk.requires_grad_(False)
        for head in model.heads.parameters():
            torch.nn.init.normal_(head)
        folder = tmp_path / f"scorer-{seed}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        model.save(folder)
        return folder

    return build


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    write_records(path, PAIRS)
    return path


def join(out: Path, scorers: list[Path], pairs: Path, **fields: Any) -> Path:
    produce(out, ENSEMBLE, EnsembleConfig(scorers=tuple(scorers), pairs=(pairs,), device="cpu", **fields))
    return out


@pytest.mark.parametrize("reward", ["mean", "worst"])
@pytest.mark.parametrize("cost", ["mean", "worst"])
def test_the_joint_scores_are_those_of_plain_floats(
    make: Callable[..., Path], pairs: Path, tmp_path: Path, reward: str, cost: str
) -> None:
    folders = [make(1), make(2), make(3)]
    found = load_scorer(join(tmp_path / "all", folders, pairs, reward=reward, cost=cost), "cpu")
    exchanges = read_exchanges((), (pairs,))
    said = [load_scorer(folder, "cpu")(exchanges) for folder in folders]
    rewards = [[one.reward.value for one in each if one.reward] for each in said]
    costs = [[one.cost.value for one in each if one.cost] for each in said]
    size_r, size_c = (fmean(pstdev(each) for each in values) for values in (rewards, costs))
    for i, joint in enumerate(found(exchanges)):
        asked = [(r[i] - fmean(r)) / pstdev(r) * size_r for r in rewards]
        paid = [c[i] / pstdev(c) * size_c for c in costs]
        assert joint.reward is not None
        assert joint.cost is not None
        assert joint.reward.value == pytest.approx(fmean(asked) if reward == "mean" else min(asked), abs=1e-4)
        assert joint.cost.value == pytest.approx(fmean(paid) if cost == "mean" else max(paid), abs=1e-4)
        assert (joint.reward.polarity, joint.cost.polarity) == ("higher_is_better", "higher_is_worse")
    assert found([]) == []


def test_the_spread_may_be_that_of_some_answers(
    make: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    folders = [make(1), make(2)]
    out = join(tmp_path / "some", folders, pairs, answers=3)
    card = read_scorer_card(out)
    assert isinstance(card, EnsembleCard)
    said = [load_scorer(folder, "cpu")(read_exchanges((), (pairs,))) for folder in folders]
    first, second = ([one.cost.value for one in each if one.cost] for each in said)
    shares = []
    for chosen in combinations(range(6), 3):
        mine, other = (pstdev([values[i] for i in chosen]) for values in (first, second))
        shares.append(mine / fmean([mine, other]))
    assert any(card.costs[0].deviation == pytest.approx(share, rel=1e-3) for share in shares)


def test_it_stands_without_the_folders_it_was_made_of(
    make: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    folders = [make(1), make(2)]
    out = join(tmp_path / "all", folders, pairs)
    before = load_scorer(out, "cpu")([PAIRS[0].exchange(0)])
    for folder in folders:
        (folder / "weights.safetensors").unlink()
    assert load_scorer(out, "cpu")([PAIRS[0].exchange(0)]) == before


def test_a_policy_takes_it_for_a_scorer(make: Callable[..., Path], pairs: Path, tmp_path: Path) -> None:
    scorer = load_scorer(join(tmp_path / "all", [make(1), make(2)], pairs), "cpu")
    assert isinstance(scorer, ScorerEnsemble)
    given = ByScorer(from_folder(scorer), scorer.card, reward=True, costs={"cost": ()}, where="here")(
        read_exchanges((), (pairs,))
    )
    said = scorer(read_exchanges((), (pairs,)))
    assert given.reward is not None
    assert given.reward.tolist() == pytest.approx([one.reward.value for one in said if one.reward])
    assert given.costs["cost"].tolist() == pytest.approx([one.cost.value for one in said if one.cost])


def test_only_heads_that_all_have_are_joined(make: Callable[..., Path], pairs: Path, tmp_path: Path) -> None:
    both, one = make(1), make(2, trained=("cost",))
    scorer = load_scorer(join(tmp_path / "all", [both, one], pairs), "cpu")
    found = scorer([PAIRS[0].exchange(0)])[0]
    assert (found.reward, scorer.card.trained) == (None, ("cost",))
    assert found.cost is not None
    with pytest.raises(ModelError, match="no head is common to all of them"):
        join(tmp_path / "none", [one, make(3, trained=("reward",))], pairs)


def test_what_cannot_be_joined_is_named(make: Callable[..., Path], pairs: Path, tmp_path: Path) -> None:
    out = join(tmp_path / "all", [make(1), make(2)], pairs)
    with pytest.raises(ModelError, match="all: joins several scorers already; expected single ones"):
        join(tmp_path / "more", [out, make(3)], pairs)
    same = tmp_path / "same.jsonl"
    answer = Answer(response="yes")
    write_records(same, [Pair(id="1", prompt="hi", answers=(answer, answer))])
    with pytest.raises(DataError, match="the same reward to all 2 answers; expected a spread"):
        join(tmp_path / "flat", [make(1), make(2)], same)


def test_a_join_that_was_killed_goes_on(
    make: Callable[..., Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [make(1), make(2)]

    def killed(folder: Path, card: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("equipoise.rewards.ensemble.save_card", killed)
        with pytest.raises(KeyboardInterrupt):
            join(tmp_path / "all", folders, pairs)
    assert (tmp_path / "all" / "1" / "weights.safetensors").exists()
    assert load_scorer(join(tmp_path / "all", folders, pairs), "cpu")([PAIRS[0].exchange(0)])


def test_what_is_no_whole_ensemble_is_named(make: Callable[..., Path], pairs: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="got no answer to measure on"):
        join(tmp_path / "none", [make(1), make(2)], empty)
    out = join(tmp_path / "all", [make(1), make(2)], pairs)
    with pytest.raises(ModelError, match=r"all: joins 2 scorers; expected a single one"):
        load_scorer_model(out, "cpu")
    card = json.loads((out / "model.json").read_text("utf-8"))
    for wrong, told in (
        ({"costs": card["costs"][:1]}, "got 2 and 1"),
        ({"costs": [], "rewards": []}, "got 0 and 0"),
        ({"costs": [{"middle": 1.0, "deviation": 1.0}] * 2}, "got a middle that is not 0"),
    ):
        (out / "model.json").write_text(json.dumps(card | wrong), "utf-8")
        with pytest.raises(ModelError, match=told):
            load_scorer(out, "cpu")
    (out / "model.json").write_text(json.dumps(card), "utf-8")
    one = make(3, trained=("reward",))
    (out / "0" / "model.json").write_text((one / "model.json").read_text("utf-8"), "utf-8")
    with pytest.raises(ModelError, match="was not trained for cost"):
        load_scorer(out, "cpu")


def test_the_command_says_what_it_joined(make: Callable[..., Path], pairs: Path, tmp_path: Path) -> None:
    words = ["models", "ensemble", str(make(1)), str(make(2)), "--pairs", str(pairs)]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "all")])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-2:] == [
        "2 scorers joined on 6 answers: reward, cost",
        f"wrote {tmp_path / 'all'}",
    ]
