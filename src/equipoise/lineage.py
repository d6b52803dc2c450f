"""What was made from what: content hashes, and the manifest that says a run is complete.

Everything that produces something goes through `produce`. A folder (or file) is complete when its
manifest exists; the same inputs again are skipped, a half-written run is resumed by its step from
`Run.scratch`, and a place that holds another run is refused unless forced.
"""

import hashlib
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from equipoise import __version__
from equipoise.config import Config, deciding, find_inputs, to_yaml
from equipoise.errors import ConfigError, EquipoiseError, RunStoppedError
from equipoise.files import LOCK, hash_file, only_one, remove_leftovers, replacing, write_text
from equipoise.machine import cpu_seconds, processor, versions
from equipoise.manifests import (
    Manifest,
    Source,
    card_of,
    inherited_licences,
    manifest_of,
    read_manifest,
    run_card,
)

__all__ = [
    "Manifest",
    "Outcome",
    "Run",
    "Source",
    "Step",
    "content_hash",
    "hash_file",
    "identify",
    "inherited_licences",
    "manifest_of",
    "produce",
    "read_manifest",
    "replacing",
    "write_text",
]

_OURS = {"manifest.json", "started.json", "config.yaml", LOCK}


class Run:
    """What a step gets: where to write, where to keep resume state, and what to tell the manifest."""

    def __init__(self, out: Path, scratch: Path, *, shared: Path | None = None) -> None:
        """Hold the places; `out` is a folder that exists, or a file to be written."""
        self.out = out
        self.scratch = scratch
        """Folder for resume state; it survives a kill and is removed when the run completes."""
        self.shared = shared or scratch  # where several processes have one run
        self.card = card_of(out, is_file=not out.is_dir())
        """Where a step writes its card; one that writes none gets that of the manifest."""
        self.licences: set[str] = set()
        self.notes: dict[str, JsonValue] = {}
        self.side_files: list[Path] = []
        """What a step that writes one file leaves beside it; the manifest lists these too."""


class Step(NamedTuple):
    """A kind of run. `version` rises when the same settings would give another result."""

    name: str
    version: int
    build: Callable[[Any, Run], None]
    writes_file: bool = False
    """True where `out` is one file and not a folder."""
    config: type[Config] = Config
    """The settings it takes."""
    own_card: bool = False
    """True where the output is a card itself, or holds one under another name."""
    others: tuple[str, ...] = ()
    """What others put into its folder when it is complete: never listed as outputs and never removed."""


class Identity(NamedTuple):
    """What tells a run from others: the key, and its inputs by setting."""

    key: str
    inputs: dict[str, Source]


class Outcome(NamedTuple):
    """A finished run, and whether it had been there already."""

    manifest: Manifest
    skipped: bool


def produce(
    out: Path, step: Step, config: Config, *, force: bool = False, identity: Identity | None = None
) -> Outcome:
    """Run `step` into `out`, unless the same run is complete there.

    `force` does it again although it is done, and takes the place of another run; `identity` spares
    hashing the inputs where `identify` has just done it. Of several processes that make the same place,
    one works and the others wait: what it has made is there for them.

    Raises:
        ConfigError: `out` holds another run and `force` is not set, or files that are no run's.
    """
    identity = identity or identify(step, config)
    done = _complete(out, step, identity.key)
    scratch = out.with_name(out.name + ".part") if step.writes_file else out / "scratch"
    started = (scratch if step.writes_file else out) / "started.json"
    if done and not force and not any(p.exists() for p in (scratch, started, started.with_name(LOCK))):
        return Outcome(done, skipped=True)
    if out.is_file() and not step.writes_file:
        raise ConfigError(f"{out}: exists and is no run of equipoise; choose another place")
    with only_one(started.parent):
        done = _complete(out, step, identity.key)
        if done and not force:
            _tidy(scratch, started)  # a kill after the manifest was written leaves them
            return Outcome(done, skipped=True)
        return _make(Run(out, scratch), step, config, identity=identity, started=started, force=force)


