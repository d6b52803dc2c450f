"""The generator and the option scorer against llama.cpp's own server, and against the same weights here."""

import json
import math
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from equipoise.annotation.environment import install_tool
from equipoise.generation.client import EndpointConfig
from equipoise.generation.endpoint import EndpointGenerator
from equipoise.generation.endpoint_options import EndpointOptionScorer
from equipoise.generation.options import load_option_scorer
from equipoise.models.builtin import cache_folder, model_path
from equipoise.protocols import Messages, Sampling

pytestmark = [pytest.mark.tools, pytest.mark.slow]

CHATS: list[Messages] = [
    [{"role": "user", "content": "Name a colour."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How do I bake bread?"}],
    [{"role": "user", "content": "Say hello."}],
]
GREEDY = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    lock = Path(__file__).with_name("llama_cpp.lock").read_text("utf-8")
    python = install_tool(cache_folder(), "llama-cpp", lock)
    command = [python, Path(__file__).with_name("serve_gguf.py")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, stderr=subprocess.DEVNULL, **pipes) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def generator(url: str, **settings: Any) -> EndpointGenerator:
    return EndpointGenerator("smollm2", EndpointConfig(url=url, concurrency=2, tries=3, **settings))


def asked_plainly(url: str, chat: Messages) -> dict[str, Any]:
    body = {"messages": chat, "max_tokens": GREEDY.max_new_tokens, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.mark.parametrize("streams", [False, True])
def test_greedy_texts_and_tokens_are_those_of_a_plain_request(url: str, streams: bool) -> None:
    answers = generator(url, stream=streams).answers(CHATS, GREEDY)
    plain = [asked_plainly(url, chat) for chat in CHATS]
    assert [a.text for (a,) in answers] == [p["choices"][0]["message"]["content"] for p in plain]
    counts = [(a.prompt_tokens, a.completion_tokens) for (a,) in answers]
    if (
        streams
    ):  # it counts tokens of a stream where asked only, and nothing is sent that not every server takes
        assert counts == [(None, None)] * len(CHATS)
    else:
        usages = [p["usage"] for p in plain]
        assert counts == [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages]


def test_samples_differ_and_come_back_with_their_seeds(url: str) -> None:
    warm = Sampling(max_new_tokens=16, temperature=1.0, samples=3, seed=3)
    ids = [str(n) for n in range(len(CHATS))]
    first = generator(url)(CHATS, warm, ids)
    assert all(len(set(row)) > 1 for row in first)
    assert generator(url)(CHATS[::-1], warm, ids[::-1]) == first[::-1]


def test_the_likelier_option_is_that_of_the_same_weights_here(url: str) -> None:
    options = ["Yes", "No"]
    scorer = EndpointOptionScorer(generator(url))
    chats: list[Messages] = [
        [{"role": "user", "content": f"Is this a colour: {word}? Answer Yes or No."}]
        for word in ("red", "bread", "blue")
    ]
    found = scorer(chats, options)
    assert scorer.how(options) == "logprobs"
    for row in found:
        assert math.fsum(map(math.exp, row)) == pytest.approx(1.0)
    here = load_option_scorer(model_path("smollm2-135m"), device="cpu")(chats, options)
    for there, ours in zip(found, here, strict=True):  # "yes" counts as "Yes" there
        assert (there[0] > there[1]) is (ours[0] > ours[1])
        assert there == pytest.approx(ours, abs=1.0)
