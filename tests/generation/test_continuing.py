"""Going on from a begun answer: the same tokens as one forward pass would choose, to the end of the line."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from equipoise.generation.continuing import LineGenerator, load_lines
from equipoise.generation.requested_lines import RequestedLines
from equipoise.models.chat import chat_ids
from equipoise.protocols import Messages, Sampling

CHATS: list[Messages] = [
    [{"role": "user", "content": "List."}, {"role": "assistant", "content": "1. How do I bake"}],
    [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "Mix flour and"}],
]


@pytest.fixture(scope="module")
def lines(tiny_llama: Path) -> LineGenerator:
    return load_lines(tiny_llama, device="cpu")


def test_the_answer_goes_on_from_its_beginning_as_the_model_alone_would(lines: LineGenerator) -> None:
    tokenizer, model = lines.generator.tokenizer, lines.generator.model
    found = lines(CHATS, Sampling(max_new_tokens=6))
    for chat, (text,) in zip(CHATS, found, strict=True):
        begun = tokenizer(chat[-1]["content"], add_special_tokens=False)["input_ids"]
        ids = [*chat_ids(tokenizer, chat[:-1]), *begun]
        expected: list[int] = []
        while len(expected) < 6:
            with torch.no_grad():
                token = int(model(torch.tensor([ids + expected])).logits[0, -1].argmax())
            if token in lines.stop_ids:
                break
            expected.append(token)
        assert text == tokenizer.decode(expected, skip_special_tokens=True)


def test_a_line_ends_the_text(lines: LineGenerator) -> None:
    found = lines(CHATS, Sampling(max_new_tokens=40, temperature=3.0, samples=8, seed=1), ["a", "b"])
    texts = [text for many in found for text in many]
    assert len(texts) == 16
    assert not any("\n" in text for text in texts)
    assert len({len(text) for text in texts}) > 1  # some ended before the limit


def test_a_text_depends_on_seed_and_id_alone(lines: LineGenerator) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.0, samples=2, seed=3)
    both = lines(CHATS, sampling, ["a", "b"])
    assert lines(CHATS[1:], sampling, ["b"]) == both[1:]
    assert lines(CHATS, sampling._replace(seed=4), ["a", "b"]) != both


class Scripted:
    """Answers by a script and keeps what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.asked: list[Messages] = []

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        self.asked += prompts
        return [[answer] for answer in self.answers]


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("bread at home?", " bread at home?"),
        ("How do I bake bread?", " bread?"),
        ("\n1. How do I bake bread?\n2. What is yeast?", " bread?"),
        ("", ""),
    ],
)
def test_a_server_is_asked_in_words_and_what_it_repeats_is_taken_off(answer: str, rest: str) -> None:
    server = Scripted(answer)
    assert RequestedLines(server)(CHATS[:1], Sampling(), ["a"]) == [[rest]]
    (turn,) = server.asked[0]
    assert turn["role"] == "user"
    assert turn["content"].startswith("List.\n\n1. How do I bake")
