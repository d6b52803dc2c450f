"""Run the published recipes and keep their numbers in `benchmarks/results/`.

    python benchmarks/recipes.py                      the quickstart, built-in data only
    python benchmarks/recipes.py --data DIR           also pku-saferlhf-small, on the rows in DIR

A recipe that is done is not run again. Every result says machine, threads, seed and commit; README
shows these files through `docs/generate.py`, so a number there is a number that was measured.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from equipoise.lineage import read_manifest
from equipoise.machine import processor, versions
from equipoise.pipeline import Finished, load_recipe, run_recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "commit": commit.stdout.strip(),
        "versions": versions(),
    }


def numbers(done: list[Finished]) -> dict[str, Any]:
    """The comparison and the detection of a run, and what each step cost."""
    found: dict[str, Any] = {"steps": {}}
    for step in done:
        manifest = read_manifest(
            step.place / "manifest.json" if step.place.is_dir() else Path(f"{step.place}.manifest.json")
        )
        found["steps"][step.name] = {
            "wall_seconds": manifest.wall_seconds,
            "cpu_seconds": manifest.cpu_seconds,
            "peak_memory_mib": manifest.peak_memory_mib,
        }
        for name in ("report.json", "detection.json"):
            if (step.place / name).is_file():
                found[name.removesuffix(".json")] = json.loads((step.place / name).read_text("utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with the rows of pku-saferlhf-small")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs lie")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    wanted = {"quickstart": []}
    if arguments.data:
        wanted["pku-saferlhf-small"] = [f"data.dir={arguments.data}"]
    for name, overrides in wanted.items():
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides)
        done = run_recipe(recipe, arguments.runs / name)
        result = {"recipe": name, "seed": recipe.settings["seed"], "machine": machine(), **numbers(done)}
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
