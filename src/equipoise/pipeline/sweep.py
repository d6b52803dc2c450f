"""Run a recipe under several values of one setting, and measure the trade-off that it decides.

All values share one run folder: the steps lie in folders named after their content, so what the knob does
not touch is done once, and the same command after an interruption does what is left.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from equipoise.config import parse_config, parse_override
from equipoise.errors import ConfigError, EquipoiseError, RunStoppedError, near
from equipoise.evaluation.front_run import BASE, FILES, FRONT, FrontConfig
from equipoise.evaluation.rows import STEP_NAME
from equipoise.files import only_one, remove_leftovers, replacing
from equipoise.lineage import identify, produce
from equipoise.pipeline.recipe import Recipe, load_recipe, needed_by
from equipoise.pipeline.references import mentioned
from equipoise.pipeline.run import check_inputs, check_settings, run_recipe
from equipoise.progress import say

_ALIKE = ("suite", "select", "harmful", "benign", "suite_seed", "samples", "guard", "scorer", "refusals")
"""Settings of an evaluation that must be the same for its rows to compare."""


class Swept(NamedTuple):
    """A sweep that came to its end."""

    place: Path
    """The folder of the front."""
    skipped: bool
    """Nothing was left to do for it."""
    failed: dict[str, str]
    """Values whose run failed, and how; the same command tries them again."""


def sweep(
    path: Path,
    out: Path,
    *,
    knob: str,
    values: str,
    overrides: Sequence[str] = (),
    point: str | None = None,
    base: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Swept:
    """Run a recipe once for each value of a setting, and write the front of its evaluations into `out`.

    Args:
        path: The recipe.
        out: Folder of the runs, which may hold runs of the same recipe already.
        knob: As `--set` names it: `beta`, or `steps.policy.objective_params.beta`.
        values: Of the knob, parted by commas, each as YAML.
        overrides: Other settings, as for `--set`.
        point: The step that evaluates what the knob decides; needed where there are several.
        base: The step that evaluates the model before; needed where there are several.
        settings: Of the front: `reference`, `helpfulness`, `draws`, `seed`.

    Raises:
        ConfigError: A mistake in any of these, or a setting that the recipe refuses under one of the values;
            nothing has run then.
    """
    keys = _keys(knob)
    recipes = {
        name: load_recipe(path, [*overrides, f"{'.'.join(keys)}={value}"])
        for name, value in _values(knob, values).items()
    }
    first = next(iter(recipes.values()))
    point, base = _steps(first, keys, knob, point, base, needs_base=not (settings or {}).get("reference"))
    front = {"knob": knob, **(settings or {}), "base": base}
    for recipe in recipes.values():
        _check(recipe, point, base, front)

    places: dict[str, Path] = {}
    if base is not None:
        front["base"] = run_recipe(first, out, only=base)[-1].place
    failed: dict[str, str] = {}
    causes: list[EquipoiseError | RunStoppedError] = []
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        say(f"[{number}/{len(recipes)}] {knob}={name}")
        try:
            places[name] = run_recipe(recipe, out, only=point)[-1].place
        except (EquipoiseError, RunStoppedError) as exc:
            say(f"{knob}={name}: failed: {exc}")
            failed[name] = str(exc)
            causes.append(exc)
    if not places:
        raise causes[0]
    return _written(out, {**front, "evaluations": places, "failed": failed}, failed)


def _written(out: Path, front: Mapping[str, Any], failed: dict[str, str]) -> Swept:
    """Make the front in a folder of its own, and put its files where they are looked for."""
    config = parse_config(FrontConfig, front, "sweep")
    identity = identify(FRONT, config)
    place = out / "steps" / f"sweep-{identity.key[:8]}"
    outcome = produce(place, FRONT, config, identity=identity)
    with only_one(out):
        for name in FILES:
            remove_leftovers(out / name)
            with replacing(out / name) as part:
                shutil.copyfile(place / name, part)
    return Swept(place, outcome.skipped, failed)


def _keys(knob: str) -> list[str]:
    """Return the knob's keys as an override has them; `settings.` before one is as good as nothing."""
    keys = knob.split(".")
    keys = keys[1:] if keys[0] == "settings" else keys
    if not all(keys) or not keys:
        raise ConfigError(f"knob: got '{knob}'; expected settings.KEY or steps.STEP.SETTING")
    return keys


