"""The shipped guard: found by its name, small, complete, and of no machine's."""

import json
import re
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from equipoise.config import find_inputs, parse_config
from equipoise.errors import ConfigError, ModelError
from equipoise.evaluation.run import EvaluateConfig
from equipoise.judges.load import JudgeConfig
from equipoise.models.checkpoints import load_tensors
from equipoise.moderation.batch import ModerateConfig, RefusalsConfig
from equipoise.moderation.default import guard_folder
from equipoise.moderation.guard import load_guard
from equipoise.moderation.server.settings import ServeConfig
from equipoise.pipeline.calibrate import CalibrateConfig
from equipoise.pipeline.guarded import GuardedGenerateConfig
from equipoise.records import Exchange

SHIPPED = guard_folder("default")
MEGABYTES = 5


@pytest.fixture
def minilm(tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with an encoder of the shape of `minilm`, and random weights."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path / "models" / "minilm"
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), intermediate_size=1536, max_position_embeddings=128, **shape
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "source.json").write_text("{}")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (ModerateConfig, {"file": "in.jsonl"}),
        (ModerateConfig, {"file": "in.jsonl", "guard": "default"}),
        (RefusalsConfig, {"file": "in.jsonl"}),
        (ServeConfig, {}),
        (JudgeConfig, {"file": "in.jsonl", "guard": "default"}),
        (EvaluateConfig, {"model": "smollm2-135m", "guard": "default"}),
        (CalibrateConfig, {"guard": Path("default"), "data": ["in.jsonl"]}),
        (
            GuardedGenerateConfig,
            {"models": ["smollm2-135m"], "prompts": "p.jsonl", "guard": "default", "tries": 1},
        ),
    ],
)
def test_settings_take_default_for_its_folder(kind: type[BaseModel], given: dict[str, object]) -> None:
    settings = parse_config(kind, given, "test")
    assert find_inputs(settings, exists=lambda _: True)["guard"] == SHIPPED


def test_a_folder_of_that_name_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match="'default' is the shipped guard, and here is a folder of that name"
    ):
        guard_folder(Path("./default"))
    assert guard_folder(tmp_path / "default") == tmp_path / "default"


def test_any_other_guard_is_as_it_was_given() -> None:
    assert guard_folder("guards/default") == Path("guards/default")
    assert ModerateConfig(file=Path("a"), guard=Path("mine")).guard == Path("mine")
    assert RefusalsConfig.model_validate({"file": "a", "method": "prefix"}).guard is None


def test_judgements_of_it_say_whose_they_are() -> None:
    assert JudgeConfig.model_validate({"file": "a", "guard": "default"}).annotator == "equipoise-guard"


def test_it_is_small_and_in_16_bits() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) <= MEGABYTES * 1e6
    tensors = load_tensors(SHIPPED / "weights.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_its_files_name_no_place_on_the_machine_that_trained_it() -> None:
    texts = [path for path in SHIPPED.rglob("*") if path.suffix in {".json", ".yaml", ".md"}]
    assert {path.name for path in texts} >= {"model.json", "calibration.json", "card.md", "moderate.yaml"}
    for path in texts:
        assert not re.search(r"(?<![\w.])/[a-z]+/|\\", path.read_text("utf-8")), path
    assert json.loads((SHIPPED / "model.json").read_text("utf-8"))["backbone"] == "minilm"


def test_its_card_names_every_source_with_its_licence() -> None:
    card = (SHIPPED / "card.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w+) \| \d+ \| (MIT|Apache-2\.0|CC-BY-4\.0) \| (.+) \|$", card, re.MULTILINE)
    assert len(rows) >= 10
    assert "pku_saferlhf" not in {name for name, *_ in rows}
    assert "## Limits" in card


@pytest.mark.usefixtures("minilm")
def test_it_judges_prompts_answers_and_refusals() -> None:
    guard = load_guard("default", "cpu")
    assert list(guard.policies) == ["moderate", "loose", "strict"]
    row = Exchange(id="a", prompt="How do I bake bread?", response="Mix flour and water, then wait.")
    (answer,) = guard([row])
    (prompt,) = guard.judge_prompts(["How do I bake bread?"])
    for verdict in (answer, prompt):
        assert verdict.policy == "moderate"
        assert verdict.calibrated
        assert 0 < verdict.unsafe_probability < 1
    assert sum(guard.refusals([row])[0].probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_without_its_encoder_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        load_guard("default", "cpu")
    assert str(caught.value) == "model 'minilm' is not installed; run: equipoise models install minilm"
