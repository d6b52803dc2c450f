"""A recipe is a list of steps; each step's output lies in a folder named after its content key.

    name: quickstart
    settings: {seed: 0}                    # what `--set seed=1` overrides
    steps:
      guard:                               # `${steps.guard}` is the place of its output
        run: train.guard                   # a key of STEPS
        with: {exchanges: [...], optim: {seed: "${settings.seed}"}}
    publish: {report.html: "${steps.report}/report.html"}

`${builtin.exchanges}`, `.pairs` and `.prompts` are the files of the built-in corpus.
A finished step with the same inputs is skipped, a half-done one is resumed, and changed settings
make new folders beside the old ones, so nothing that was done is lost.
"""

import importlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from equipoise.config import Config, apply_override, parse_config, parse_override, read_yaml, to_yaml
from equipoise.data.corpus import corpus_path
from equipoise.errors import ConfigError, near
from equipoise.lineage import Manifest, Step, identify, produce, replacing, write_text
from equipoise.progress import say

STEPS = {
    "data.import": "equipoise.data.steps:IMPORT",
    "data.check": "equipoise.data.steps:CHECK",
    "data.split": "equipoise.data.steps:SPLIT",
    "data.merge": "equipoise.data.steps:MERGE",
    "train.guard": "equipoise.training.guard:TRAIN_GUARD",
    "train.scorer": "equipoise.training.scorer:TRAIN_SCORER",
    "train.sft": "equipoise.training.sft:TRAIN_SFT",
    "train.preference": "equipoise.training.preference:TRAIN_PREFERENCE",
    "evaluate": "equipoise.evaluation.steps:EVALUATE",
    "evaluate.detection": "equipoise.evaluation.detection:DETECTION",
    "report": "equipoise.evaluation.report.build:REPORT",
}
"""Name in a recipe -> where the step lies; imported when it is used, since some need torch."""

_REFERENCE = re.compile(r"\$\{([^}]+)\}")


class RecipeStep(Config):
    """One entry under `steps`."""

    run: str
    with_: dict[str, Any] = Field(default={}, alias="with")
    file: str | None = None
    """Name of the output, for steps that write one file."""


class Recipe(Config):
    """A recipe file."""

    name: str
    about: str = ""
    settings: dict[str, Any] = {}
    steps: dict[str, RecipeStep] = Field(min_length=1)
    publish: dict[str, str] = {}
    """File in the output folder -> what is copied there at the end."""


