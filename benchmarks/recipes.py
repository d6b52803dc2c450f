"""Run the published recipes and keep their numbers in `benchmarks/results/`.

    python benchmarks/recipes.py                      the quickstart, built-in data only, and the same
                                                      models again on the prompts that it leaves out
    python benchmarks/recipes.py --data DIR           also pku-saferlhf-small and factory-small, with the rows
                                                      in DIR

A recipe that is done is not run again. Every result says machine, threads, seed and commit; README
shows these files through `docs/generate.py`, so a number there is a number that was measured.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import ROOT, save

from equipoise.curation.dedup import Similarity, near_copies
from equipoise.data.identity import AnyRecord, texts_of
from equipoise.data.steps import read_files
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.pipeline.summary import Finished

GUARD = "factory-guard"
"""The only annotator of factory-small."""


def numbers(done: list[Finished]) -> dict[str, Any]:
    """The comparison, the detection and the coverage of a run, and what each step cost."""
    found: dict[str, Any] = {"steps": {}}
    for step in done:
        cost = {"wall_seconds", "cpu_seconds", "peak_memory_mib"}
        found["steps"][step.name] = step.manifest.model_dump(include=cost)
        for name in ("report.json", "detection.json", "coverage.json"):
            if (step.place / name).is_file():
                found[name.removesuffix(".json")] = json.loads((step.place / name).read_text("utf-8"))
    return found


def release(run: Path) -> dict[str, Any]:
    """What a data set that was made holds: rows, near-copies left in it, rows that people touched."""
    found: dict[str, Any] = {}
    for name in ("prompts", "exchanges"):
        records = [placed.record for placed in read_files([run / f"{name}.jsonl"])]
        found[name] = {
            "rows": len(records),
            "near_copies": len(near_copies(map(texts_of, records), Similarity()).copies),
            "human_rows": sum(map(by_people, records)),
        }
    return found


def by_people(record: AnyRecord) -> bool:
    """Whether source, labels or annotators of a record are anything but a model."""
    origins = (record.source, record.label_origin or "")
    by_models = all(origin.startswith("model:") for origin in origins)
    return not by_models or not set(record.annotators) <= {GUARD}


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
        for name in ("pku-saferlhf-small", "factory-small"):
            wanted[name] = (name, [f"data.dir={arguments.data}"])
    for result, (name, overrides) in wanted.items():
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides)
        done = run_recipe(recipe, arguments.runs / name)
        settings = {"recipe": name, "set": overrides if name == "quickstart" else []}
        measured = numbers(done)
        if name == "factory-small":
            measured["release"] = release(arguments.runs / name)
        path = save(result, {**settings, "seed": recipe.settings["seed"], **measured})
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
