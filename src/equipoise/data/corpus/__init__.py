"""The built-in corpus: written for this project, so that everything can be tried without a download.

`exchanges`, `pairs`, `look_alikes`, `requests` and `questions` train and calibrate; `prompts` are for
evaluation. No prompt of one part stands in another.
"""

from importlib import resources
from pathlib import Path

from equipoise.data.io import read_records
from equipoise.errors import ConfigError, near
from equipoise.records import Exchange, Pair, Prompt

PARTS: dict[str, type[Exchange] | type[Pair] | type[Prompt]] = {
    "exchanges": Exchange,
    "pairs": Pair,
    "prompts": Prompt,
    "look_alikes": Prompt,
    "requests": Prompt,
    "questions": Prompt,
}


def corpus_path(name: str) -> Path:
    """Return the file of a part of the corpus; an unknown name raises ConfigError."""
    if name not in PARTS:
        raise ConfigError(f"no built-in corpus '{name}'{near(name, PARTS)}; known: {', '.join(PARTS)}")
    return Path(str(resources.files("equipoise") / "data" / "corpus" / f"{name}.jsonl"))


def corpus(name: str) -> list[Exchange] | list[Pair] | list[Prompt]:
    """Load a part of the corpus; see `PARTS`."""
    path = corpus_path(name)
    kind = PARTS[name]
    return list(read_records(path, kind))  # type: ignore[return-value]
