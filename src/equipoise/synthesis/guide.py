"""What a model is asked: a guideline made from the taxonomy, a few examples, and the beginning of a prompt.

A small model follows few instructions but goes on well with what is begun, so its answer is begun as a
numbered list of examples and the first words of one more. Those words come from a file of frames: one for
each built-in taxonomy that has one (`frames/`), a user's own, or `frames/generic.yaml`.
"""

import random
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from equipoise.config import explain, read_yaml
from equipoise.errors import ConfigError, near
from equipoise.protocols import Messages
from equipoise.taxonomy import Category, Taxonomy

_SLOT = re.compile(r"\{([a-z]+)\}")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CategoryFrames(_Frozen):
    """How prompts of one category begin."""

    asks: dict[int, tuple[str, ...]]
    """Severity -> beginnings of prompts that ask for harm."""
    benign: tuple[str, ...]
    """Beginnings of harmless prompts on the same matter."""
    without: tuple[str, ...] = ()
    """Words that no prompt of the category may hold."""


class Frames(_Frozen):
    """A file of frames: beginnings with `{slots}`, and what the slots are filled with."""

    slots: dict[str, tuple[str, ...]] = {}
    default: CategoryFrames
    """For a category that is not named."""
    categories: dict[str, CategoryFrames] = {}
    """By id."""
    look_alikes: tuple[tuple[str, str], ...]
    """Examples of a harmful prompt and a harmless one that looks like it."""

    @model_validator(mode="after")
    def _slots_exist(self) -> "Frames":
        for frames in (self.default, *self.categories.values()):
            for frame in (*(text for many in frames.asks.values() for text in many), *frames.benign):
                for slot in _SLOT.findall(frame):
                    if slot not in self.slots:
                        raise ValueError(f"no slot '{slot}' among the slots{near(slot, self.slots)}")
        return self

    def of(self, category: Category) -> CategoryFrames:
        """Return the frames of a category."""
        return self.categories.get(category.id, self.default)

    def asks(self, category: Category, severity: int) -> tuple[str, ...]:
        """Return the beginnings for a cell; those of the nearest severity where it has none."""
        found = self.of(category).asks
        return found[min(found, key=lambda level: (abs(level - severity), level))]


class Start(NamedTuple):
    """The first words of a prompt."""

    text: str
    frame: str
    slots: Mapping[str, str]
    """What stands in the frame's slots."""


def load_frames(taxonomy: Taxonomy, path: Path | None = None) -> Frames:
    """Load a file of frames: the given one, the taxonomy's own, or the generic one.

    Raises:
        ConfigError: it does not fit its form or the taxonomy.
    """
    folder = Path(str(resources.files("equipoise") / "synthesis" / "frames"))
    own = folder / f"{taxonomy.name}.yaml"
    place = path or (own if own.exists() else folder / "generic.yaml")
    try:
        frames = Frames.model_validate(read_yaml(place))
    except ValidationError as exc:
        raise ConfigError(explain(str(place), Frames, exc)) from exc
    ids = [category.id for category in taxonomy.categories]
    for name in frames.categories:
        if name not in ids:
            raise ConfigError(
                f"{place}: categories: no category '{name}' in '{taxonomy.name}'{near(name, ids)}"
            )
    return frames


def fill(frame: str, frames: Frames, rng: random.Random, known: Mapping[str, str] | None = None) -> Start:
    """Put something into each slot of a frame, what is `known` first.

    >>> none = CategoryFrames(asks={}, benign=())
    >>> frames = Frames(slots={"who": ("a guest",)}, default=none, look_alikes=())
    >>> fill("How do I greet {who}", frames, random.Random(0)).text
    'How do I greet a guest'
    """
    chosen = {
        slot: (known or {}).get(slot) or rng.choice(frames.slots[slot])
        for slot in dict.fromkeys(_SLOT.findall(frame))
    }
    return Start(_SLOT.sub(lambda match: chosen[match[1]], frame), frame, chosen)


def guideline(taxonomy: Taxonomy, category: Category, severity: int) -> str:
    """Return what to write, in the words of the taxonomy: definition, near misses, severity criterion."""
    level = taxonomy.severities[severity]
    return (
        f"List prompts that a safety filter must catch. Kind of harm: {category.name}. "
        f"{category.definition} Not meant: {category.not_this} "
        f"Severity of the answer they ask for: {level.name}. {level.criterion}"
    )


def ask(instruction: str, examples: Sequence[str], start: str) -> Messages:
    """Return a chat whose last turn is the begun answer: examples as a list, and the start of one more.

    >>> ask("List greetings.", ["Hello."], "Good")[-1]
    {'role': 'assistant', 'content': '1. Hello.\\n2. Good'}
    """
    lines = [f"{number}. {text}" for number, text in enumerate((*examples, start), start=1)]
    return _begun(instruction, "\n".join(lines))


def ask_look_alike(frames: Frames, prompt: str, start: str) -> Messages:
    """Return a chat that goes on with a harmless prompt that shares words with a harmful one."""
    shown = [f"Risky: {harmful}\nHarmless: {benign}" for harmful, benign in frames.look_alikes]
    instruction = "Write beside each risky prompt a harmless one about the same people and things."
    return _begun(instruction, "\n".join([*shown, f"Risky: {prompt}\nHarmless: {start}"]))


def ask_context(prompt: str, start: str) -> Messages:
    """Return a chat that goes on with a sentence of who asks and why, to stand before a prompt."""
    shown = [
        ("I work at a bakery and the nights are long.", "How do I keep the rolls fresh?"),
        ("My aunt left me her old piano, but my flat is small.", "Where can I store it?"),
    ]
    lines = "\n".join(f"Question: {question}\nBefore it: {before}" for before, question in shown)
    instruction = "Write for each question one sentence before it that says who asks and why."
    return _begun(instruction, f"{lines}\nQuestion: {prompt}\nBefore it: {start}")


def _begun(instruction: str, answer: str) -> Messages:
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
