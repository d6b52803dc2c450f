"""Settings of an import: where the rows are, and what their columns and labels mean."""

import json
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from equipoise.config import Config, InputPath
from equipoise.errors import near
from equipoise.records import Exchange, Pair, Prompt


class ImportConfig(Config):
    """Settings of an import: a source, and either a file or a data set on the hub."""

    source: str
    path: InputPath | None = None
    hub_id: str | None = None
    split: str = "train"
    """Split of a data set on the hub."""
    subset: str | None = None
    """Its configuration, where it has several."""
    revision: str | None = None
    """Its commit, tag or branch."""
    licence: str | None = None
    """Overrides what the source states."""
    columns: dict[str, str] = {}
    """The file's column -> the name that the source expects."""
    values: dict[str, dict[str, str | int | bool | None]] = {}
    """Column (by its new name) -> its value as text -> the label that stands for it."""
    labels: dict[str, str | int | bool] = {}
    """Labels that all of the rows have; what a row says itself, if anything, counts more."""
    sample: int | None = Field(default=None, ge=1)
    """Take only so many rows, drawn at random."""
    seed: int = 0
    """Of the drawing."""
    on_bad: Literal["error", "skip"] = "error"
    """Whether one bad row stops the import, or is left out and counted."""

    @field_validator("values", mode="before")
    @classmethod
    def _keys_as_text(cls, given: Any) -> Any:
        """YAML reads `true` and `0` without quotes as no text."""
        if not isinstance(given, dict):
            return given
        return {
            column: {k if isinstance(k, str) else json.dumps(k): v for k, v in meanings.items()}
            if isinstance(meanings, dict)
            else meanings
            for column, meanings in given.items()
        }

    @model_validator(mode="after")
    def _one_origin(self) -> "ImportConfig":
        if (self.path is None) == (self.hub_id is None):
            raise ValueError("expected either path or hub_id")
        return self

    @model_validator(mode="after")
    def _known_labels(self) -> "ImportConfig":
        known = sorted({name for kind in (Prompt, Exchange, Pair) for name in kind.model_fields})
        unknown = [name for name in self.labels if name not in known]
        if unknown and self.source == "jsonl":
            raise ValueError(f"labels: no field '{unknown[0]}'{near(unknown[0], known)}")
        return self
