"""The files of an evaluation: JSON Lines of records, and JSON of results."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from equipoise.errors import DataError
from equipoise.lineage import write_text

R = TypeVar("R", bound=BaseModel)


def write_lines(path: Path, records: Iterable[BaseModel]) -> None:
    """Write records as JSON Lines, whole or not at all."""
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """Read what `write_lines` wrote; a line that does not fit raises DataError with its number."""
    return parse_lines(path.read_text("utf-8"), kind, path)


def parse_lines(text: str, kind: type[R], path: Path) -> list[R]:
    """Read the text of a file of records; a line that does not fit raises DataError with its place."""
    records: list[R] = []
    # not splitlines(): a response may hold a U+2028, which ends a line there but not in JSON Lines
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as exc:
            error = exc.errors(include_url=False)[0]
            field = ".".join(str(part) for part in error["loc"])
            place = f"{path}:{number}: {field}" if field else f"{path}:{number}"
            raise DataError(f"{place}: {error['msg']}; expected one {kind.__name__} per line") from exc
    return records


def write_json(path: Path, value: Any) -> None:
    """Write a result as JSON with two spaces, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Turn named tuples and records into what JSON can hold; a number that is NaN becomes null.

    >>> plain({1: float("nan")})
    {'1': None}
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