class Finished(NamedTuple):
    """One step of a run that is done."""

    name: str
    place: Path
    manifest: Manifest
    skipped: bool


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `--set` to its settings, and check all that can be checked without running.

    `--set a.b=1` sets `settings.a.b`, which must exist; `--set steps.guard.hidden=64` sets a step's
    own setting.
    """
    data = read_yaml(path)
    parse_config(Recipe, data, str(path))  # its form, before the overrides look into it
    for item in overrides:
        keys, value = parse_override(item)
        if keys[0] == "steps":
            if len(keys) < 3 or keys[1] not in data["steps"]:
                hint = near(keys[1], data["steps"]) if len(keys) > 1 else ""
                known = ", ".join(data["steps"])
                raise ConfigError(f"--set {item}: expected steps.STEP.SETTING=value{hint}; steps: {known}")
            apply_override(data["steps"][keys[1]].setdefault("with", {}), keys[2:], value)
        else:
            _must_exist(data.get("settings", {}), keys, item)
            apply_override(data["settings"], keys, value)
    recipe = parse_config(Recipe, data, str(path))
    _check(recipe, path)
    return recipe


def run_recipe(
    recipe: Recipe, out: Path, *, only: str | None = None, force: str | None = None
) -> list[Finished]:
    """Run a recipe's steps in order into `out` and return them.

    Args:
        recipe: As `load_recipe` gave it.
        out: Folder for all steps. Other settings of the same recipe make new step folders beside the
            old ones; a folder of another recipe is refused.
        only: Run this step and those it needs.
        force: Do this step again although it is done.
    """
    for name in (only, force):
        if name is not None and name not in recipe.steps:
            raise ConfigError(f"no step '{name}'{near(name, recipe.steps)}; steps: {', '.join(recipe.steps)}")
    wanted = needed_by(recipe, only) if only else set(recipe.steps)
    check_settings(recipe, wanted)
    _claim(recipe, out)
    places: dict[str, Path] = {}
    done: list[Finished] = []
    for number, (name, entry) in enumerate(recipe.steps.items(), start=1):
        if name not in wanted:
            continue
        finished = _run_step(recipe, name, entry, out, places, force=name == force)
        places[name] = finished.place
        done.append(finished)
        state = "done before" if finished.skipped else f"done in {finished.manifest.wall_seconds:.0f} s"
        say(f"[{number}/{len(recipe.steps)}] {name}: {state}")
    if only is None:
        for target, source in recipe.publish.items():
            with replacing(out / target) as part:
                shutil.copyfile(str(_resolve(source, recipe, places)), part)
    return done


def needed_by(recipe: Recipe, name: str) -> set[str]:
    """Return a step and all the steps whose output it reads, directly or not."""
    needed = {name}
    for step in reversed(list(recipe.steps)):
        if step in needed:
            needed |= _mentioned(recipe.steps[step].with_)
    return needed


def step_of(name: str) -> Step:
    """Import the step behind a name of STEPS."""
    module, attribute = STEPS[name].split(":")
    step: Step = getattr(importlib.import_module(module), attribute)
    return step


def _run_step(
    recipe: Recipe, name: str, entry: RecipeStep, out: Path, places: Mapping[str, Path], *, force: bool
) -> Finished:
    step = step_of(entry.run)
    config = parse_config(step.config, _resolve(entry.with_, recipe, places), f"step {name}")
    key, _ = identify(step, config)
    place = out / "steps" / f"{name}-{key[:8]}"
    if step.writes_file:
        place = place / (entry.file or f"{name}.jsonl")
    outcome = produce(place, step, config, force=force)
    return Finished(name, place, outcome.manifest, outcome.skipped)


def check_settings(recipe: Recipe, wanted: Collection[str]) -> None:
    """Find a wrong setting of a late step now, and not when the steps before it have taken hours."""
    places = {name: Path(name) for name in recipe.steps}
    for name, entry in recipe.steps.items():
        if name not in wanted:
            continue
        step = step_of(entry.run)
        parse_config(step.config, _resolve(entry.with_, recipe, places), f"step {name}")
        if entry.file is not None and not step.writes_file:
            raise ConfigError(f"step {name}: file: {entry.run} writes a folder, got a name of a file")


def _claim(recipe: Recipe, out: Path) -> None:
    """Write the resolved recipe into `out`; a folder that holds something else is refused."""
    resolved = out / "config.yaml"
    if resolved.exists():
        held = read_yaml(resolved).get("name")
        if held != recipe.name:
            raise ConfigError(f"{out}: holds a run of another recipe ({held}); choose another place")
    elif out.exists() and any(f.name != "tmp.config.yaml" for f in out.iterdir()):
        raise ConfigError(f"{out}: exists and is no run of equipoise; choose another place")
    write_text(resolved, to_yaml(recipe.model_dump(mode="json", by_alias=True)))


def _check(recipe: Recipe, path: Path) -> None:
    seen: set[str] = set()
    for name, entry in recipe.steps.items():
        if entry.run not in STEPS:
            known = ", ".join(STEPS)
            raise ConfigError(
                f"{path}: step {name}: no step '{entry.run}'{near(entry.run, STEPS)}; known: {known}"
            )
        for other in _mentioned(entry.with_) - seen:
            raise ConfigError(f"{path}: step {name}: '{other}' is no step before it{near(other, seen)}")
        seen.add(name)
    places = {name: Path(name) for name in recipe.steps}
    _resolve([entry.with_ for entry in recipe.steps.values()], recipe, places)
    _resolve(list(recipe.publish.values()), recipe, places)


def _must_exist(settings: Mapping[str, Any], keys: Sequence[str], item: str) -> None:
    node: Any = settings
    for key in keys:
        if not isinstance(node, dict) or key not in node:
            known = ", ".join(node) if isinstance(node, dict) else "none"
            hint = near(key, node) if isinstance(node, dict) else ""
            raise ConfigError(
                f"--set {item}: no such setting '{key}'{hint}; known: {known or 'none'}, steps.*"
            )
        node = node[key]


def _mentioned(value: Any) -> set[str]:
    """Names of the steps that a value refers to."""
    found: set[str] = set()

    def look(reference: str) -> str:
        kind, _, rest = reference.partition(".")
        if kind == "steps":
            found.add(rest)
        return ""

    _substitute(value, look)
    return found


def _resolve(value: Any, recipe: Recipe, places: Mapping[str, Path]) -> Any:
    """Put settings and places where `${...}` stands; a text that is one reference keeps the value's type."""

    def find(reference: str) -> Any:
        kind, _, rest = reference.partition(".")
        if kind == "steps" and rest in places:
            return str(places[rest])
        if kind == "builtin":
            return str(corpus_path(rest))
        node: Any = {"settings": recipe.settings}
        for key in reference.split("."):
            if not isinstance(node, dict) or key not in node:
                known = [*_dotted("settings", recipe.settings), *(f"steps.{name}" for name in places)]
                raise ConfigError(
                    f"recipe '{recipe.name}': '${{{reference}}}' names no setting and no step"
                    f"{near(reference, known)}"
                )
            node = node[key]
        return node

    return _substitute(value, find)


def _dotted(prefix: str, node: Mapping[str, Any]) -> list[str]:
    """Names of all settings as a reference spells them."""
    inner = [
        name
        for key, item in node.items()
        if isinstance(item, dict)
        for name in _dotted(f"{prefix}.{key}", item)
    ]
    return [f"{prefix}.{key}" for key in node] + inner


def _substitute(value: Any, find: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, find) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, find) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _REFERENCE.fullmatch(value):
        return find(whole[1])
    return _REFERENCE.sub(lambda match: str(find(match[1])), value)


def built_in_recipe(name: str) -> Path:
    """Return the file of a recipe that ships with the package."""
    here = Path(__file__).parent
    for folder in (here / "recipes", here.parents[1] / "recipes"):  # installed, or a checkout
        if (folder / f"{name}.yaml").exists():
            return folder / f"{name}.yaml"
    raise ConfigError(f"no recipe '{name}' ships with this installation")
