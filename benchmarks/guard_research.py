"""What the guard of `recipes/guard-research.yaml` tells apart, on prompts that it has not seen.

    python benchmarks/guard_research.py --data DIR [--runs DIR] [--runtime torch-bf16]

Runs the recipe (what is done is not done again) and measures its test part source by source, beside TF-IDF
with logistic regression on the very rows that the guard learned from. The prompts of `oktest` and
`llm_safeguard` are in no part of the recipe, though their rates have guided choices; `set aside` is a half
that was not read while the built-in requests and questions were written. Those of `look_alikes`, `requests`
and `questions` are its own test parts. How severity is told is measured on all rows that have one, by guards
of the same backbone, frozen, that have not seen the fold's prompts. Intervals are 95 %, from resampling
whole prompts.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from common import ROOT, is_set_aside, save
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from equipoise.annotation.coefficients import Statistic, cohen, estimates, quadratic
from equipoise.data.io import read_exchanges, read_records, write_records
from equipoise.data.rows import read_rows
from equipoise.data.sources import import_records
from equipoise.data.splits import normalise_prompt
from equipoise.evaluation.baseline import unsafe_scores, vectors
from equipoise.evaluation.guard_quality import macro_f1, measure_quality
from equipoise.evaluation.reliability import reliability
from equipoise.lineage import produce
from equipoise.moderation.guard import Guard, Runtime, load_guard
from equipoise.moderation.refusal import PrefixRefusals
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.protocols import Verdict
from equipoise.records import Exchange, Prompt, text_of
from equipoise.stats import Estimate, auroc, bootstrap, bootstrap_mean
from equipoise.training.guard import TRAIN_GUARD, GuardConfig, GuardOptim

PAIRS = ("boundary", "mini")
ANSWERS = ("jailbreaks", "risky")
LEVELS = 4
FOLDS = 5


def answers(folder: Path, name: str) -> list[Exchange]:
    path = folder / f"{name}.jsonl"
    return read_exchanges((), (path,)) if name in PAIRS else read_exchanges((path,), ())


def labelled(path: Path) -> list[Prompt]:
    """Prompts that are known to be harmful or not; a guard learns from no others."""
    return [prompt for prompt in read_records(path, Prompt) if prompt.is_harmful is not None]


def prompts_of(rows: Sequence[Exchange | Prompt]) -> list[str]:
    return [normalise_prompt(text_of(row.prompt)) for row in rows]


def separation(ours: Any, theirs: Any, unsafe: Sequence[bool], prompts: Sequence[str]) -> dict[str, Any]:
    """AUROC of the guard, of the baseline, and their difference on the same rows."""
    x, y, actual = np.asarray(ours), np.asarray(theirs), np.asarray(unsafe)

    def boot(statistic: Callable[[Any], float]) -> dict[str, float]:
        return plain(bootstrap(statistic, prompts, draws=2000))

    return {
        "guard": boot(lambda i: auroc(x[i], actual[i])),
        "tfidf": boot(lambda i: auroc(y[i], actual[i])),
        "difference": boot(lambda i: auroc(x[i], actual[i]) - auroc(y[i], actual[i])),
    }


def plain(estimate: Estimate) -> dict[str, float]:
    return estimate._asdict()


def unsafe_answers(
    train: Sequence[Exchange], parts: Mapping[str, list[Exchange]], said: Mapping[str, list[Verdict]]
) -> dict[str, Any]:
    """Each source by itself, and how safe and unsafe answers to one prompt are ordered."""
    known = [row for row in train if row.is_safe is not None]
    found: dict[str, Any] = {}
    for name in (*PAIRS, *ANSWERS):
        rows, scores = parts[name], [verdict.unsafe_probability for verdict in said[name]]
        unsafe = [not row.is_safe for row in rows]
        found[name] = separation(scores, unsafe_scores(known, rows), unsafe, prompts_of(rows))
    within = measure_quality(together(parts, PAIRS), together(said, PAIRS)).within_prompt
    assert within is not None
    found["within_prompt"] = plain(within)
    return found


def together(parts: Mapping[str, list[Any]], names: Sequence[str]) -> list[Any]:
    return [item for name in names for item in parts[name]]


def harmful_texts(guard: Guard, train: Sequence[Prompt], test: Sequence[Prompt]) -> dict[str, Any]:
    """Prompts by themselves."""
    ours = [v.unsafe_probability for v in guard.judge_prompts([text_of(p.prompt) for p in test])]
    theirs = unsafe_scores([alone(p) for p in train], [alone(p) for p in test])
    return separation(ours, theirs, [bool(p.is_harmful) for p in test], prompts_of(test))


def alone(prompt: Prompt) -> Exchange:
    return Exchange(
        id=prompt.id, prompt=prompt.prompt, response="", is_safe=not prompt.is_harmful, source=prompt.source
    )


def severity(rows: Sequence[Exchange], like: GuardConfig, folder: Path) -> dict[str, Any]:
    """Quadratic-weighted kappa over folds of prompts, and that of cumulative logistic regressions on TF-IDF.

    The guard of a fold learns from the other folds' graded rows and nothing else.
    """
    prompts, actual = prompts_of(rows), np.array([int(row.severity or 0) for row in rows])
    texts = np.array([f"{text_of(row.prompt)}\n{row.response}" for row in rows])
    said = {"guard": np.zeros(len(rows), int), "tfidf": np.zeros(len(rows), int)}
    splits = GroupKFold(FOLDS, shuffle=True, random_state=0).split(texts, actual, prompts)
    for fold, (train, test) in enumerate(splits):
        learned, place = folder / f"fold-{fold}.jsonl", folder / f"fold-{fold}"
        write_records(learned, [rows[i] for i in train])
        settings = {name: getattr(like, name) for name in ("backbone", "depth", "layers", "max_windows")}
        fresh = GuardConfig(exchanges=(learned,), optim=GuardOptim(bf16=like.optim.bf16), **settings)
        produce(place, TRAIN_GUARD, fresh)
        said["guard"][test] = [v.severity for v in load_guard(place)([rows[i] for i in test])]
        weights = vectors()
        x, z = weights.fit_transform(texts[train]), weights.transform(texts[test])
        for level in range(LEVELS - 1):
            above = LogisticRegression(C=10, max_iter=2000).fit(x, actual[train] > level)
            said["tfidf"][test] += above.predict_proba(z)[:, 1] > 0.5
    return compared({name: kappa(actual, levels) for name, levels in said.items()}, "tfidf", prompts)


def kappa(actual: Sequence[int] | Any, levels: Sequence[int] | Any) -> Statistic:
    return cohen(np.array([actual, levels], dtype=np.intp).T, quadratic(LEVELS))


def compared(found: dict[str, Statistic], peer: str, prompts: Sequence[str]) -> dict[str, Any]:
    """The guard's statistic, the peer's, and their difference."""
    both = found | {"difference": lambda drawn: found["guard"](drawn) - found[peer](drawn)}
    return {name: plain(value) for name, value in estimates(both, prompts, draws=2000).items()}


def refusals(guard: Guard, test: Sequence[Exchange]) -> dict[str, Any]:
    """Macro-F1 of declining, partly or fully, beside looking at how a response begins."""
    actual = np.array([row.refusal != "none" for row in test])
    f1: dict[str, Statistic] = {}
    for name, judge in (("guard", guard.refusals), ("prefix", PrefixRefusals())):
        declined = np.array([verdict.refusal != "none" for verdict in judge(test)])
        f1[name] = macro_f1(np.stack([actual, ~actual], 1), np.stack([declined, ~declined], 1))
    return compared(f1, "prefix", prompts_of(test))


def calibration(rows: Sequence[Exchange], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How far P(unsafe) of answers is from what is so, where all sources are mixed."""
    unsafe = np.array([not row.is_safe for row in rows])
    said = np.array([verdict.unsafe_probability for verdict in verdicts])
    found = reliability(said, unsafe, np.unique(prompts_of(rows), return_inverse=True)[1])
    assert found is not None
    told = found._asdict() | {"squared": plain(found.squared)}
    return {"rows": len(rows)} | {name: value for name, value in told.items() if name != "bins"}


