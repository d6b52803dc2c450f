"""Two preferences, help and harm apart, against one that mixes both, from the same simulated raters.

    python benchmarks/dual_against_single.py --data DIR [--runs DIR]

The rows are real (PKU-SafeRLHF); the raters are simulated. Taken for the truth is, of each pair, which answer
is safer and whether each is safe by the rows' human labels, and which is better by a reward scorer that was
trained on other prompts. A rater is asked for each of these in turn, and in another session for one overall
preference, in which help and harm count by a weight of the rater's own, drawn once; all answers are drawn
with the same noise, and three raters vote. So dual raters are asked four questions a pair for one, as real
ones are. On held-out pairs both scorers are measured against the same truth, and both policies by a guard and
a scorer of other prompts; every difference is paired, with a 95 % interval over prompts. What is done is not
done again.
"""

import argparse
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import ROOT, save
from objectives_steps import fits, with_better
from pydantic import Field
from side_rows import has_bf16

from equipoise.config import Config, InputPath, ModelRef
from equipoise.data.io import read_records, write_records
from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError, EquipoiseError, RunStoppedError
from equipoise.evaluation.compare import compare
from equipoise.evaluation.files import plain
from equipoise.evaluation.pair_scores import PairScores, mean_of
from equipoise.evaluation.rows import load_run
from equipoise.lineage import Run, Step, identify, produce, read_manifest
from equipoise.models.backbone import load_tokenizer
from equipoise.objectives.preference import Index
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.records import Answer, Pair, text_of
from equipoise.rewards.learned import load_scorer
from equipoise.stats import Floats, auroc, bootstrap
from objectives import METRICS

PKU = ("mini", "boundary")
DRAWS = 2000


class VotesConfig(Config):
    """Settings of the simulated raters."""

    pairs: tuple[InputPath, ...] = Field(min_length=1)
    teacher: InputPath
    """Says which answer is better."""
    model: ModelRef
    """Its tokens are counted for the pairs that policies learn from."""
    raters: Literal[1, 3, 5, 7, 9] = 3
    """Odd, so that votes are never equal."""
    sharpness: float = Field(default=2.0, gt=0)
    """Log-odds of the right answer to a question on which help and harm agree; 2 is right in 88 of 100."""
    policy_pairs: int = Field(default=150, ge=1)
    max_tokens: int = Field(default=160, ge=8)
    seed: int = 0


def vote(config: VotesConfig, run: Run) -> None:
    """Ask simulated raters both ways; write the folder that the recipe takes for `votes`."""
    rows = [pair for path in config.pairs for pair in read_records(path, Pair)]
    run.licences |= {pair.licence for pair in rows}
    truth = [pair for pair in with_better(rows, config.teacher) if is_known(pair)]
    draw = random.Random(config.seed)
    weights = [draw.random() for _ in range(config.raters)]
    both = [ask(pair, weights, config.sharpness, draw) for pair in truth]
    tokenizer = load_tokenizer(config.model)
    short = [i for i, pair in enumerate(truth) if fits(pair, tokenizer, config.max_tokens)]
    if len(short) < config.policy_pairs:
        raise DataError(f"pairs: {len(short)} are short enough; expected {config.policy_pairs}")
    chosen = sorted(draw.sample(short, config.policy_pairs))
    for name, side in (("dual", 0), ("single", 1)):
        write_records(run.out / f"{name}.jsonl", [pair[side] for pair in both])
        write_records(run.out / f"{name}-policy.jsonl", [both[i][side] for i in chosen])
    run.notes |= {"pairs": len(truth), "weights_of_help": [round(weight, 3) for weight in weights]}
    run.notes |= {name: round(value, 4) for name, value in agreement(truth, both).items()}


def is_known(pair: Pair) -> bool:
    """Whether a pair has all labels that raters are asked for."""
    safe = all(answer.is_safe is not None for answer in pair.answers)
    return pair.safer in (0, 1) and pair.better in (0, 1) and safe


