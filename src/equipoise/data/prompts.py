"""The prompts of records of any kind, each once: what a policy answers, or is evaluated on.

Whether a prompt asks for harm is what its records say of it. Where these are silent, its answers may: see
`by_answers`.
"""

import random
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from equipoise.data.card import card
from equipoise.data.identity import AnyRecord, content_id
from equipoise.data.io import write_records
from equipoise.data.splits import normalise_prompt
from equipoise.data.statistics import statistics
from equipoise.data.steps import FilesConfig, read_files
from equipoise.errors import DataError
from equipoise.lineage import Run, Step, write_text
from equipoise.records import Exchange, Labels, Pair, Prompt, text_of


class PromptsConfig(FilesConfig):
    """Settings of `data.prompts`."""

    by_answers: bool = False
    """A prompt of which nothing is said asks for harm if an answer to it is labelled unsafe, and for none if
    all its answers are labelled safe: what it draws, not what it wants."""
    is_harmful: bool | None = None
    """Take only prompts that ask for harm, or that do not."""
    most: Annotated[int | None, Field(ge=1)] = None
    """How many are taken at most, drawn at random."""
    seed: int = 0


class _Seen:
    """What is known of one prompt so far."""

    def __init__(self, first: AnyRecord) -> None:
        self.first = first
        self.said: set[bool] = set()
        self.answers: list[bool | None] = []


def prompts_of(records: Iterable[AnyRecord], *, by_answers: bool = False) -> list[Prompt]:
    """Return the prompts of records in order, alike ones once; ids are made from the texts.

    A prompt that is said to ask for harm by one record and not to by another is left unlabelled.
    """
    seen: dict[str, _Seen] = {}
    for record in records:
        known = seen.setdefault(normalise_prompt(text_of(record.prompt)), _Seen(record))
        said = record.is_harmful if isinstance(record, Prompt) else None
        answers: tuple[Labels, ...] = record.answers if isinstance(record, Pair) else ()
        if isinstance(record, Exchange):
            said, answers = record.prompt_is_harmful, (record,)
        known.said |= set() if said is None else {said}
        known.answers += [answer.is_safe for answer in answers]
    return [_prompt(known, by_answers) for known in seen.values()]


def _prompt(known: _Seen, by_answers: bool) -> Prompt:
    is_harmful = None
    if known.said:
        is_harmful = known.said == {True} if len(known.said) == 1 else None
    elif by_answers and known.answers:
        safe = known.answers
        is_harmful = True if False in safe else None if None in safe else False
    first = known.first
    own = first.model_dump(include={"source", "licence", "taxonomy", "prompt"})
    if isinstance(first, Prompt):
        labels = {"severity": None, "categories": None} if len(known.said) > 1 else {}
        return first.model_copy(
            update={"id": content_id("prompt", first), "is_harmful": is_harmful, **labels}
        )
    prompt = Prompt(id="", **own, is_harmful=is_harmful)
    return prompt.model_copy(update={"id": content_id("prompt", prompt)})


def _prompts(config: PromptsConfig, run: Run) -> None:
    found = prompts_of((placed.record for placed in read_files(config.files)), by_answers=config.by_answers)
    wanted = config.is_harmful
    kept = [prompt for prompt in found if wanted is None or prompt.is_harmful is wanted]
    if not kept:
        kind = "" if wanted is None else f" of the {len(found)} with is_harmful={str(wanted).lower()}"
        raise DataError(f"files: no prompt{kind}; expected at least one")
    if config.most is not None and config.most < len(kept):
        chosen = sorted(random.Random(config.seed).sample(range(len(kept)), config.most))
        kept = [kept[i] for i in chosen]
    run.notes["records"] = write_records(run.out, kept)
    run.notes["prompts_in_all"] = len(found)
    run.licences |= {prompt.licence for prompt in kept}
    about = f"{len(kept)} of {len(found)} prompts, alike ones once."
    if config.by_answers:
        about += (
            " Whether a prompt asks for harm is, where nothing else says so, whether an answer was unsafe."
        )
    write_text(run.card, card(statistics(kept), "Prompts", about))


PROMPTS = Step("data prompts", 1, _prompts, writes_file=True, config=PromptsConfig)
