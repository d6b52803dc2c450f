"""The chain behind a report, read from manifests: data, guard and scorer, policy, evaluation."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from equipoise.lineage import Manifest, content_hash, manifest_of, read_manifest


class Input(NamedTuple):
    """One input of a run."""

    name: str
    place: str
    sha256: str
    made_by: str
    """Key of the run that made it, or an empty text where no manifest is found."""
    changed: bool
    """What lies there now is not what the run read."""


class Node(NamedTuple):
    """One run of the chain."""

    place: str
    manifest: Manifest
    inputs: list[Input]
    settings: dict[str, str]
    notes: dict[str, str]
    seeds: dict[str, str]
    losses: list[float]
    """Of the steps that a training run logged, in order; empty for other runs."""


def trace(places: Iterable[Path]) -> list[Node]:
    """Return the runs at these places and all that they were made from, makers before what they made.

    An input whose manifest is no longer found ends its chain; its hash is still shown.
    """
    nodes: dict[str, Node] = {}
    for place in places:
        _visit(place, nodes)
    return list(nodes.values())


def _visit(place: Path, nodes: dict[str, Node]) -> str:
    """Add the run at a place after everything it was made from; return its key, empty if none."""
    path = _manifest_path(place)
    if path is None:
        return ""
    manifest = read_manifest(path)
    if manifest.key in nodes:
        return manifest.key
    inputs = []
    for name, source in manifest.inputs.items():
        there = Path(source.path)
        made_by = _visit(there, nodes)
        changed = bool(made_by) and content_hash(there) != source.sha256
        inputs.append(Input(name, tail(source.path), source.sha256, made_by, changed))
    settings = flatten(manifest.config)
    seeds = {name: value for name, value in settings.items() if name.split(".")[-1].endswith("seed")}
    nodes[manifest.key] = Node(
        tail(str(place.resolve())), manifest, inputs, settings, flatten(manifest.notes), seeds, _losses(place)
    )
    return manifest.key


def _losses(place: Path) -> list[float]:
    path = place / "log.jsonl"
    if not path.is_file():
        return []
    entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [float(entry["loss"]) for entry in entries if "loss" in entry]


def _manifest_path(place: Path) -> Path | None:
    for is_file in (False, True):
        path = manifest_of(place, is_file=is_file)
        if path.is_file():
            return path
    return None


def tail(path: str) -> str:
    """Return the last two parts of an absolute path: a report names no folder of its author.

    >>> tail("/home/someone/runs/guard")
    'runs/guard'
    >>> tail("minilm")
    'minilm'
    """
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


def flatten(values: JsonValue, prefix: str = "") -> dict[str, str]:
    """Return nested values as dotted names and short texts; long lists are counted, not shown.

    >>> flatten({"optim": {"lr": 0.1}, "on": True})
    {'optim.lr': '0.1', 'on': 'True'}
    """
    if isinstance(values, dict):
        found: dict[str, str] = {}
        for name, value in values.items():
            found |= flatten(value, f"{prefix}.{name}" if prefix else name)
        return found
    if isinstance(values, list) and len(values) > 8:
        return {prefix: f"{len(values)} values"}
    text = ", ".join(map(str, values)) if isinstance(values, list) else str(values)
    if isinstance(values, float):
        text = f"{values:.6g}"
    return {prefix: tail(text)}
