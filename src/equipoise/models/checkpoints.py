"""Save and load what we trained: tensors as safetensors, everything else as JSON. Nothing is unpickled.

A published folder holds `weights.safetensors` and `model.json`; the backbone it stands on is named
there, and its tuned weights, if any, lie beside it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from equipoise.config import explain
from equipoise.errors import ModelError
from equipoise.lineage import hash_file, replacing, write_text

C = TypeVar("C", bound=BaseModel)

_COMPLETE = "complete.json"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors whole or not at all."""
    with replacing(path) as part:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, part)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a missing or broken one raises ModelError."""
    if not path.exists():
        raise ModelError(f"{path}: no such file; expected a checkpoint of equipoise")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as exc:
        raise ModelError(f"{path}: not a safetensors file, {exc}") from exc
    return tensors


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained and all buffers that are saved, by name."""
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name in names}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a module; a name or shape that does not fit raises ModelError."""
    own = module.state_dict()
    for name, tensor in tensors.items():
        if name not in own:
            raise ModelError(f"{where}: tensor '{name}' has no place in this model")
        if own[name].shape != tensor.shape:
            raise ModelError(
                f"{where}: tensor '{name}' has shape {list(tensor.shape)}, expected {list(own[name].shape)}"
            )
    module.load_state_dict(dict(tensors), strict=False)


def require_all(tensors: Mapping[str, Tensor], names: Iterable[str], where: str) -> None:
    """Raise ModelError where a tensor is missing: what stood in its place would be random."""
    absent = sorted(set(names) - set(tensors))
    if absent:
        raise ModelError(f"{where}: {len(absent)} tensors are missing, the first is {absent[0]}")


def save_card(folder: Path, card: BaseModel) -> None:
    """Write `model.json`: what the program needs to load the folder again."""
    write_text(folder / "model.json", card.model_dump_json(indent=2))


def load_card(folder: Path, kind: type[C]) -> C:
    """Read `model.json`; a folder that is something else raises ModelError."""
    path = folder / "model.json"
    if not path.exists():
        raise ModelError(f"{folder}: no model.json; expected a folder written by `equipoise train`")
    try:
        return kind.model_validate_json(path.read_text("utf-8"))
    except UnicodeDecodeError as exc:
        raise ModelError(f"{path}: not UTF-8") from exc
    except ValidationError as exc:
        for error in exc.errors():
            if error["loc"] == ("kind",) and error["type"] == "literal_error":
                expected = error["ctx"]["expected"].strip("'")
                raise ModelError(f"{path}: kind: holds {error['input']}; expected {expected}") from exc
        raise ModelError(explain(str(path), kind, exc)) from exc


def kind_of(folder: Path) -> str | None:
    """Return the `kind` in `model.json`, or None where there is none to be read."""
    try:
        told: Any = json.loads((folder / "model.json").read_text("utf-8"))
    except (OSError, ValueError):  # which reading the card says in full
        return None
    return told.get("kind") if isinstance(told, dict) else None


def seal(folder: Path) -> None:
    """Mark a training checkpoint as complete: the hash of each of its files, written last."""
    files = {f.name: hash_file(f) for f in sorted(folder.iterdir()) if f.is_file() and f.name != _COMPLETE}
    write_text(folder / _COMPLETE, json.dumps(files))


def last_sealed(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` whose files are all as they were sealed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    return next((path for path in found if _is_sealed(path)), None)


def _is_sealed(folder: Path) -> bool:
    mark = folder / _COMPLETE
    if not mark.exists():
        return False
    try:
        files: Any = json.loads(mark.read_text("utf-8"))
    except ValueError:
        return False
    return isinstance(files, dict) and all(
        (folder / name).is_file() and hash_file(folder / name) == sha for name, sha in files.items()
    )
