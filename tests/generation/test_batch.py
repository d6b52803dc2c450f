"""`generate` over a file."""

import gzip
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import load_config
from equipoise.errors import ConfigError
from equipoise.generation import sources
from equipoise.generation.batch import GENERATE, GenerateConfig, SamplingConfig
from equipoise.generation.local import LocalGenerator, load_generator
from equipoise.generation.sources import Asked, Responder
from equipoise.lineage import produce
from equipoise.models import backbone
from equipoise.protocols import Messages, Sampling

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "How do I bake bread?", "level": 2},
    {"id": "long", "prompt": "bread " * 300},
    {"id": 3, "prompt": [{"role": "user", "content": "Explain the tides."}]},
    {"id": "none"},
]
CHATS: list[Messages] = [[{"role": "user", "content": ROWS[0]["prompt"]}], ROWS[2]["prompt"]]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.fixture
def other_model(tiny_llama: Path, tmp_path: Path) -> Path:
    """Folder of a model of the same shape, with room for the long prompt."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_llama)
    config.max_position_embeddings = 2048
    torch.manual_seed(9)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def settings(prompts: Path, *models: Path, greedy_first: bool = False, **sampling: Any) -> GenerateConfig:
    sampled = SamplingConfig(max_new_tokens=8, **sampling)
    names = tuple(map(str, models))
    return GenerateConfig(
        models=names, prompts=prompts, sampling=sampled, batch_size=2, greedy_first=greedy_first
    )


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_gain_response_model_and_sample(tiny_llama: Path, prompts: Path, tmp_path: Path) -> None:
    config = settings(prompts, tiny_llama, temperature=1.0, samples=2)
    outcome = produce(tmp_path / "out.jsonl", GENERATE, config)

    rows = read(tmp_path / "out.jsonl")
    texts = load_generator(tiny_llama)(CHATS, config.sampling.plain(), ["a", "3"])
    expected = [
        {**row, "response": text, "model": str(tiny_llama), "sample": k}
        for row, samples in zip([ROWS[0], ROWS[2]], texts, strict=True)
        for k, text in enumerate(samples)
    ]
    assert [*rows[:2], *rows[3:5]] == expected
    assert [(r["id"], r.keys() == {"id", "error"}) for r in (rows[2], rows[5])] == [
        ("long", True),
        ("none", True),
    ]
    assert rows[2]["error"].startswith("prompts.jsonl:2: prompt: too long")
    assert rows[5]["error"].startswith("prompts.jsonl:4: prompt: missing")
    assert outcome.manifest.notes == {"rows": 2, "errors": 2, "missing": 0}
    assert produce(tmp_path / "out.jsonl", GENERATE, config).skipped


def test_a_greedy_answer_comes_before_the_samples(tiny_llama: Path, prompts: Path, tmp_path: Path) -> None:
    config = settings(prompts, tiny_llama, temperature=1.0, samples=3, greedy_first=True)
    produce(tmp_path / "out.jsonl", GENERATE, config)
    generator = load_generator(tiny_llama)
    (greedy,) = generator(CHATS[:1], Sampling(max_new_tokens=8))
    (warm,) = generator(CHATS[:1], config.sampling.plain(), ["a"])
    found = [(r["sample"], r["response"]) for r in read(tmp_path / "out.jsonl") if r["id"] == "a"]
    assert found == list(enumerate([*greedy, *warm]))


def test_several_models_answer_each_row_and_samples_are_numbered_on(
    tiny_llama: Path, other_model: Path, prompts: Path, tmp_path: Path
) -> None:
    both, one, two = (tmp_path / f"{name}.jsonl" for name in ("both", "one", "two"))
    config = settings(prompts, tiny_llama, other_model, temperature=1.0, samples=2)
    outcome = produce(both, GENERATE, config)
    produce(one, GENERATE, settings(prompts, tiny_llama, temperature=1.0, samples=2))
    produce(two, GENERATE, settings(prompts, other_model, temperature=1.0, samples=2))

    rows = read(both)
    assert [(r["id"], r.get("sample")) for r in rows] == [
        *[("a", k) for k in range(4)],
        *[("long", k) for k in (0, 2, 3)],
        *[(3, k) for k in range(4)],
        ("none", None),
    ]
    for path, model in ((one, tiny_llama), (two, other_model)):
        alone = [(r["id"], r["response"]) for r in read(path) if "response" in r]
        assert [
            (r["id"], r["response"]) for r in rows if r.get("model") == str(model) and "response" in r
        ] == alone
    assert rows[4].keys() == {"id", "sample", "model", "error"}  # too long for the first model only
    assert outcome.manifest.notes == {"rows": 3, "errors": 2, "missing": 0}


def test_a_name_that_ends_in_gz_is_compressed(tiny_llama: Path, prompts: Path, tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.jsonl.gz"):
        produce(tmp_path / name, GENERATE, settings(prompts, tiny_llama))
    packed = gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes())
    assert packed == (tmp_path / "out.jsonl").read_bytes()


def test_a_stopped_run_goes_on_and_equals_a_whole_one(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": f"Say {i}"}) + "\n" for i in range(20)))
    config = settings(path, tiny_llama, temperature=1.0)
    produce(tmp_path / "whole.jsonl", GENERATE, config)

    write, calls = LocalGenerator.write, []

    def stops(
        self: LocalGenerator, prompts: Sequence[Sequence[int]], sampling: Sampling, ids: Sequence[str]
    ) -> Any:
        calls.append(list(ids))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(self, prompts, sampling, ids)

    monkeypatch.setattr(LocalGenerator, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        produce(tmp_path / "out.jsonl", GENERATE, config)
    outcome = produce(tmp_path / "out.jsonl", GENERATE, config)

    assert outcome.manifest.attempts == 2
    assert calls[2] == calls[1] != calls[0]  # the first chunk was not written again
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_operator_can_be_sent_to_another_process_after_its_model_was_loaded(tiny_llama: Path) -> None:
    operator = Responder(str(tiny_llama), Sampling(max_new_tokens=8))
    asked = [Asked("a", CHATS[0]), Asked("3", CHATS[1])]
    answers = operator(asked)
    sent = pickle.dumps(operator)
    assert len(sent) < 2000  # no weights
    assert pickle.loads(sent)(pickle.loads(pickle.dumps(asked))) == answers


def test_devices_and_formats_are_those_of_the_models() -> None:
    assert (sources.Device, sources.DType) == (backbone.Device, backbone.DType)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.samples=4", "sampling: 4 greedy samples are all the same; expected a temperature above 0"),
        (
            "greedy_first=true",
            "greedy_first: the sample is greedy too; expected sampling.temperature above 0",
        ),
        ("models=[m, m]", "models: one is named twice, got m, m"),
        ("models=[]", "models: .*at least 1 item"),
        ("sampling.top_p=0", "sampling.top_p: .*got 0"),
        ("sampling.temprature=1", r"no such setting \(did you mean 'temperature'\?\)"),
        ("batch_size=0", "batch_size: .*got 0"),
        ("device=tpu", "device: .*got 'tpu'"),
        ("endpoint.url=nowhere", "endpoint.url: expected an address"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(GenerateConfig, overrides=["models=[m]", "prompts=p", override])