def _complete(out: Path, step: Step, key: str) -> Manifest | None:
    """Return the manifest of this very run if it is complete in `out`."""
    path = manifest_of(out, is_file=step.writes_file)
    try:
        done = read_manifest(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    is_whole = done.key == key and all((path.parent / name).is_file() for name in done.outputs)
    return done if is_whole else None


def _make(run: Run, step: Step, config: Config, *, identity: Identity, started: Path, force: bool) -> Outcome:
    """Build what is not there yet, or go on with it where it was begun."""
    key, inputs = identity
    manifest_path = manifest_of(run.out, is_file=step.writes_file)
    remove_leftovers(started)
    done = read_manifest(manifest_path) if manifest_path.exists() else None
    before = json.loads(started.read_text("utf-8")) if started.exists() else None
    resumable = done is None and before is not None and before["key"] == key
    if not resumable:
        _refuse_if_taken(run.out, key, done, before, force)
        _clear(run.out, run.scratch, manifest_path, done, step.others)
    attempts = 1 + (before["attempts"] if resumable and before else 0)
    run.scratch.mkdir(exist_ok=True)
    write_text(started, json.dumps({"key": key, "step": step.name, "attempts": attempts}))
    settings = config.model_dump(mode="json")
    run.licences |= inherited_licences(inputs.values())
    wall, cpu = time.monotonic(), cpu_seconds()
    _build(step, config, run, started)
    if not step.writes_file:
        write_text(run.out / "config.yaml", to_yaml(settings))
    if not run.card.exists() and not step.own_card:
        write_text(run.card, run_card(step.name, run.notes, inputs, run.licences))
    for place in (run.out, run.card, manifest_path, *run.side_files):
        remove_leftovers(place)
    manifest = Manifest(
        equipoise=__version__,
        step=step.name,
        step_version=step.version,
        key=key,
        config=settings,
        inputs=inputs,
        outputs=_outputs(run, step),
        licences=sorted(run.licences),
        notes=run.notes,
        versions=versions(),
        machine={"system": platform.platform(), "cores": os.cpu_count(), "processor": processor()},
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        attempts=attempts,
        wall_seconds=round(time.monotonic() - wall, 3),
        cpu_seconds=round(cpu_seconds() - cpu, 3),
        peak_memory_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )
    write_text(manifest_path, manifest.model_dump_json(indent=2))
    _tidy(run.scratch, started)
    return Outcome(manifest, skipped=False)


def _build(step: Step, config: Config, run: Run, started: Path) -> None:
    """Run the step; one that is refused before it did anything leaves no trace."""
    try:
        step.build(config, run)
    except (EquipoiseError, RunStoppedError):
        ours = (started, started.with_name(LOCK))
        if not any(path.is_file() and path not in ours for path in started.parent.rglob("*")):
            _tidy(run.scratch, started)
        raise


def identify(step: Step, config: Config) -> Identity:
    """Hash what a run is made from: step, version, settings, content of the inputs."""
    inputs = {
        name: Source(path=str(path), sha256=content_hash(path)) for name, path in find_inputs(config).items()
    }
    settings = deciding(config)
    for name, source in inputs.items():
        _replace(settings, name, source.sha256)
    identity = json.dumps({"step": step.name, "version": step.version, "config": settings}, sort_keys=True)
    return Identity(hashlib.sha256(identity.encode()).hexdigest(), inputs)


def content_hash(path: Path) -> str:
    """Sha256 of a file, of a folder's files (its outputs, if it is a run), or of a name that is no path."""
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        return hashlib.sha256(f"name:{path}".encode()).hexdigest()
    if (path / "manifest.json").exists():
        names = list(read_manifest(path / "manifest.json").outputs)
    else:
        names = [str(f.relative_to(path)) for f in sorted(path.rglob("*")) if f.is_file()]
    files = {name: hash_file(path / name) for name in names if (path / name).is_file()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _replace(settings: Any, dotted: str, value: str) -> None:
    """Put an input's hash where its path stands, so that the place it lies in does not matter."""
    for name, inner in list(enumerate(settings) if isinstance(settings, list) else settings.items()):
        if dotted == str(name):  # a name of the user's may hold dots itself
            settings[name] = value
        elif dotted.startswith(f"{name}.") and isinstance(inner, dict | list):
            _replace(inner, dotted.removeprefix(f"{name}."), value)


def _refuse_if_taken(
    out: Path, key: str, done: Manifest | None, before: dict[str, Any] | None, force: bool
) -> None:
    is_free = done is None and before is None
    if is_free and _holds_other_files(out):
        raise ConfigError(f"{out}: is a folder with files that are no run of equipoise; choose another place")
    if force:
        return
    advice = "choose another place or give --force"
    if is_free and out.is_file():
        raise ConfigError(f"{out}: exists and is no run of equipoise; {advice}")
    if done is not None and done.key != key:
        raise ConfigError(f"{out}: holds another run ({done.step}, other settings or inputs); {advice}")
    if done is None and before is not None:
        raise ConfigError(f"{out}: holds another run, unfinished ({before['step']}); {advice}")


def _holds_other_files(out: Path) -> bool:
    """Whether a folder holds more than what a run that was killed as it began leaves there."""
    lock, scratch = out / LOCK, out / "scratch"
    return any(f.is_file() and f != lock and scratch not in f.parents for f in out.rglob("*"))


def _clear(
    out: Path, scratch: Path, manifest_path: Path, done: Manifest | None, others: tuple[str, ...]
) -> None:
    """Remove what an earlier run left: what its manifest lists, or all of an unfinished folder.

    The file that says whose folder it is goes last, so that a kill on the way is made good.
    """
    _empty(scratch, ())
    card_of(out, is_file=not out.is_dir()).unlink(missing_ok=True)
    if done is not None:
        for name in done.outputs:
            (manifest_path.parent / name).unlink(missing_ok=True)
        (out / "config.yaml").unlink(missing_ok=True)
        manifest_path.unlink(missing_ok=True)
    elif (out / "started.json").exists():
        _empty(out, ("started.json", *others))
        (out / "started.json").unlink()


def _empty(folder: Path, kept: Collection[str]) -> None:
    """Remove what is in a folder, if there is one, but the lock that we hold and what has these names."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.name not in (LOCK, *kept):
            remove: Callable[[Path], None] = shutil.rmtree if path.is_dir() else Path.unlink
            remove(path)


def _tidy(scratch: Path, started: Path) -> None:
    """Remove the resume state of a run that is complete."""
    shutil.rmtree(scratch, ignore_errors=True)
    started.unlink(missing_ok=True)


def _outputs(run: Run, step: Step) -> dict[str, str]:
    out = run.out
    if step.writes_file:
        written = (out, card_of(out, is_file=True), *run.side_files)
        return {file.name: hash_file(file) for file in written if file.exists()}
    not_ours = {run.scratch, *(out / name for name in step.others)}
    files = [f for f in sorted(out.rglob("*")) if f.is_file() and not_ours.isdisjoint([f, *f.parents])]
    return {str(f.relative_to(out)): hash_file(f) for f in files if f.name not in _OURS or f.parent != out}
