"""Answers whose class is known: somebody's own file of them, or put together from sentences.

The weights of a rule set are fitted to answers of several classes to the same prompt. A file
`rule_completions/NAME.yaml` has sentences in several wordings, and for each response type and class which
sentences make up an answer.
"""

import random
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from equipoise.config import Config, parse_config, read_yaml
from equipoise.errors import ConfigError, DataError, near
from equipoise.records import Exchange, Prompt
from equipoise.rewards.rules import ANSWER_CLASS, CLASSES, RESPONSE_TYPE, AnswerClass, RuleSet

_PARTS = 2
"""Wordings of a sentence go half to the fit and half to what is held back."""


class Templates(Config):
    """Sentences, and the answers that are made of them."""

    sentences: dict[str, Annotated[tuple[str, ...], Field(min_length=_PARTS)]]
    """Each in several wordings."""
    answers: dict[str, dict[AnswerClass, tuple[tuple[str, ...], ...]]]
    """Response type -> class -> answers, each a row of sentences."""

    @model_validator(mode="after")
    def _sentences_are_there(self) -> Self:
        for kind, classes in self.answers.items():
            for name in {s for answers in classes.values() for answer in answers for s in answer}:
                if name not in self.sentences:
                    raise ValueError(f"answers.{kind}: no sentence '{name}'{near(name, self.sentences)}")
        return self

    def write(
        self, prompts: Sequence[Prompt], rules: RuleSet, *, held_back: bool = False, seed: int = 0
    ) -> list[Exchange]:
        """Return answers of every class to prompts that are known to be harmful or not.

        A harmful prompt gets answers of every response type but that of harmless prompts.

        Args:
            prompts: What is answered.
            rules: Say which response types there are.
            held_back: Take the wordings that no other call takes.
            seed: Decides which wording, by prompt.

        Raises:
            DataError: A prompt of which it is not known.
        """
        return [
            exchange
            for prompt in prompts
            for exchange in self._answers(prompt, rules, held_back, random.Random(f"{seed}/{prompt.id}"))
        ]

    def _answers(
        self, prompt: Prompt, rules: RuleSet, held_back: bool, chance: random.Random
    ) -> Iterator[Exchange]:
        if prompt.is_harmful is None:
            raise DataError(f"{prompt.id}: is_harmful is not known; expected true or false")
        for kind, classes in self.answers.items():
            if kind not in rules.response_types or (kind == rules.harmless) == prompt.is_harmful:
                continue
            for name, answers in classes.items():
                for number, answer in enumerate(answers):
                    yield Exchange(
                        id=f"{prompt.id}/{kind}/{name}/{number}",
                        source=prompt.source,
                        licence=prompt.licence,
                        label_origin="authors",
                        prompt=prompt.prompt,
                        prompt_is_harmful=prompt.is_harmful,
                        response=" ".join(self._wording(s, held_back, chance) for s in answer),
                        provenance={RESPONSE_TYPE: kind, ANSWER_CLASS: name},
                    )

    def _wording(self, sentence: str, held_back: bool, chance: random.Random) -> str:
        wordings = self.sentences[sentence]
        middle = len(wordings) // _PARTS
        return chance.choice(wordings[middle:] if held_back else wordings[:middle])


def load_templates(name_or_path: str) -> Templates:
    """Load built-in templates by the name of their rule set, or a user's own from a `.yaml` file."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = Path(
            str(resources.files("equipoise") / "rewards" / "rule_completions" / f"{name_or_path}.yaml")
        )
        if not path.is_file():
            raise ConfigError(
                f"no completions are built in for the rules '{name_or_path}'; expected `completions`,"
                " a file of answers with their class"
            )
    return parse_config(Templates, read_yaml(path), str(path))


def class_of(exchange: Exchange) -> AnswerClass:
    """Return the class that an answer is known to be of; another or none raises DataError."""
    given = exchange.provenance.get(ANSWER_CLASS)
    for name in CLASSES:
        if given == name:
            return name
    raise DataError(
        f"{exchange.id}: provenance.{ANSWER_CLASS}: got {given!r:.60}; expected one of {', '.join(CLASSES)}"
    )
