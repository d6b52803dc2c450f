"""The schemas of PKU-SafeRLHF: dual preferences, single preference, question with answer, prompts.

Columns and their names are those of the data sets on the hub (dataset cards; arXiv 2406.15513). A label
that a record lacks is null. `sha256` is that of prompt and response together, as in the release, by which
its parts are matched.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from equipoise.data.check import is_safe
from equipoise.data.export.rows import Choices, Column, Format, LeftOut, Out, exchanges_of, plain_prompt
from equipoise.data.identity import AnyRecord
from equipoise.records import Labels, Pair, Record
from equipoise.taxonomy import load_taxonomy

TAXONOMY = "pku19"

_PROMPT = Column("prompt", "text", "question")
_SOURCE = Column("prompt_source", "text", "where the question comes from")
_BOTH = tuple(Column(f"response_{k}", "text", "answer") for k in (0, 1))
_MODELS = tuple(Column(f"response_{k}_source", "text", "model that answered") for k in (0, 1))
_HASHES = tuple(Column(f"response_{k}_sha256", "text", "SHA-256 of prompt and answer") for k in (0, 1))
_SAFE = "whether the answer is risk-neutral in all categories"
_FLAGS = "category -> whether the answer has it"
_LEVEL = "0 safe, 1 minor, 2 moderate, 3 severe"

PROMPT_COLUMNS = (_PROMPT, _SOURCE)
SINGLE_COLUMNS = (
    *(_PROMPT, *_BOTH, _SOURCE, *_MODELS),
    Column("better_response_id", "whole", "the answer preferred, help and harm weighed in one"),
    *_HASHES,
)
DUAL_COLUMNS = (
    *(_PROMPT, *_BOTH, _SOURCE, *_MODELS),
    *(Column(f"is_response_{k}_safe", "truth", _SAFE) for k in (0, 1)),
    *(Column(f"response_{k}_harm_category", "flags", _FLAGS) for k in (0, 1)),
    *(Column(f"response_{k}_severity_level", "whole", _LEVEL) for k in (0, 1)),
    Column("better_response_id", "whole", "the more helpful answer, whatever its harm"),
    Column("safer_response_id", "whole", "the less harmful answer"),
    *_HASHES,
)
QA_COLUMNS = (
    *(_PROMPT, Column("response", "text", "answer"), _SOURCE),
    Column("response_source", "text", "model that answered"),
    Column("is_safe", "truth", _SAFE),
    Column("harm_category", "flags", _FLAGS),
    Column("severity_level", "whole", _LEVEL),
    Column("sha256", "text", "SHA-256 of prompt and answer"),
)


def response_sha256(prompt: str, response: str) -> str:
    """SHA-256 of prompt and response as one text, in hexadecimal: how the release names an answer."""
    return hashlib.sha256((prompt + response).encode("utf-8")).hexdigest()


def dual(record: AnyRecord, _: Choices) -> Iterator[Out]:
    """Give a pair with both preferences and the labels of both answers."""
    base = _pair(record)
    if isinstance(base, LeftOut) or not isinstance(record, Pair):
        yield base
    elif record.taxonomy != TAXONOMY:
        yield LeftOut(f"categories of '{record.taxonomy:.40}'; the format has those of '{TAXONOMY}'")
    else:
        yield _ranked(record) or base | _labels_of_both(record)


def single(record: AnyRecord, _: Choices) -> Iterator[Out]:
    """Give a pair with its overall preference."""
    base = _pair(record)
    if isinstance(base, LeftOut) or not isinstance(record, Pair):
        yield base
    else:
        yield _no_choice(record, "overall") or base | {"better_response_id": record.overall}


def question_answer(record: AnyRecord, _: Choices) -> Iterator[Out]:
    """Give one answer with its labels; both answers of a pair, one after the other."""
    answers = exchanges_of(record)
    if not answers:
        yield LeftOut("a prompt without an answer")
    for k, answer in enumerate(answers):
        prompt = plain_prompt(answer.prompt)
        if isinstance(prompt, LeftOut):
            yield prompt
        elif answer.taxonomy != TAXONOMY:
            yield LeftOut(f"categories of '{answer.taxonomy:.40}'; the format has those of '{TAXONOMY}'")
        elif is_safe(answer) is None:
            yield LeftOut("an answer without a label of its safety")
        else:
            models = (f"response_{k}_source",) if isinstance(record, Pair) else ("response_source", "model")
            yield {
                "prompt": prompt,
                "response": answer.response,
                "prompt_source": _from(record, "prompt_source") or record.source,
                "response_source": _from(record, *models),
                **_labels(answer, "is_safe", "harm_category", "severity_level"),
                "sha256": response_sha256(prompt, answer.response),
            }


def prompts(record: AnyRecord, _: Choices) -> Iterator[Out]:
    """Give the prompt of any record."""
    prompt = plain_prompt(record.prompt)
    source = _from(record, "prompt_source") or record.source
    yield prompt if isinstance(prompt, LeftOut) else {"prompt": prompt, "prompt_source": source}


def _pair(record: AnyRecord) -> dict[str, Any] | LeftOut:
    """Return what the two formats of pairs have in common."""
    if not isinstance(record, Pair):
        return LeftOut("no pair of answers")
    prompt = plain_prompt(record.prompt)
    if isinstance(prompt, LeftOut):
        return prompt
    row: dict[str, Any] = {"prompt": prompt}
    row |= {f"response_{k}": answer.response for k, answer in enumerate(record.answers)}
    row["prompt_source"] = _from(record, "prompt_source") or record.source
    row |= {f"response_{k}_source": _from(record, f"response_{k}_source") for k in (0, 1)}
    for k, answer in enumerate(record.answers):
        row[f"response_{k}_sha256"] = response_sha256(prompt, answer.response)
    return row


def _ranked(record: Pair) -> LeftOut | None:
    if any(is_safe(answer) is None for answer in record.answers):
        return LeftOut("an answer without a label of its safety")
    return _no_choice(record, "better") or _no_choice(record, "safer")


def _no_choice(record: Pair, name: str) -> LeftOut | None:
    """Say why the schema, which knows 0 and 1 only, cannot hold a preference."""
    value = getattr(record, name)
    if value in (0, 1):
        return None
    return LeftOut(f"'{name}' is a tie, and the format has none" if value else f"'{name}' is not labelled")


def _labels_of_both(record: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"better_response_id": record.better, "safer_response_id": record.safer}
    for k, answer in enumerate(record.answers):
        names = (f"is_response_{k}_safe", f"response_{k}_harm_category", f"response_{k}_severity_level")
        row |= _labels(answer, *names)
    return row


def _labels(labels: Labels, safe: str, categories: str, severity: str) -> dict[str, Any]:
    """Return the three labels of an answer by the names given; a category that nobody rated is null."""
    flags: dict[str, bool | None] | None = None
    if labels.categories is not None:
        flags = {
            name: name in labels.categories if labels.rated is None or name in labels.rated else None
            for name in load_taxonomy(TAXONOMY).names
        }
    return {safe: is_safe(labels), categories: flags, severity: labels.severity}


def _from(record: Record, *names: str) -> str | None:
    """Return the first of some columns that the record came with, where it is a text."""
    values = (record.provenance.get(name) for name in names)
    return next((value for value in values if isinstance(value, str)), None)


PKU_FORMATS = {
    "pku-dual": Format(
        "pairs with both preferences and labels", dual, lambda _: DUAL_COLUMNS, "text-generation"
    ),
    "pku-single": Format("pairs with one preference", single, lambda _: SINGLE_COLUMNS, "text-generation"),
    "pku-qa": Format("answers with labels", question_answer, lambda _: QA_COLUMNS, "text-classification"),
    "pku-prompt": Format(
        "prompts, each once", prompts, lambda _: PROMPT_COLUMNS, "text-generation", is_unique=True
    ),
}