def _values(knob: str, values: str) -> dict[str, str]:
    """Part values at the commas outside of brackets: name -> the value as an override gives it.

    >>> _values("x", "dpo,1e-3,[0.8,0.2]")
    {'dpo': '"dpo"', '0.001': '0.001', '[0.8, 0.2]': '[0.8, 0.2]'}
    """
    _, parted = parse_override(f"{knob}=[{values}]")
    if not isinstance(parted, list) or not parted:
        raise ConfigError(f"values: got '{values}'; expected one or more, for example 0.01,0.1,1")
    found = [json.dumps(value, ensure_ascii=False) for value in parted]
    names = [value if isinstance(value, str) else text for value, text in zip(parted, found, strict=True)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"values: {sorted(twice)[0]} stands twice; expected each once")
    if BASE in names:
        raise ConfigError(f"values: '{BASE}' is the name of the base in the front; expected another")
    return dict(zip(names, found, strict=True))


def _steps(
    recipe: Recipe, keys: Sequence[str], knob: str, point: str | None, base: str | None, *, needs_base: bool
) -> tuple[str, str | None]:
    """Return the step that evaluates what the knob decides, and the one that does not depend on it."""
    evaluations = [name for name, entry in recipe.steps.items() if entry.run == STEP_NAME]
    turned = [name for name in evaluations if _depends(recipe, name, keys)]
    fixed = [name for name in evaluations if name not in turned]
    if not turned:
        raise ConfigError(f"knob: no evaluation depends on {knob}; evaluations: {', '.join(fixed) or 'none'}")
    point = _one("point", point, turned, f"depend on {knob}")
    judges = mentioned([recipe.steps[point].with_.get(name) for name in ("suite", "guard", "scorer")])
    if moved := sorted(name for name in judges if _depends(recipe, name, keys)):
        raise ConfigError(
            f"knob: {knob} decides {moved[0]}, by which step {point} is judged; expected it not to"
        )
    if base or needs_base or len(fixed) == 1:
        return point, _one("base", base, fixed, f"do not depend on {knob}")
    return point, None


def _one(option: str, asked: str | None, known: Sequence[str], what: str) -> str:
    if asked is None and len(known) == 1:
        return known[0]
    if asked in known:
        return str(asked)
    got = f"no step '{asked}'{near(asked, known)}" if asked else f"{len(known)} to choose from"
    hint = " (or a reference in its place)" if option == "base" else ""
    raise ConfigError(f"{option}: {got}; evaluations that {what}: {', '.join(known) or 'none'}{hint}")


def _depends(recipe: Recipe, name: str, keys: Sequence[str]) -> bool:
    """Whether a step, or one that it needs, reads the setting."""
    needed = needed_by(recipe, name)
    if keys[0] == "steps":
        return keys[1] in needed
    dotted = ".".join(keys) + "."
    read = (f"{each}." for step in needed for each in mentioned(recipe.steps[step].with_, "settings"))
    return any(each.startswith(dotted) or dotted.startswith(each) for each in read)


def _check(recipe: Recipe, point: str, base: str | None, front: Mapping[str, Any]) -> None:
    """Find what would come out only when the runs are done."""
    wanted = {name for step in (point, base) if step for name in needed_by(recipe, step)}
    configs = check_settings(recipe, wanted)
    check_inputs(recipe, configs)
    parse_config(FrontConfig, {**front, "evaluations": {"a value": Path(point)}}, "sweep")
    mine = configs[point].model_dump()
    if front.get("helpfulness") == "reward_benign" and mine["scorer"] is None:
        raise ConfigError(f"helpfulness: step {point} has no scorer, got reward_benign; expected truly_safe")
    theirs = configs[base].model_dump() if base else mine
    for name in _ALIKE:
        if mine[name] != theirs[name]:
            raise ConfigError(
                f"steps {base} and {point} do not compare: {name} is not the same; expected it so"
            )
