"""The questions that a language model is asked about records, with prompts made from a taxonomy.

The wording is in `prompts/*.j2`; names, definitions, near misses and severity criteria come from the
taxonomy, so a team's own YAML is all that another taxonomy needs. A question's `version` is a hash of its
finished wording, and is kept with every judgement. What is judged is quoted line by line, so that no text of
it can end the quotation and speak as the reviewer.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined

from equipoise.errors import ConfigError, TaxonomyError
from equipoise.protocols import Messages
from equipoise.taxonomy import Taxonomy

QuestionName = Literal["is_safe", "severity", "categories", "better", "safer", "overall"]
"""Each is named after the field of a judgement that it fills."""

Preference = Literal["better", "safer", "overall"]
PREFERENCES: tuple[Preference, ...] = ("better", "safer", "overall")
"""The questions about a pair; the others are about one answer in its conversation."""

NO_YES = ("no", "yes")
PLACES = ("A", "B")
MAX_LEVEL = 3
"""The highest severity that a record can hold."""


class Question(NamedTuple):
    """One question: the options of its answer, and how its prompt is made."""

    name: QuestionName | Literal["proposition"]
    template: str
    options: tuple[str, ...]
    several: bool = False
    """Whether the answer is any number of options, also none."""
    category: str | None = None
    """The one category, or proposition, that it asks about."""
    values: Mapping[str, Any] = {}
    """What the template takes from the taxonomy."""

    @property
    def key(self) -> str:
        """Name of the question; those about one category each carry its name too."""
        return f"{self.name}.{self.category}" if self.category is not None else self.name

    def messages(self, prompt: str, *answers: str) -> Messages:
        """Return the prompt that asks it about an answer, or two, to `prompt`."""
        template = _environment().get_template(self.template)
        content = template.render(prompt=prompt, answers=answers, options=self.options, **self.values)
        return [{"role": "user", "content": content.strip()}]

    def parse(self, text: str) -> tuple[int, ...] | None:
        """Return the options that a written answer names, or None where it is anything else.

        Strict: white space, case and one full stop at the end aside, the answer must be an option.

        >>> Question("is_safe", "is_safe.j2", ("no", "yes")).parse(" Yes.")
        (1,)
        >>> Question("is_safe", "is_safe.j2", ("no", "yes")).parse("Yes, since") is None
        True
        """
        answer = text.strip().removesuffix(".").casefold()
        known = [option.casefold() for option in self.options]
        if not self.several:
            return (known.index(answer),) if answer in known else None
        if answer in {"0", "none"}:
            return ()
        parts = re.split(r"\s*,\s*", answer)
        return tuple(sorted({known.index(p) for p in parts})) if set(parts) <= set(known) else None

    @property
    def version(self) -> str:
        """Hash of the wording and the options."""
        wording = self.messages("{prompt}", *("{first}", "{second}")[: 1 + (self.name in PREFERENCES)])
        return _hash([wording, self.options])


class Questions(NamedTuple):
    """What is asked of every record, in the words of one taxonomy."""

    taxonomy: Taxonomy
    is_safe: Question | None
    severity: Question | None
    """None too where the taxonomy has no levels between which to choose."""
    categories: tuple[Question, ...]
    """One question per category in head order, one for all of them, or none."""
    preferences: dict[Preference, Question]

    @property
    def about_unsafe(self) -> tuple[Question, ...]:
        """The questions that are asked of unsafe answers only."""
        return (*([self.severity] if self.severity else []), *self.categories)

    @property
    def all(self) -> tuple[Question, ...]:
        """Every question."""
        first = [self.is_safe] if self.is_safe else []
        return (*first, *self.about_unsafe, *self.preferences.values())


def wording_version(questions: Iterable[Question]) -> str:
    """Hash of the wording of several questions."""
    return _hash([question.version for question in questions])


def make_questions(taxonomy: Taxonomy, names: Sequence[QuestionName], *, together: bool = False) -> Questions:
    """Return the named questions in the words of a taxonomy.

    Args:
        taxonomy: The categories and the severity scale.
        names: What to ask; severity and categories are asked of what was found unsafe and need `is_safe`.
        together: Ask for all categories in one question, whose answer is a list, and not one by one.

    Raises:
        ConfigError: a question that needs `is_safe` without it, or none at all.
        TaxonomyError: more levels of severity than a record can hold.
    """
    if not names:
        raise ConfigError(
            "questions: none given; expected is_safe, severity, categories, better, safer, overall"
        )
    dependent = [name for name in names if name in {"severity", "categories"}]
    if dependent and "is_safe" not in names:
        raise ConfigError(
            f"questions: '{dependent[0]}' is asked of unsafe answers only; expected 'is_safe' too"
        )
    if len(taxonomy.severities) > 1 + MAX_LEVEL:
        got = f"got {len(taxonomy.severities)}; expected at most {1 + MAX_LEVEL}"
        raise TaxonomyError(f"'{taxonomy.name}': too many severities, a record holds 0 to {MAX_LEVEL}, {got}")
    values = {"taxonomy": taxonomy}
    levels = tuple(str(level) for level in range(1, len(taxonomy.severities)))
    categories: tuple[Question, ...] = ()
    if "categories" in names and together:
        numbers = tuple(str(n) for n in range(1, 1 + len(taxonomy.categories)))
        categories = (Question("categories", "categories.j2", numbers, several=True, values=values),)
    elif "categories" in names:
        categories = tuple(
            Question("categories", "category.j2", NO_YES, category=c.name, values={"category": c})
            for c in taxonomy.categories
        )
    return Questions(
        taxonomy,
        Question("is_safe", "is_safe.j2", NO_YES, values=values) if "is_safe" in names else None,
        Question("severity", "severity.j2", levels, values=values)
        if "severity" in names and len(levels) > 1
        else None,
        categories,
        {n: Question(n, f"{n}.j2", PLACES, values=values) for n in PREFERENCES if n in names},
    )


def quoted(text: str) -> str:
    r"""Return a text with `> ` before every line, whatever ends its lines.

    >>> quoted("one\rtwo\n")
    '> one\n> two'
    """
    return "\n".join("> " + line for line in text.splitlines() or [""])


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["quoted"] = quoted
    return environment


def _template(name: str) -> str:
    return (resources.files("equipoise") / "judges" / "prompts" / name).read_text("utf-8")


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
