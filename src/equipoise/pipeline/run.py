"""Run a recipe: every mistake that can be found is found first, then its steps run in order."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from equipoise.config import Config, find_inputs, parse_config, read_yaml, to_yaml
from equipoise.errors import (
    ConfigError,
    DataError,
    EquipoiseError,
    GateFailedError,
    ModelError,
    RunStoppedError,
    near,
)
from equipoise.files import LOCK, only_one, remove_leftovers, write_text
from equipoise.lineage import identify, produce, read_manifest
from equipoise.models.builtin import model_path
from equipoise.models.wheels import BUILTIN
from equipoise.pipeline.recipe import Recipe, needed_by
from equipoise.pipeline.references import mentioned, resolve
from equipoise.pipeline.steps import step_of
from equipoise.pipeline.summary import Finished, complete
from equipoise.progress import say

_TO_COME = "<steps>"
"""First part of the path that stands for an output before there is one."""


def run_recipe(
    recipe: Recipe, out: Path, *, only: str | None = None, force: str | None = None
) -> list[Finished]:
    """Run a recipe's steps in order into `out` and return them.

    `out` is complete when it holds a `manifest.json`; a run that could not begin leaves nothing there.

    Args:
        recipe: As `load_recipe` gave it.
        out: Folder for all steps. Other settings of the same recipe make new step folders beside the
            old ones; a folder of another recipe is refused.
        only: Run this step and those it needs; nothing is published and the folder is not complete.
        force: Do this step again although it is done.

    Raises:
        GateFailedError: a step that is a gate was not passed; what comes after it is not run.
    """
    for name in (only, force):
        if name is not None and name not in recipe.steps:
            raise ConfigError(f"no step '{name}'{near(name, recipe.steps)}; steps: {', '.join(recipe.steps)}")
    wanted = needed_by(recipe, only) if only else set(recipe.steps)
    check_inputs(recipe, check_settings(recipe, wanted))
    _claim(recipe, out, is_done_again=force in wanted)
    done: list[Finished] = []
    try:
        for number, name in enumerate(recipe.steps, start=1):
            if name in wanted:
                step = _run_step(recipe, name, out, {s.name: s.place for s in done}, force=name == force)
                done.append(step)
                state = "done before" if step.skipped else f"done in {step.manifest.wall_seconds:.0f} s"
                say(f"[{number}/{len(recipe.steps)}] {name}: {state}")
    except (EquipoiseError, RunStoppedError):
        _leave_no_trace(out)
        raise
    if only is None:
        complete(recipe, out, done)
    return done


def check_settings(recipe: Recipe, wanted: Collection[str]) -> dict[str, Config]:
    """Return the settings of the steps, with stand-ins for outputs that are yet to be made.

    A wrong setting of a late step is found now, and not when the steps before it have taken hours.
    """
    places = {name: Path(_TO_COME, name) for name in recipe.steps}
    found: dict[str, Config] = {}
    for name, entry in recipe.steps.items():
        if name in wanted:
            step = step_of(entry.run)
            values = resolve(entry.with_, recipe.settings, places)
            found[name] = parse_config(step.config, values, f"step {name}")
            if entry.file is not None and not step.writes_file:
                raise ConfigError(f"step {name}: file: {entry.run} writes a folder, got a name of a file")
    return found


def check_inputs(recipe: Recipe, configs: Mapping[str, Config]) -> None:
    """Find an input that is not there before the first step runs.

    Raises:
        DataError: no such file; the message names the step, its setting and the recipe's setting.
        ModelError: a built-in model is not installed.
    """
    for name, config in configs.items():
        asked: list[Path] = []

        def is_there(path: Path, asked: list[Path] = asked) -> bool:
            asked.append(path)
            return path.parts[:1] == (_TO_COME,) or path.exists()

        try:
            inputs = find_inputs(config, exists=is_there)
        except DataError as exc:
            origin = _set_by(recipe.steps[name].with_, recipe.settings, asked[-1])
            raise DataError(f"step {name}: {exc}{origin}") from exc
        for setting, path in inputs.items():
            if str(path) in BUILTIN:
                try:
                    model_path(str(path))
                except ModelError as exc:
                    raise ModelError(f"step {name}: {setting}: {exc}") from exc


def _set_by(value: Any, settings: Mapping[str, Any], path: Path) -> str:
    """Say which of the recipe's settings a path was made from."""
    for text in _texts(value):
        names = mentioned(text, "settings")
        if names and not mentioned(text) and Path(str(resolve(text, settings, {}))) == path:
            return f" (from the setting {', '.join(sorted(names))})"
    return ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _run_step(recipe: Recipe, name: str, out: Path, places: Mapping[str, Path], *, force: bool) -> Finished:
    entry = recipe.steps[name]
    step = step_of(entry.run)
    config = parse_config(step.config, resolve(entry.with_, recipe.settings, places), f"step {name}")
    identity = identify(step, config)
    place = out / "steps" / f"{name}-{identity.key[:8]}"
    if step.writes_file:
        place = place / (entry.file or f"{name}.jsonl")
    outcome = produce(place, step, config, force=force, identity=identity)
    if verdict := outcome.manifest.notes.get("gate_failed"):
        raise GateFailedError(f"step {name}: {verdict}; see {place}")
    outside = {
        at: source for at, source in identity.inputs.items() if not Path(source.path).is_relative_to(out)
    }
    return Finished(name, place, outcome.manifest, outcome.skipped, outside)


def _claim(recipe: Recipe, out: Path, *, is_done_again: bool) -> None:
    """Write the resolved recipe into `out`, which is complete no longer if anything in it will change.

    A folder that holds something else is refused; one that is complete and stays so is left as it is.
    """
    resolved, manifest = out / "config.yaml", out / "manifest.json"
    settings = recipe.model_dump(mode="json", by_alias=True)
    text = to_yaml(settings)
    with suppress(FileNotFoundError, NotADirectoryError):
        is_complete = resolved.read_text("utf-8") == text and read_manifest(manifest).config == settings
        if is_complete and not is_done_again:
            return
    with only_one(out):
        remove_leftovers(resolved)
        if resolved.exists():
            held = read_yaml(resolved).get("name")
            if held != recipe.name:
                raise ConfigError(f"{out}: holds a run of another recipe ({held}); choose another place")
        elif any(f.name != LOCK for f in out.iterdir()):
            raise ConfigError(f"{out}: exists and is no run of equipoise; choose another place")
        if manifest.exists() and (is_done_again or read_manifest(manifest).config != settings):
            manifest.unlink()
            (out / "card.md").unlink(missing_ok=True)
        if not resolved.exists() or resolved.read_text("utf-8") != text:
            write_text(resolved, text)


def _leave_no_trace(out: Path) -> None:
    """Remove the empty folder of a step that did nothing, and `out` where no step did anything."""
    for folder in (*out.glob("steps/*"), out / "steps"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if [path.name for path in out.iterdir()] == ["config.yaml"]:
        (out / "config.yaml").unlink()
        out.rmdir()