def unused(path: Path) -> list[Prompt]:
    """Prompts of a file that the recipe does not read."""
    return [row for row in import_records("jsonl", read_rows(path)) if isinstance(row, Prompt)]


def flagged(guard: Guard, rows: Sequence[Prompt]) -> dict[str, Any]:
    """Share of prompts that the default policy flags."""
    verdicts = guard.judge_prompts([text_of(row.prompt) for row in rows])
    return plain(bootstrap_mean([float(not verdict.is_safe) for verdict in verdicts], prompts_of(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the rows")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs lie")
    parser.add_argument(
        "--runtime", choices=get_args(Runtime), default="torch", help="what the guard runs on"
    )
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, as in its run")
    given = parser.parse_args()
    recipe = load_recipe(ROOT / "recipes" / "guard-research.yaml", [f"data.dir={given.data}", *given.set])
    steps = {step.name: step for step in run_recipe(recipe, given.runs / "guard-research")}
    split = steps["split"].place
    guard = load_guard(steps["guard"].place, runtime=given.runtime)
    trained = GuardConfig.model_validate(steps["trained"].manifest.config)
    train = read_exchanges(trained.exchanges, trained.pairs)
    asked = [prompt for path in trained.prompts for prompt in labelled(path)]
    test = {
        name: answers(split / "test", name) for name in (*PAIRS, *ANSWERS, "graded", "refusals", "everyday")
    }
    texts = labelled(split / "test" / "texts.jsonl")
    said = {name: guard(test[name]) for name in (*PAIRS, *ANSWERS, "everyday")}
    safe, judged = ("risky", "everyday"), (*PAIRS, *ANSWERS)
    quality = measure_quality(together(test, safe), together(said, safe))
    others = {name: unused(given.data / f"{name}.jsonl") for name in ("oktest", "llm_safeguard")}
    others |= {
        f"{name}, set aside": [row for row in rows if is_set_aside(text_of(row.prompt))]
        for name, rows in others.items()
    }
    others |= {
        name: labelled(steps["asked"].place / "test" / f"{name}.jsonl")
        for name in ("look_alikes", "requests", "questions")
    }
    result = {
        "guard": "recipes/guard-research.yaml",
        "runtime": given.runtime,
        "steps": {
            name: step.manifest.model_dump(include={"wall_seconds", "cpu_seconds", "peak_memory_mib"})
            for name, step in steps.items()
        },
        "training": dict(steps["trained"].manifest.notes),
        "answers": unsafe_answers(train, test, said),
        "texts": harmful_texts(guard, asked, texts),
        "refusals": {name: refusals(guard, test[name]) for name in ("refusals", "risky")},
        "calibration": calibration(together(test, judged), together(said, judged)),
        "safe_answers_flagged": {
            name: plain(value)
            for name in ("flagged_after_harmful", "flagged_after_benign", "flagged_gap")
            if (value := getattr(quality, name)) is not None
        },
        "prompts_flagged": {
            f"{name}, {kind}": flagged(guard, rows)
            for name, all_rows in others.items()
            for kind, harm in (("harmful", True), ("benign", False))
            if (rows := [row for row in all_rows if row.is_harmful is harm])
        },
    }
    save("guard-research", result)  # what follows takes as long again
    graded = read_exchanges((steps["graded"].place,), ())
    result["severity"] = severity(graded, trained, given.runs / "guard-research-severity")
    print(save("guard-research", result).relative_to(ROOT))


if __name__ == "__main__":
    main()
