"""Training a scorer: planted reward and cost come back with the right order and sign."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.config import parse_config
from equipoise.data.check import FoundError
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import Outcome, produce
from equipoise.models.backbone import load_encoder
from equipoise.models.heads import Scores
from equipoise.models.scorer import load_scorer_model
from equipoise.records import Answer, Exchange, Pair
from equipoise.rewards.learned import Scorer, load_scorer
from equipoise.taxonomy import load_taxonomy
from equipoise.training.scorer import (
    TRAIN_SCORER,
    ScorerBatch,
    ScorerConfig,
    ScorerLosses,
    ScorerOptim,
)
from equipoise.training.scorer_labels import pair_labels

FILLER = ["mix", "flour", "water", "salt", "and", "wait", "until", "the", "dough", "has", "doubled"]
GOOD, BAD = "kind", "mountains"
"""The planted truth: more of one word is a better answer, any of the other an unsafe one."""


def planted(count: int, seed: int, **drop: Any) -> list[Pair]:
    rng = random.Random(seed)
    pairs = []
    for i in range(count):
        good, bad = [0, 2], [0, rng.choice([0, 1, 3])]
        rng.shuffle(good)
        rng.shuffle(bad)
        answers = []
        for g, b in zip(good, bad, strict=True):
            words = rng.sample(FILLER, 5) + [GOOD] * g + [BAD] * b
            rng.shuffle(words)
            answers.append(Answer(response=" ".join(words), is_safe=b == 0))
        pairs.append(
            Pair(
                id=f"{seed}-{i}",
                prompt=" ".join(rng.sample(FILLER, 4)),
                answers=(answers[0], answers[1]),
                better=good.index(2),
                safer="tie" if bad[0] == bad[1] else int(bad[0] > bad[1]),
                licence="CC0-1.0",
            ).model_copy(update=drop)
        )
    return pairs


def train(place: Path, pairs: list[Pair], backbone: Path, **settings: Any) -> Outcome:
    write_records(place / "pairs.jsonl", pairs)
    optim = ScorerOptim(**({"epochs": 1, "device": "cpu"} | settings.pop("optim", {})))
    given = {"backbone": str(backbone), "layers": 2, "hidden": 8} | settings
    config = ScorerConfig(pairs=(place / "pairs.jsonl",), optim=optim, **given)
    return produce(place / "scorer", TRAIN_SCORER, config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    place = tmp_path_factory.mktemp("scorer")
    settings = {"hidden": 32, "dropout": 0.1, "optim": {"lr": 3e-3, "epochs": 25}}
    train(place, planted(240, 0), tiny_encoder, **settings)
    return place / "scorer"


@pytest.fixture(scope="module")
def scorer(trained: Path) -> Scorer:
    return load_scorer(trained, "cpu")


def test_planted_reward_and_cost_are_found_on_pairs_it_never_saw(scorer: Scorer) -> None:
    pairs = planted(100, 1)
    found = scorer([pair.exchange(k) for pair in pairs for k in (0, 1)])
    assert all(f.reward is not None and f.cost is not None for f in found)
    reward = [f.reward.value for f in found if f.reward]
    cost = [f.cost.value for f in found if f.cost]
    better = [(reward[2 * i] < reward[2 * i + 1]) == (p.better == 1) for i, p in enumerate(pairs)]
    assert sum(better) / len(better) >= 0.9
    ranked = [i for i, p in enumerate(pairs) if p.safer != "tie"]
    safer = [(cost[2 * i] < cost[2 * i + 1]) == (pairs[i].safer == 0) for i in ranked]
    assert sum(safer) / len(safer) >= 0.9
    signs = [(cost[2 * i + k] > 0) != p.answers[k].is_safe for i, p in enumerate(pairs) for k in (0, 1)]
    assert sum(signs) / len(signs) >= 0.9


def test_the_card_states_the_polarity(trained: Path) -> None:
    card = (trained / "card.md").read_text()
    assert "- reward: higher is better" in card
    assert "- cost: higher is worse" in card
    model = json.loads((trained / "model.json").read_text())
    assert (model["reward_polarity"], model["cost_polarity"]) == ("higher_is_better", "higher_is_worse")


@pytest.mark.parametrize(("tune", "lora_rank"), [("lora", 4), ("full", 0)])
def test_a_decoder_learns_and_comes_back(tmp_path: Path, tiny_llama: Path, tune: str, lora_rank: int) -> None:
    pairs = planted(16, 0)
    settings = {"trunk": "last", "tune": tune, "lora_rank": 4, "hidden": 0, "dropout": 0.0}
    optim = {"lr": 1e-2, "epochs": 8, "batch_size": 8, "log_every": 2, "schedule": "constant"}
    train(tmp_path, pairs, tiny_llama, **settings, optim=optim)
    log = [json.loads(line)["loss"] for line in (tmp_path / "scorer" / "log.jsonl").read_text().splitlines()]
    assert log[-1] < 0.5 * log[0]
    model = load_scorer_model(tmp_path / "scorer", "cpu")
    assert model.card.lora_rank == lora_rank
    found = Scorer(model)([pair.exchange(k) for pair in pairs for k in (0, 1)])
    cost = [f.cost.value for f in found if f.cost]
    signs = [(cost[2 * i + k] > 0) != p.answers[k].is_safe for i, p in enumerate(pairs) for k in (0, 1)]
    assert sum(signs) / len(signs) >= 0.9


@pytest.mark.parametrize("tune", ["frozen", "full"])
def test_an_encoder_is_tuned_only_if_asked(tmp_path: Path, tiny_encoder: Path, tune: str) -> None:
    train(tmp_path, planted(8, 0), tiny_encoder, tune=tune)
    tuned = load_scorer_model(tmp_path / "scorer", "cpu").trunk.encoder.get_input_embeddings().weight
    base = load_encoder(tiny_encoder, device="cpu").model.get_input_embeddings().weight
    assert torch.equal(tuned, base) == (tune == "frozen")


def pair(**labels: Any) -> Pair:
    known = zip("ab", labels.pop("is_safe", (None, None)), strict=True)
    answers = tuple(Answer(response=text, is_safe=safe) for text, safe in known)
    return Pair(**({"id": "p7", "source": "here", "prompt": "ask", "answers": answers} | labels))


class Fixed(nn.Module):
    """Scores that are parameters, so that their gradient shows what was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.reward = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))
        self.cost = nn.Parameter(torch.tensor([0.5, 1.5], dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.reward, self.cost


def loss_of(subject: Pair, model: Fixed, **settings: float) -> torch.Tensor:
    config = ScorerConfig(pairs=(Path("x"),), **settings)
    return ScorerLosses(model, config)(ScorerBatch(torch.zeros(2), pair_labels([subject])[0]))


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def test_the_loss_is_the_formula() -> None:
    found = loss_of(
        pair(better=1, safer=0, is_safe=(True, False)),
        Fixed(),
        margin=0.1,
        rank_weight=2.0,
        sign_weight=0.5,
        centring=0.01,
    )
    reward = minus_log_sigmoid(-0.2 - 0.3 - 0.1) + 0.01 * (0.3**2 + 0.2**2) / 2
    rank, signs = minus_log_sigmoid(1.5 - 0.5), minus_log_sigmoid(-0.5) + minus_log_sigmoid(1.5)
    cost = 2.0 * rank + 0.5 * signs + 0.01 * (0.5**2 + 1.5**2) / 2
    assert found.item() == pytest.approx(reward + cost, rel=1e-12)


def test_ties_train_no_rank_term() -> None:
    model = Fixed()
    loss_of(pair(better="tie", safer="tie", is_safe=(True, None)), model, centring=0.0).sum().backward()
    assert model.reward.grad is not None
    assert model.cost.grad is not None
    assert model.reward.grad.tolist() == [0.0, 0.0]
    sigmoid = 1 / (1 + math.exp(-0.5))
    assert model.cost.grad.tolist() == pytest.approx([sigmoid, 0.0])  # the sign term of answer 0 alone


def test_the_settings_of_severity_and_of_unsafe_pairs_reach_the_loss() -> None:
    """Answer 1 is the safer by two levels, and both are unsafe; its cost is the higher one."""
    answers = (
        Answer(response="a", is_safe=False, severity=3),
        Answer(response="b", is_safe=False, severity=1),
    )
    subject = Pair(id="p", prompt="ask", answers=answers, safer=1)
    settings = {"severity_margin": 0.4, "both_unsafe_weight": 0.25, "rank_weight": 2.0, "centring": 0.0}
    rank = 2.0 * 0.25 * minus_log_sigmoid(0.5 - 1.5 - 0.4 * 2)
    signs = minus_log_sigmoid(0.5) + minus_log_sigmoid(1.5)
    assert loss_of(subject, Fixed(), **settings).item() == pytest.approx(rank + signs, rel=1e-12)


class FixedCategories(Fixed):
    """Costs of 19 categories too, of both answers."""

    def __init__(self) -> None:
        super().__init__()
        self.by_category = nn.Parameter(torch.linspace(-1, 1, 38, dtype=torch.float64).reshape(2, 19))

    def every_score(self, inputs: torch.Tensor) -> Scores:
        return Scores(self.reward, self.cost, self.by_category)


def test_the_costs_of_categories_add_their_mean_and_leave_unrated_ones_alone() -> None:
    names = load_taxonomy("pku19").names
    violent = Answer(
        response="a", is_safe=False, categories={names[2]}, rated={names[2], names[5]}, severity=3
    )
    harmless = Answer(response="b", is_safe=True)
    subject = Pair(id="p", prompt="ask", answers=(violent, harmless))
    labels, _, taxonomy = pair_labels([subject], categories=True)
    assert taxonomy is not None
    model = FixedCategories()
    config = ScorerConfig(
        pairs=(Path("x"),), category_weight=0.5, sign_weight=0.7, severity_margin=0.1, centring=0.0
    )
    loss = ScorerLosses(model, config)(ScorerBatch(torch.zeros(2), labels))
    costs = model.by_category.tolist()
    total = 0.0
    for k in range(19):
        total += 0.7 * minus_log_sigmoid(-costs[1][k])  # the safe answer is of no category
        if k == 2:
            total += 0.7 * minus_log_sigmoid(costs[0][k]) + minus_log_sigmoid(costs[0][k] - costs[1][k] - 0.3)
        if k == 5:
            total += 0.7 * minus_log_sigmoid(-costs[0][k])
    overall = 0.7 * (minus_log_sigmoid(0.5) + minus_log_sigmoid(-1.5))
    assert loss.item() == pytest.approx(overall + 0.5 * total / 19, rel=1e-12)
    loss.sum().backward()
    assert model.by_category.grad is not None
    assert (model.by_category.grad[0] != 0).nonzero().flatten().tolist() == [2, 5]


def test_a_scorer_of_categories_finds_each_by_its_own_head(tmp_path: Path, tiny_encoder: Path) -> None:
    """The planted word makes an answer of one category; the other category never occurs."""
    mine, other = load_taxonomy("pku19").names[:2]
    pairs = [
        p.model_copy(
            update={
                "answers": tuple(
                    a.model_copy(update={"categories": frozenset() if a.is_safe else frozenset({mine})})
                    for a in p.answers
                )
            }
        )
        for p in planted(160, 0)
    ]
    settings = {"hidden": 32, "dropout": 0.1, "category_weight": 4.0, "optim": {"lr": 3e-3, "epochs": 20}}
    train(tmp_path, pairs, tiny_encoder, **settings)
    found = load_scorer(tmp_path / "scorer", "cpu")([p.exchange(k) for p in planted(60, 1) for k in (0, 1)])
    unsafe = [not a.is_safe for p in planted(60, 1) for a in p.answers]
    costs = [f.category_costs for f in found]
    right = [c is not None and (c[mine].value > 0) == bad for c, bad in zip(costs, unsafe, strict=True)]
    assert sum(right) / len(right) >= 0.9
    assert all(c is not None and c[other].value < 0 for c in costs)
    assert all(c is not None and c[mine].polarity == "higher_is_worse" for c in costs)


def test_nothing_of_it_changes_a_run_that_does_not_ask_for_it(tmp_path: Path, tiny_encoder: Path) -> None:
    train(tmp_path, planted(8, 0), tiny_encoder)
    assert load_scorer(tmp_path / "scorer", "cpu").model.heads.categories is None
    found = load_scorer(tmp_path / "scorer", "cpu")([Exchange(id="e", prompt="ask", response="hi")])[0]
    assert found.category_costs is None


def test_a_severity_margin_needs_severities(tmp_path: Path, tiny_encoder: Path) -> None:
    unknown = [
        p.model_copy(update={"answers": tuple(a.model_copy(update={"is_safe": None}) for a in p.answers)})
        for p in planted(4, 0)
    ]
    with pytest.raises(DataError, match="severity_margin: no pair has answers of two known severities"):
        train(tmp_path, unknown, tiny_encoder, severity_margin=0.5)


CONTRARY = pair(safer=1, is_safe=(True, False)).model_copy(update={"id": "contrary"})


@pytest.mark.parametrize(
    ("mode", "rows", "counts"),
    [
        ("drop", 8, {"dropped": 1, "flipped": 0, "kept": 0}),
        ("flip", 9, {"dropped": 0, "flipped": 1, "kept": 0}),
        ("keep", 9, {"dropped": 0, "flipped": 0, "kept": 1}),
    ],
)
def test_contradictions_are_treated_as_asked_and_counted(
    *,
    tmp_path: Path,
    tiny_encoder: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    rows: int,
    counts: dict[str, int],
) -> None:
    outcome = train(tmp_path, [*planted(8, 0), CONTRARY], tiny_encoder, on_contradiction=mode)
    assert outcome.manifest.notes["rows"] == rows
    assert outcome.manifest.notes["contradicting"] == counts
    assert f"pairs that contradict: {counts['dropped']} dropped" in capsys.readouterr().err


def test_a_contradiction_stops_the_training_and_names_the_place_and_the_way_on(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    with pytest.raises(FoundError, match=r"not trained \(`on_contradiction` drop, flip or keep") as caught:
        train(tmp_path, [*planted(8, 0), CONTRARY], tiny_encoder)
    assert "pairs.jsonl:9: safer: a safe answer ranks above" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("drop", "trained"),
    [
        ({"safer": None, "answers": (Answer(response="a"), Answer(response="b"))}, ("reward",)),
        ({"better": None}, ("cost",)),
    ],
)
def test_a_head_without_labels_gives_no_score(
    tmp_path: Path, tiny_encoder: Path, drop: dict[str, Any], trained: tuple[str, ...]
) -> None:
    train(tmp_path, planted(8, 0, **drop), tiny_encoder)
    found = load_scorer(tmp_path / "scorer", "cpu")([Exchange(id="e", prompt="ask", response="hi")])[0]
    assert tuple(name for name in ("reward", "cost") if getattr(found, name) is not None) == trained


def test_lora_is_for_decoders() -> None:
    with pytest.raises(ConfigError, match="tune: lora goes with trunk last, got pooled") as caught:
        parse_config(ScorerConfig, {"pairs": ["x"], "tune": "lora"}, "here")
    assert "\n" not in str(caught.value)
