"""A grader of trained heads: the same after a save, some answers at a time, and files that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.errors import ModelError
from equipoise.models.backbone import load_encoder
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.records import Exchange
from equipoise.rewards import trained_grader
from equipoise.rewards.answer_features import Features, fit_reader
from equipoise.rewards.grading import fit_heads
from equipoise.rewards.trained_grader import TrainedGrader, load_grader

SORRY, HELP = "I am sorry for that. I cannot help with request {}.", "Mix flour and salt. Then wait {} hours."


def exchanges(count: int) -> list[Exchange]:
    """Answers of one to three sentences, half of which are sorry."""
    texts = [
        (SORRY if n % 2 else HELP).format(n) + " Is there more to say?" * (n % 3 == 0) for n in range(count)
    ]
    texts = [text.split(". ")[-1] if n % 5 == 4 else text for n, text in enumerate(texts)]
    return [
        Exchange(id=str(n), prompt=f"How do I bake bread {n}?", response=text) for n, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def grader(tiny_encoder: Path) -> TrainedGrader:
    features, rows = Features(load_encoder(str(tiny_encoder), device="cpu"), 2), exchanges(40)
    found, answers = features(rows), [e.response for e in rows]
    reader = fit_reader(found, answers)
    labels = np.array([[float(n % 2), float("nan")] for n in range(40)])
    heads, _ = fit_heads(reader(found, answers), labels, range(40))
    return TrainedGrader(features, reader, heads)


def test_a_trained_grader_tells_answers_apart_and_is_the_same_after_a_save(
    grader: TrainedGrader, tiny_encoder: Path, tmp_path: Path
) -> None:
    rows = exchanges(46)[40:]
    grades = grader(rows)
    assert (grades[:, 0] > 0.5).tolist() == [False, True] * 3
    grader.save(tmp_path)
    loaded = load_grader(tmp_path, load_encoder(str(tiny_encoder), device="cpu"), 2, 2)
    np.testing.assert_allclose(loaded(rows), grades, atol=1e-5)


def test_no_answers_have_no_grades(grader: TrainedGrader) -> None:
    assert grader([]).shape == (0, 2)


def test_graders_of_an_earlier_version_are_named_as_such(
    grader: TrainedGrader, tiny_encoder: Path, tmp_path: Path
) -> None:
    grader.save(tmp_path)
    tensors = load_tensors(tmp_path / "weights.safetensors")
    tensors["scale.mean"] = tensors["bias"].clone()
    save_tensors(tmp_path / "weights.safetensors", tensors)
    with pytest.raises(ModelError, match="graders of an earlier version; expected them to be trained again"):
        load_grader(tmp_path, load_encoder(str(tiny_encoder), device="cpu"), 2, 2)


def test_many_answers_are_graded_some_at_a_time(
    grader: TrainedGrader, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = exchanges(7)
    at_once = grader(rows)
    monkeypatch.setattr(trained_grader, "_AT_ONCE", 3)
    np.testing.assert_allclose(grader(rows), at_once, atol=1e-6)


def test_a_grade_does_not_depend_on_the_other_answers(grader: TrainedGrader) -> None:
    rows = exchanges(6)
    np.testing.assert_allclose(grader(rows)[3], grader([rows[3]])[0], atol=1e-6)


def test_heads_for_another_model_or_other_rules_are_refused(
    grader: TrainedGrader, tiny_encoder: Path, tmp_path: Path
) -> None:
    grader.save(tmp_path)
    backbone = load_encoder(str(tiny_encoder), device="cpu")
    for layers, propositions, name in ((1, 2, "answers.mean"), (2, 3, "weight")):
        with pytest.raises(ModelError, match=f"tensor '{name}' has shape"):
            load_grader(tmp_path, backbone, layers, propositions)


@pytest.mark.parametrize("name", trained_grader.TENSORS)
@pytest.mark.parametrize("damage", ["missing", "too short", "one number"])
def test_what_does_not_fit_together_is_refused(
    name: str, damage: str, grader: TrainedGrader, tiny_encoder: Path, tmp_path: Path
) -> None:
    grader.save(tmp_path)
    tensors = load_tensors(tmp_path / "weights.safetensors")
    whole = tensors.pop(name)
    if damage != "missing":
        tensors[name] = (whole[len(whole) // 2 :] if damage == "too short" else whole.flatten()[0]).clone()
    save_tensors(tmp_path / "weights.safetensors", tensors)
    with pytest.raises(ModelError, match=r"weights\.safetensors: (tensor|1 tensors)"):
        load_grader(tmp_path, load_encoder(str(tiny_encoder), device="cpu"), 2, 2)


@pytest.mark.parametrize(("terms", "what"), [(torch.tensor([97.0, 10, 98]), "no text"), (b"a\na", "twice")])
def test_words_that_are_none_are_refused(
    terms: torch.Tensor | bytes, what: str, grader: TrainedGrader, tiny_encoder: Path, tmp_path: Path
) -> None:
    grader.save(tmp_path)
    tensors = load_tensors(tmp_path / "weights.safetensors")
    made = torch.tensor(list(terms), dtype=torch.uint8) if isinstance(terms, bytes) else terms
    save_tensors(tmp_path / "weights.safetensors", {**tensors, "words.terms": made})
    with pytest.raises(ModelError, match=what):
        load_grader(tmp_path, load_encoder(str(tiny_encoder), device="cpu"), 2, 2)
