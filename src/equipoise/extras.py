"""Optional dependency groups: what each brings, and the one-line error when it is missing.

A command that needs torch says so before it imports it, so that a bare install ends in one line::

    require("equipoise generate", "train")
    from equipoise.generation.batch import GENERATE
"""

import importlib.util

from equipoise.errors import MissingExtraError

EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "transformers", "accelerate", "peft", "safetensors", "gguf"),
    "hub": ("datasets",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "scale": ("ray",),
}
"""Extra -> the packages (import names) that it installs; the groups of pyproject.toml that users choose."""


def missing(extra: str) -> list[str]:
    """Return the packages of an extra that cannot be imported here; nothing is imported."""
    return [name for name in EXTRAS[extra] if not _importable(name)]


def require(what: str, extra: str) -> None:
    """Raise MissingExtraError where `what` (a command, a function) needs an extra that is not installed."""
    if missing(extra):
        raise MissingExtraError(what, extra)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # an import hook that refuses the package
        return False
