"""The run that trains a mixture of rewards: what it writes, whose pairs are whose, and what is refused."""

import json
from pathlib import Path

import pytest

from equipoise.data.io import write_records
from equipoise.errors import DataError, ModelError
from equipoise.lineage import produce
from equipoise.models.checkpoints import save_tensors
from equipoise.models.features import TextPair
from equipoise.models.mixture import load_mixture
from equipoise.records import Answer, Pair
from equipoise.training.mixture_run import TRAIN_MIXTURE, MixtureConfig, Unit, unit_of

LONG = "mix flour and water and salt and yeast, then wait until it has doubled"
SHORT = "no"


def pairs() -> list[Pair]:
    """Three raters who want long answers, and one who wants short ones."""
    return [
        Pair(
            id=f"{rater}-{number}",
            prompt=f"how do i bake {number} breads",
            answers=(Answer(response=LONG), Answer(response=SHORT)),
            better=1 if rater == "dora" else 0,
            annotators=(rater,),
            licence="CC0-1.0",
        )
        for rater in ("anna", "ben", "carl", "dora")
        for number in range(8)
    ]


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_raters_fall_into_groups_whose_rewards_can_be_loaded(
    tiny_encoder: Path, tmp_path: Path, mode: str
) -> None:
    tied = pairs()[0].model_copy(update={"id": "tied", "better": "tie"})
    unsigned = pairs()[0].model_copy(update={"id": "unsigned", "annotators": ()})
    write_records(tmp_path / "pairs.jsonl", [*pairs(), tied, unsigned])
    config = MixtureConfig.model_validate(
        {"pairs": [tmp_path / "pairs.jsonl"], "backbone": str(tiny_encoder), "layers": 2, "mode": mode}
    )
    out = tmp_path / "out"
    manifest = produce(out, TRAIN_MIXTURE, config).manifest
    assert manifest.licences == ["CC0-1.0"]
    notes = manifest.notes
    assert (notes["rows"], notes["units"]) == (32, 4)
    assert notes["left_out"] == {"no preference, or a tie": 1, "annotator not known": 1}
    assert notes["shares"] == pytest.approx([0.75, 0.25], abs=0.02)
    gain = notes["penalised_log_likelihood"] - notes["penalised_log_likelihood_of_one_reward"]  # type: ignore[operator]
    assert gain > 2

    units = json.loads((out / "units.json").read_text("utf-8"))
    assert {name: row.index(max(row)) for name, row in units.items()} == {
        "anna": 0,
        "ben": 0,
        "carl": 0,
        "dora": 1,
    }
    model = load_mixture(out, "cpu")
    assert model.card.shares == tuple(notes["shares"])  # type: ignore[arg-type]
    long, short = model([TextPair("how do i bake bread", text) for text in (LONG, SHORT)])
    assert long[0] > short[0]
    assert long[1] < short[1]
    assert "better" in (out / "card.md").read_text("utf-8")

    save_tensors(out / "weights.safetensors", {"heads": model.heads[:, 1:]})
    with pytest.raises(ModelError, match=r"heads have shape \[2, 127\], expected \[2, 128\]"):
        load_mixture(out, "cpu")
    save_tensors(out / "weights.safetensors", {"others": model.heads})
    with pytest.raises(ModelError, match=r"holds \['others'\]; expected heads"):
        load_mixture(out, "cpu")


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("annotator", "anna"),
        ("source", "survey"),
        ("severity", "2"),
        ("categories", "Privacy Violation + Violence"),
        ("pair", "survey/one"),
    ],
)
def test_a_unit_is_what_the_setting_says(unit: Unit, expected: str) -> None:
    unsafe = Answer(
        response="a", is_safe=False, severity=2, categories=frozenset({"Violence", "Privacy Violation"})
    )
    pair = Pair(
        id="one",
        prompt="q",
        answers=(unsafe, Answer(response="b", is_safe=True)),
        source="survey",
        annotators=("anna",),
    )
    assert unit_of(pair, unit) == expected
    bare = pair.model_copy(update={"answers": (unsafe, Answer(response="b")), "annotators": ("x", "y")})
    assert unit_of(bare, unit) == (expected if unit in ("source", "pair") else None)


def test_two_safe_answers_are_a_unit_of_their_own() -> None:
    safe = Answer(response="a", is_safe=True)
    pair = Pair(id="one", prompt="q", answers=(safe, safe))
    assert (unit_of(pair, "severity"), unit_of(pair, "categories")) == ("0", "none")


def test_pairs_of_no_known_rater_are_named(tiny_encoder: Path, tmp_path: Path) -> None:
    unsigned = [pair.model_copy(update={"annotators": ()}) for pair in pairs()]
    write_records(tmp_path / "pairs.jsonl", unsigned)
    config = MixtureConfig(pairs=(tmp_path / "pairs.jsonl",), backbone=str(tiny_encoder), layers=2)
    with pytest.raises(DataError, match=r"pairs: none is left to train on .*annotator not known"):
        produce(tmp_path / "out", TRAIN_MIXTURE, config)
