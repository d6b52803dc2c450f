"""The guard that comes with the package: `default` wherever the folder of a guard is expected.

Its folder is a guard's like any other, with the heads and the adapters in 16 bits; the encoder that they
stand on is the built-in model `minilm`, which `equipoise models install minilm` fetches.
`benchmarks/default_guard.py` trained it.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from equipoise.config import IsInput
from equipoise.errors import ConfigError

NAME = "default"
"""What a user writes; a folder of this name is given with its full path."""


def guard_folder(guard: str | Path) -> Path:
    """Return the folder of a guard: that of the shipped one for `default`, any other as it is.

    Where a folder of the user's has that name too, it is not guessed which is meant: ConfigError.
    """
    if str(guard) == NAME:
        if Path(NAME).exists():
            raise ConfigError(
                f"guard: '{NAME}' is the shipped guard, and here is a folder of that name;"
                " expected its full path, or another place to work in"
            )
        return Path(str(resources.files("equipoise") / "moderation" / "shipped" / "equipoise-guard"))
    return Path(guard)


def _resolved(given: Any) -> Any:
    return str(guard_folder(given)) if isinstance(given, str | Path) else given


GuardPath = Annotated[Path, BeforeValidator(_resolved), IsInput()]
"""A setting that names a guard: its folder, or `default`."""

GuardRef = Annotated[str, BeforeValidator(_resolved), IsInput()]
"""The same as text."""
