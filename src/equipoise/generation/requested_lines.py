"""The rest of a begun line from a server, which begins every answer anew; needs no torch."""

from collections.abc import Sequence

from equipoise.protocols import Generator, Messages, Sampling


class RequestedLines:
    """Asks in words for the rest of a line; a `protocols.Generator` like `continuing.LineGenerator`."""

    def __init__(self, generate: Generator) -> None:
        """Use any generator."""
        self.generate = generate

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        """Return the continuations; an answer that does not begin as asked is taken to go on at once."""
        begun = [prompt[-1]["content"] for prompt in prompts]
        starts = [text.rpartition("\n")[2] for text in begun]
        asked = [
            [
                *prompt[:-2],
                {
                    "role": "user",
                    "content": f"{prompt[-2]['content']}\n\n{text}\n\nGo on from here, to the end of this"
                    " line. Write only what follows, no more than one sentence.",
                },
            ]
            for prompt, text in zip(prompts, begun, strict=True)
        ]
        answers = self.generate(asked, sampling, ids)
        return [[_rest(start, text) for text in texts] for start, texts in zip(starts, answers, strict=True)]


def _rest(start: str, answer: str) -> str:
    """Return what an answer adds to the start, which some models repeat.

    >>> _rest("2. How can I", "How can I bake bread?"), _rest("2. How can I", "bake bread?")
    (' bake bread?', ' bake bread?')
    """
    line = next((row.strip() for row in answer.splitlines() if row.strip()), "")
    bare = start.partition(". ")[2] if start[:1].isdigit() else start.partition(": ")[2] or start
    for beginning in (start, bare):
        if beginning and line.lower().startswith(beginning.lower()):
            return line[len(beginning) :]
    return f" {line}" if line else ""
