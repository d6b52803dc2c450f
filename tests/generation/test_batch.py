"""`generate` over a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import load_config
from equipoise.errors import ConfigError
from equipoise.generation.batch import GENERATE, GenerateConfig, SamplingConfig
from equipoise.generation.local import LocalGenerator, load_generator
from equipoise.lineage import produce
from equipoise.protocols import Messages, Sampling

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "How do I bake bread?", "level": 2},
    {"id": "long", "prompt": "bread " * 300},
    {"id": 3, "prompt": [{"role": "user", "content": "Explain the tides."}]},
    {"id": "none"},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


def settings(model: Path, prompts: Path, **sampling: Any) -> GenerateConfig:
    sampled = SamplingConfig(max_new_tokens=8, **sampling)
    return GenerateConfig(model=str(model), prompts=prompts, sampling=sampled, batch_size=2)


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_gain_response_model_and_sample(tiny_llama: Path, prompts: Path, tmp_path: Path) -> None:
    config = settings(tiny_llama, prompts, temperature=1.0, samples=2)
    outcome = produce(tmp_path / "out.jsonl", GENERATE, config)

    rows = read(tmp_path / "out.jsonl")
    chats: list[Messages] = [[{"role": "user", "content": ROWS[0]["prompt"]}], ROWS[2]["prompt"]]
    texts = load_generator(tiny_llama)(chats, config.sampling.plain(), ["a", "3"])
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
    assert (outcome.manifest.notes["rows"], outcome.manifest.notes["errors"]) == (2, 2)
    assert produce(tmp_path / "out.jsonl", GENERATE, config).skipped


def test_a_stopped_run_goes_on_and_equals_a_whole_one(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": f"Say {i}"}) + "\n" for i in range(20)))
    config = settings(tiny_llama, path, temperature=1.0)
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.samples=4", "sampling: 4 greedy samples are all the same; expected a temperature above 0"),
        ("sampling.top_p=0", "sampling.top_p: .*got 0"),
        ("sampling.temprature=1", r"no such setting \(did you mean 'temperature'\?\)"),
        ("batch_size=0", "batch_size: .*got 0"),
        ("device=tpu", "device: .*got 'tpu'"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(GenerateConfig, overrides=["model=m", "prompts=p", override])
