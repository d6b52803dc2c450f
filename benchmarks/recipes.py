"""Run the published recipes and keep their numbers in `benchmarks/results/`.

    python benchmarks/recipes.py                      the quickstart, built-in data only, and the same
                                                      models again on the prompts that it leaves out
    python benchmarks/recipes.py --data DIR           also pku-saferlhf-small, on the rows in DIR

A recipe that is done is not run again. Every result says machine, threads, seed and commit; README
shows these files through `docs/generate.py`, so a number there is a number that was measured.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import ROOT, save

from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.pipeline.summary import Finished


def numbers(done: list[Finished]) -> dict[str, Any]:
    """The comparison and the detection of a run, and what each step cost."""
    found: dict[str, Any] = {"steps": {}}
    for step in done:
        cost = {"wall_seconds", "cpu_seconds", "peak_memory_mib"}
        found["steps"][step.name] = step.manifest.model_dump(include=cost)
        for name in ("report.json", "detection.json"):
            if (step.place / name).is_file():
                found[name.removesuffix(".json")] = json.loads((step.place / name).read_text("utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with the rows of pku-saferlhf-small")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs lie")
    arguments = parser.parse_args()
    wanted: dict[str, tuple[str, list[str]]] = {
        "quickstart": ("quickstart", []),
        "quickstart-rest": ("quickstart", ["select=rest"]),
    }
    if arguments.data:
        wanted["pku-saferlhf-small"] = ("pku-saferlhf-small", [f"data.dir={arguments.data}"])
    for result, (name, overrides) in wanted.items():
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides)
        done = run_recipe(recipe, arguments.runs / name)
        settings = {"recipe": name, "set": overrides if name == "quickstart" else []}
        path = save(result, {**settings, "seed": recipe.settings["seed"], **numbers(done)})
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