def ask(pair: Pair, weights: Sequence[float], sharpness: float, draw: random.Random) -> tuple[Pair, Pair]:
    """Return a pair as dual raters label it, and as raters with one overall preference do."""

    def majority(utilities: Sequence[float]) -> bool:
        """Whether most raters say yes; one does with log-odds of sharpness times its utility, -1..1."""
        says = [draw.random() < 1 / (1 + math.exp(-sharpness * utility)) for utility in utilities]
        return sum(says) * 2 > len(says)

    def all_see(yes: bool) -> list[float]:
        return [1.0 if yes else -1.0] * len(weights)

    gain, harm = (1.0 if choice == 0 else -1.0 for choice in (pair.better, pair.safer))
    better: Index = 0 if majority(all_see(pair.better == 0)) else 1
    safer: Index = 0 if majority(all_see(pair.safer == 0)) else 1
    safe = [majority(all_see(answer.is_safe is True)) for answer in pair.answers]
    if safe[0] != safe[1]:
        safer = 0 if safe[0] else 1  # of a safe and an unsafe answer the safe one is safer
    overall: Index = 0 if majority([w * gain + (1 - w) * harm for w in weights]) else 1
    texts = [answer.response for answer in pair.answers]
    known = tuple(Answer(response=text, is_safe=is_safe) for text, is_safe in zip(texts, safe, strict=True))
    bare = tuple(Answer(response=text) for text in texts)
    about = {"label_origin": "simulated raters", "overall": None}
    dual = {**about, "answers": known, "better": better, "safer": safer}
    single = {**about, "answers": bare, "better": overall, "safer": None, "overall": overall}
    return pair.model_copy(update=dual), pair.model_copy(update=single)


def agreement(truth: Sequence[Pair], both: Sequence[tuple[Pair, Pair]]) -> dict[str, float]:
    """How the votes stand to the truth, and the overall preference to help and harm."""
    mixed = [i for i, pair in enumerate(truth) if pair.better != pair.safer]
    shares = {
        "better_is_right": [dual.better == t.better for t, (dual, _) in zip(truth, both, strict=True)],
        "safer_is_right": [dual.safer == t.safer for t, (dual, _) in zip(truth, both, strict=True)],
        "overall_is_better": [one.overall == t.better for t, (_, one) in zip(truth, both, strict=True)],
        "overall_is_safer": [one.overall == t.safer for t, (_, one) in zip(truth, both, strict=True)],
        "overall_is_safer_in_conflict": [both[i][1].overall == truth[i].safer for i in mixed],
        "in_conflict": [pair.better != pair.safer for pair in truth],
    }
    return {name: float(np.mean(values)) for name, values in shares.items() if values}


