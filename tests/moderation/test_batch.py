"""The files of `moderate` and `refusals`: the fields of the contract, in order, bad lines in place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.config import to_yaml
from equipoise.errors import ConfigError, DataError
from equipoise.lineage import Outcome, produce
from equipoise.models.backbone import load_encoder
from equipoise.models.features import TextPair
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.moderation.batch import (
    MODERATE,
    REFUSALS_STEP,
    ModerateConfig,
    RefusalsConfig,
    judge_texts,
    text_pair,
)
from equipoise.moderation.guard import load_guard
from equipoise.taxonomy import load_taxonomy

NAMES = load_taxonomy("pku19").names
FIELDS = [
    "target",
    "is_safe",
    "unsafe_probability",
    "severity",
    "severity_probabilities",
    "harm_categories",
    "category_probabilities",
    "truncated",
    "context_truncated",
    "policy",
]


def make_guard(folder: Path, encoder: Path, **more: Any) -> Path:
    torch.manual_seed(1)
    given = {
        "taxonomy": load_taxonomy("pku19"),
        "backbone": str(encoder),
        "layers": 2,
        "hidden": 8,
        "targets": ("response", "prompt"),
        "knows_refusals": True,
    }
    folder.mkdir()
    model = GuardModel(GuardCard(**(given | more)), load_encoder(encoder, device="cpu"))
    model.trunk.requires_grad_(False)
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    return make_guard(tmp_path_factory.mktemp("guards") / "guard", tiny_encoder)


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), "utf-8")
    return path


def moderate(place: Path, guard: Path, lines: list[Any], **more: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    config = ModerateConfig(file=write(place / "in.jsonl", lines), guard=guard, **more)
    outcome = produce(place / "out.jsonl", MODERATE, config)
    return outcome, [json.loads(line) for line in (place / "out.jsonl").read_text("utf-8").splitlines()]


ROWS = [
    {"id": "both", "prompt": "how do i bake bread", "response": "mix flour and water", "mine": [1]},
    {"id": "prompt", "prompt": "take a warm coat"},
    {"id": "response", "response": "wait"},
    {"id": 4, "prompt": [{"role": "user", "content": "hi"}], "response": "yes", "sample": 1},
    {"id": "null", "prompt": "hi", "response": None},
]


def test_a_row_gets_the_fields_of_the_contract_behind_its_own(tmp_path: Path, guard: Path) -> None:
    outcome, rows = moderate(tmp_path, guard, ROWS)
    assert outcome.manifest.notes == {"rows": 5, "errors": 0}
    for given, found in zip(ROWS, rows, strict=True):
        assert list(found) == [*given, *FIELDS]
        assert {name: found[name] for name in given} == given
        assert found["policy"] == "default"
        assert len(found["severity_probabilities"]) == 4
        assert list(found["category_probabilities"]) == list(NAMES)
        assert found["is_safe"] == (found["severity"] == 0) == (found["harm_categories"] == [])
        assert found["harm_categories"] == [n for n in NAMES if n in found["harm_categories"]]
        assert max(found["category_probabilities"].values()) <= found["unsafe_probability"]
    assert [row["target"] for row in rows] == ["response", "prompt", "response", "response", "prompt"]


def test_a_row_is_judged_as_its_texts_alone(tmp_path: Path, guard: Path) -> None:
    _, rows = moderate(tmp_path, guard, ROWS, chunk=2)
    judge = load_guard(guard, "cpu")
    pairs = [
        TextPair("how do i bake bread", "mix flour and water"),
        TextPair("take a warm coat", None),
        TextPair("", "wait"),
        TextPair("hi", "yes"),
        TextPair("hi", None),
    ]
    for pair, found in zip(pairs, rows, strict=True):
        alone = judge_texts(judge, [pair])[0]
        assert list(alone) == FIELDS
        assert found["unsafe_probability"] == pytest.approx(alone["unsafe_probability"], abs=2e-6)


def test_a_bad_line_keeps_its_place(tmp_path: Path, guard: Path) -> None:
    lines = [
        ROWS[0],
        {"id": "empty"},
        '{"id": "broken", ',
        {"id": "number", "prompt": 3},
        {"id": "list", "response": ["x"]},
        {"prompt": "nameless"},
        ROWS[1],
        ROWS[0],
    ]
    outcome, rows = moderate(tmp_path, guard, lines)
    assert outcome.manifest.notes == {"rows": 2, "errors": 6}
    assert [row["id"] for row in rows] == ["both", "empty", None, "number", "list", None, "prompt", "both"]
    for place in (1, 2, 3, 4, 5, 7):
        assert list(rows[place]) == ["id", "error"]
        assert rows[place]["error"].startswith(f"in.jsonl:{place + 1}: ")
    assert "prompt: missing, and no response either" in rows[1]["error"]
    assert "nameless" not in rows[5]["error"]


def test_a_prompt_to_a_guard_for_responses_is_a_bad_line(tmp_path: Path, tiny_encoder: Path) -> None:
    guard = make_guard(tmp_path / "guard", tiny_encoder, targets=("response",))
    outcome, rows = moderate(tmp_path, guard, ROWS[:2])
    assert outcome.manifest.notes == {"rows": 1, "errors": 1}
    assert "prompt: this guard was not trained to judge it" in rows[1]["error"]


def test_one_output_is_the_next_input(tmp_path: Path, guard: Path) -> None:
    _, first = moderate(tmp_path, guard, [*ROWS[:2], {"id": "bad"}])
    (tmp_path / "again").mkdir()
    _, second = moderate(tmp_path / "again", guard, first)
    assert second == first


def policy_file(path: Path, **policy: Any) -> str:
    path.write_text(to_yaml({"name": path.stem, **policy}), "utf-8")
    return str(path)


def test_a_policy_decides_and_is_named(tmp_path: Path, guard: Path) -> None:
    judged = {}
    for name, threshold in (("all", 0.0), ("none", 1.0)):
        (tmp_path / name).mkdir()
        given = policy_file(tmp_path / f"{name}.yaml", unsafe=threshold)
        _, judged[name] = moderate(tmp_path / name, guard, ROWS, policy=given)
        assert {row["policy"] for row in judged[name]} == {name}
        assert all(list(row)[-1] == "policy" for row in judged[name])
    assert [row["is_safe"] for row in judged["all"]] == [False] * 5
    assert [row["is_safe"] for row in judged["none"]] == [True] * 5
    for strict, loose in zip(judged["all"], judged["none"], strict=True):
        assert strict["unsafe_probability"] == loose["unsafe_probability"]


def test_policies_of_the_guard_go_by_their_names(tmp_path: Path, tiny_encoder: Path) -> None:
    guard = make_guard(tmp_path / "guard", tiny_encoder)
    (guard / "policies").mkdir()
    for name, threshold in (("moderate", 1.0), ("strict", 0.0)):
        policy_file(guard / "policies" / f"{name}.yaml", unsafe=threshold)
    for given, expected in ((None, "moderate"), ("strict", "strict")):
        place = tmp_path / expected
        place.mkdir()
        _, rows = moderate(place, guard, ROWS[:1], policy=given)
        assert (rows[0]["policy"], rows[0]["is_safe"]) == (expected, expected == "moderate")


def test_review_is_told_where_the_policy_has_a_band(tmp_path: Path, guard: Path) -> None:
    _, plain = moderate(tmp_path, guard, ROWS)
    middle = sorted(row["unsafe_probability"] for row in plain)[2]
    given = policy_file(tmp_path / "band.yaml", unsafe=0.5, review=[middle - 1e-5, middle + 1e-5])
    (tmp_path / "again").mkdir()
    _, rows = moderate(tmp_path / "again", guard, ROWS, policy=given)
    assert all(list(row)[-1] == "review" for row in rows)
    assert [row["review"] for row in rows] == [row["unsafe_probability"] == middle for row in plain]
    assert "review" not in plain[0]


def test_another_policy_is_another_run(tmp_path: Path, guard: Path) -> None:
    given = policy_file(tmp_path / "mine.yaml", unsafe=0.0)
    moderate(tmp_path, guard, ROWS[:1], policy=given)
    assert moderate(tmp_path, guard, ROWS[:1], policy=given)[0].skipped
    policy_file(tmp_path / "mine.yaml", unsafe=1.0)
    with pytest.raises(ConfigError, match="holds another run"):
        moderate(tmp_path, guard, ROWS[:1], policy=given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("defalt", r"no policy 'defalt' \(did you mean 'default'\?\); this guard has: default"),
        ("{name: p, categories: {Drugz: 0.5}}", r"p\.yaml: categories: no category 'Drugz' .* 'Drugs'"),
    ],
)
def test_a_policy_that_does_not_fit_is_said_before_anything_is_judged(
    tmp_path: Path, guard: Path, given: str, says: str
) -> None:
    if given.startswith("{"):
        (tmp_path / "p.yaml").write_text(given, "utf-8")
        given = str(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match=says):
        moderate(tmp_path, guard, ROWS, policy=given)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("row", [{"id": 1}, {"id": 1, "prompt": None, "response": None}])
def test_a_row_without_texts_is_an_error(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="prompt: missing, and no response either"):
        text_pair(row)


def refusals(place: Path, **settings: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    lines = [
        {"id": "a", "prompt": "hi", "response": "I'm sorry, I can't.", "mine": 1},
        {"id": "b", "prompt": "hi"},
        {"id": "c", "prompt": "hi", "response": "Mix flour and water."},
    ]
    config = RefusalsConfig(file=write(place / "in.jsonl", lines), **settings)
    outcome = produce(place / "out.jsonl", REFUSALS_STEP, config)
    return outcome, [json.loads(line) for line in (place / "out.jsonl").read_text("utf-8").splitlines()]


def test_refusals_by_prefix_need_no_guard(tmp_path: Path) -> None:
    outcome, rows = refusals(tmp_path, method="prefix")
    assert outcome.manifest.notes == {"rows": 2, "errors": 1, "method": "prefix"}
    assert list(rows[0]) == ["id", "prompt", "response", "mine", "refusal", "refusal_probabilities"]
    assert [row.get("refusal") for row in rows] == ["full", None, "none"]
    assert list(rows[1]) == ["id", "error"]
    assert "response: missing" in rows[1]["error"]


def test_refusals_by_a_classifier_are_those_of_the_guard(tmp_path: Path, guard: Path) -> None:
    outcome, rows = refusals(tmp_path, guard=guard)
    assert outcome.manifest.notes["method"] == "classifier"
    reading = load_guard(guard, "cpu").read([TextPair("hi", "I'm sorry, I can't.")])
    expected = reading.refusal_verdict(0)
    assert rows[0]["refusal"] == expected.refusal
    assert rows[0]["refusal_probabilities"] == pytest.approx(expected.probabilities, abs=2e-6)
    assert list(rows[0]["refusal_probabilities"]) == ["none", "partial", "full"]
    assert sum(rows[2]["refusal_probabilities"].values()) == pytest.approx(1.0, abs=3e-6)
