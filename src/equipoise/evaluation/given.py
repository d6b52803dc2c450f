"""Responses that were written before, by `generate` or an evaluation, judged in place of new ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from equipoise.data.rows import read_rows
from equipoise.errors import DataError
from equipoise.evaluation.response import Response
from equipoise.records import Prompt


def read_responses(path: Path, prompts: Sequence[Prompt], samples: int) -> list[Response]:
    """Return the responses to some prompts, in the prompts' order; those to others are left out.

    Args:
        path: Rows of id, prompt, response, model and sample (0 where there is none); other fields are passed
            over.
        prompts: What was asked.
        samples: Responses to each, samples 0 to one less.

    Raises:
        DataError: A row does not fit, a response is missing or stands twice, a prompt is another than the
            suite's, or more than one model responded.
    """
    asked = {prompt.id: prompt for prompt in prompts}
    found: dict[tuple[str, int], Response] = {}
    for row in read_rows(path):
        place = f"{row.path}:{row.line}"
        response = _response(row.values, place)
        prompt = asked.get(response.id)
        if prompt is None:
            continue
        if response.prompt != prompt.prompt:
            raise DataError(f"{place}: id '{response.id}' is another prompt than in the suite")
        key = response.id, response.sample
        if key in found:
            raise DataError(f"{place}: a second response to '{response.id}', sample {response.sample}")
        first = next(iter(found.values()), response)
        if response.model != first.model:
            raise DataError(
                f"{place}: a response of '{response.model}' beside those of '{first.model}';"
                " expected those of one model"
            )
        found[key] = response
    wanted = [(prompt.id, sample) for prompt in prompts for sample in range(samples)]
    if missing := [key for key in wanted if key not in found]:
        name, sample = missing[0]
        raise DataError(
            f"{path}: lacks {len(missing)} of {len(wanted)} responses to the suite; the first is to id"
            f" '{name}', sample {sample}"
        )
    return [found[key] for key in wanted]


def _response(values: Mapping[str, Any], place: str) -> Response:
    fields = {name: values[name] for name in Response.model_fields if name in values}
    try:
        return Response.model_validate({"sample": 0} | fields)
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        raise DataError(f"{place}: {error['loc'][0]}: {error['msg']}; expected a response") from exc
