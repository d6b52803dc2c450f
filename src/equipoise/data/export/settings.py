"""The settings of an export, checked against what the format takes."""

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from equipoise.data.export.formats import FORMATS
from equipoise.data.steps import FilesConfig
from equipoise.errors import near

CHOICES = ("preference", "both_unsafe", "ties", "style", "label")
"""Settings that only some formats take."""


class ExportConfig(FilesConfig):
    """Settings of an export; `splits` names the split of each file, all `train` if it is empty."""

    to: str
    """A key of FORMATS."""
    splits: tuple[str, ...] = ()
    file_format: Literal["jsonl", "parquet"] = "jsonl"
    title: str = "Exported data"
    description: str = ""
    exclude_licences: tuple[str, ...] = ()
    """NC, GPL, or any licence; see `excluded_by`."""
    allow_unknown_licence: bool = False
    """Rows without a stated licence are excluded unless this is set."""
    drop_licences: bool = False
    """Leave rows under an excluded licence out, and say so, instead of refusing."""
    preference: Literal["better", "safer", "overall"] | None = None
    both_unsafe: Literal["keep", "drop"] | None = None
    ties: Literal["drop", "both"] | None = None
    """both gives a tie once in either order."""
    style: Literal["conversational", "standard"] | None = None
    label: Literal["safe", "better", "safer", "overall"] | None = None

    @field_validator("to")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in FORMATS:
            raise ValueError(f"no such format{near(name, FORMATS)}; known: {', '.join(FORMATS)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_format(cls, data: Any) -> Any:
        name = data.get("to") if isinstance(data, dict) else None
        if not isinstance(name, str) or name not in FORMATS:
            return data
        return {**FORMATS[name].choices, **{key: value for key, value in data.items() if value is not None}}

    @model_validator(mode="after")
    def _fits_the_format(self) -> "ExportConfig":
        takes = FORMATS[self.to].choices
        for name in CHOICES:
            if name in takes and getattr(self, name) is None:
                raise ValueError(
                    f"{name}: missing, and '{self.to}' needs it; expected better, safer or overall"
                )
            if name not in takes and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: '{self.to}' takes no such choice; it takes: {', '.join(takes) or 'none'}"
                )
        if self.splits and len(self.splits) != len(self.files):
            raise ValueError(
                f"splits: expected one name for each of {len(self.files)} files, got {len(self.splits)}"
            )
        for name in self.splits:
            if not name.replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"splits: expected letters, digits, _ and . in a name, got '{name}'")
        return self

    def files_of(self) -> dict[str, list[Path]]:
        """Return split -> its files."""
        found: dict[str, list[Path]] = {}
        for split, path in zip(self.splits or ("train",) * len(self.files), self.files, strict=True):
            found.setdefault(split, []).append(path)
        return found