def scorers(dual: Path, single: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Both scorers on held-out pairs whose labels are the truth, and their paired differences.

    The single scorer has one number for everything.
    """
    rows = [pair.exchange(k) for pair in pairs for k in (0, 1)]
    two, one = (load_scorer(folder)(rows) for folder in (dual, single))
    reward, cost = (np.array([getattr(s, head).value for s in two]) for head in ("reward", "cost"))
    overall = np.array([score.reward.value for score in one if score.reward is not None])
    prompts = [normalise_prompt(text_of(pair.prompt)) for pair in pairs]
    differ = np.array([pair.answers[0].is_safe != pair.answers[1].is_safe for pair in pairs])
    everyone = np.ones(len(pairs), dtype=bool)
    found: dict[str, Any] = {}
    for name, label, ours, chosen in (
        ("safer answer", "safer", -cost, everyone),
        ("safer answer, one of both is safe", "safer", -cost, differ),
        ("better answer", "better", reward, everyone),
    ):
        preferred = np.array([getattr(pair, label) for pair in pairs])
        right = [_right(pairs, scores, preferred) for scores in (ours, overall)]
        told = [mean_of(x, chosen, prompts, draws=DRAWS) for x in (*right, right[0] - right[1])]
        if None not in told:
            found[name] = dict(zip(("dual", "single", "difference"), map(plain, told), strict=True))
    unsafe = np.array([row.is_safe is False for row in rows])
    separation: dict[str, Callable[[Any], float]] = {
        "dual": lambda i: auroc(cost[i], unsafe[i]),
        "single": lambda i: auroc(-overall[i], unsafe[i]),
    }
    separation["difference"] = lambda i: auroc(cost[i], unsafe[i]) - auroc(-overall[i], unsafe[i])
    clusters = [prompt for prompt in prompts for _ in (0, 1)]
    found["unsafe answers, AUROC"] = {
        name: plain(bootstrap(statistic, clusters, draws=DRAWS)) for name, statistic in separation.items()
    }
    return found


def _right(pairs: Sequence[Pair], scores: Floats, preferred: Any) -> Floats:
    return PairScores(pairs, scores.reshape(-1, 2), preferred, "higher_is_better").right


def policies(base: Path, single: Path, dual: Path) -> dict[str, Any]:
    """Metrics of the three models, and how the dual policy differs from the single one, paired."""
    runs = {
        name: load_run(p)._replace(name=name)
        for name, p in (("base", base), ("single", single), ("dual", dual))
    }
    against = {name: compare(runs["base"], runs[name]).metrics for name in ("single", "dual")}
    told = compare(runs["single"], runs["dual"]).metrics
    return {
        name: {
            "base": plain(against["dual"][name].before),
            "single": plain(against["single"][name].after),
            "dual": plain(against["dual"][name].after),
            "single_from_base": plain(against["single"][name].difference),
            "dual_from_base": plain(against["dual"][name].difference),
            "difference": plain(told[name].difference),
        }
        for name in METRICS
        if name in told
    }


def measure(recipe_file: Path, runs: Path, overrides: Sequence[str], votes: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe up to the teacher, ask the raters, run the rest, and measure.

    Args:
        recipe_file: The recipe.
        runs: Folder for its runs and for the votes beside them.
        overrides: Of the recipe, as `--set` gives them.
        votes: Settings of the raters other than the rows and models.
    """
    first = load_recipe(recipe_file, overrides)
    out, place = runs / first.name, runs / f"{first.name}-votes"
    begun = {step.name: step.place for step in run_recipe(first, out, only="teacher")}
    given = {"pairs": [begun["split"] / "raters" / f"{name}.jsonl" for name in PKU], **votes}
    config = VotesConfig(teacher=begun["teacher"], model=first.settings["model"], **given)
    said = produce(place, VOTES, config, force=other(place, config))
    done = {s.name: s for s in run_recipe(load_recipe(recipe_file, [*overrides, f"votes={place}"]), out)}
    test = [p for name in PKU for p in read_records(begun["split"] / "test" / f"{name}.jsonl", Pair)]
    held_out = [pair for pair in with_better(test, begun["teacher"]) if is_known(pair)]
    at = {name: step.place for name, step in done.items()}
    return {
        "settings": config.model_dump(mode="json", exclude={"pairs", "teacher"}),
        "votes": said.manifest.notes,
        "minutes": sum(step.manifest.wall_seconds for step in done.values()) / 60,
        "rows": {name: done[f"{name}_policy"].manifest.notes["rows"] for name in ("dual", "single")},
        "held_out_pairs": len(held_out),
        "scorers": scorers(at["dual_scorer"], at["single_scorer"], held_out),
        "policies": policies(at["base"], at["single"], at["dual"]),
    }


def other(place: Path, config: VotesConfig) -> bool:
    """Whether votes that were cast under other settings lie there; they are cast again."""
    path = place / "manifest.json"
    return path.is_file() and read_manifest(path).key != identify(VOTES, config).key


VOTES = Step("dual-against-single.votes", 1, vote, config=VotesConfig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with the rows")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs lie")
    given = parser.parse_args()
    overrides = [f"data.dir={given.data}", f"bf16={str(has_bf16()).lower()}"]
    try:
        found = measure(ROOT / "recipes" / "dual-against-single.yaml", given.runs, overrides, {})
    except (EquipoiseError, RunStoppedError) as exc:
        raise SystemExit(f"error: {exc}") from exc
    print(save("dual_against_single", found).relative_to(ROOT))


if __name__ == "__main__":
    main()
