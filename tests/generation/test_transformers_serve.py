"""The generator against a real server, `transformers serve`, and against the same model in this process."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from equipoise.generation.client import EndpointConfig
from equipoise.generation.endpoint import EndpointGenerator
from equipoise.generation.endpoint_options import EndpointOptionScorer
from equipoise.generation.local import load_generator
from equipoise.protocols import Messages, Sampling

pytestmark = pytest.mark.tools

CHATS: list[Messages] = [
    [{"role": "user", "content": "How do I bake bread?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Explain the tides."}],
    [{"role": "user", "content": "The weather changes quickly."}],
    [{"role": "user", "content": "Hi"}],
]
GREEDY = Sampling(max_new_tokens=12)
WARM = Sampling(max_new_tokens=12, temperature=1.0, samples=2)


@pytest.fixture(scope="module")
def url(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    words = ["-c", "from transformers.cli.transformers import main; main()", "serve", str(tiny_llama)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, *words], stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def generator(url: str, model: Path, **settings: Any) -> EndpointGenerator:
    return EndpointGenerator(str(model), EndpointConfig(url=url, concurrency=2, tries=3, **settings))


def flat(texts: list[list[str]]) -> list[str]:
    return [text for row in texts for text in row]


@pytest.mark.parametrize("streams", [False, True])
def test_greedy_texts_are_those_of_the_model_in_this_process(
    url: str, tiny_llama: Path, streams: bool
) -> None:
    ask = generator(url, tiny_llama, stream=streams)
    local = load_generator(tiny_llama, device="cpu")
    found, expected = (flat(write(CHATS, GREEDY)) for write in (ask, local))
    if streams:  # half a character at the very end is not sent
        expected = [text.rstrip("\ufffd") for text in expected]
        found = [text.rstrip("\ufffd") for text in found]
    assert found == expected
    written = local.write([local.encode(chat, GREEDY) for chat in CHATS], GREEDY)
    for chat, (answer,), (tokens,) in zip(CHATS, ask.answers(CHATS, GREEDY), written, strict=True):
        assert answer.prompt_tokens == len(local.encode(chat, GREEDY))
        assert answer.completion_tokens == len(tokens.ids) + (tokens.stop is not None)


def test_it_takes_a_temperature_and_stays_greedy_which_is_said(
    url: str, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = generator(url, tiny_llama)(CHATS, GREEDY)
    assert generator(url, tiny_llama)(CHATS, WARM) == [row * 2 for row in greedy]
    assert "the samples of each prompt are all the same" in capsys.readouterr().err
    wanted = {"generation_config": json.dumps({"do_sample": True, "eos_token_id": 2, "pad_token_id": 2})}
    found = generator(url, tiny_llama, extra=wanted)(CHATS, WARM)
    assert len({text for row in found for text in row}) == 8


def test_log_probabilities_that_it_takes_and_does_not_give_are_not_relied_on(
    url: str, tiny_llama: Path
) -> None:
    scorer = EndpointOptionScorer(generator(url, tiny_llama))
    assert scorer.how(["yes", "no"]) == "schema"  # which it ignores as well
    assert all(math.isnan(value) for row in scorer(CHATS, ["yes", "no"]) for value in row)
