"""How well a scorer orders and signs answers that it has not seen, fold by fold, beside TF-IDF.

    python benchmarks/scorer_folds.py --data DIR [--scorers smollm2-135m mpnet] [--runs DIR]
    python benchmarks/scorer_folds.py --data DIR --scorers mpnet --tune top --folds 1 [--set optim.epochs=2]
    python benchmarks/scorer_folds.py --data DIR --scorers smollm2-135m mpnet --tune top --seeds 0 1 --join
    python benchmarks/scorer_folds.py --data DIR --scorers mpnet --splits "pku, by prompt" --share 0.25

Five folds, each scored by what learned from the others: `train scorer`, and the baseline of `evaluate
detection` (TF-IDF with logistic regression: a ranker for the order, a classifier for the sign), on the same
rows. Order is the share of pairs whose less safe answer has the higher cost; sign is the AUROC of the cost of
unsafe against safe answers. Intervals are 95 %, from resampling whole prompts.

The folds are drawn so that no prompt is on two sides. For the PKU rows they are drawn pair by pair as well:
there 480 prompts have 1,503 pairs and answers come in several of them, so that much of what is scored stands
in the training part too, which the result counts. This way measures memory. It stands beside the other to
show by how much, and is no result. `pku, by prompt, beside safe answers` has the same folds; there all learn
from single safe answers too, of `pku_saferlhf_safe_sft`, to prompts of which the fold scores none.

`--share` learns from the rows to a share of the prompts, scorer and baseline alike, and scores the same ones.
`--join` measures the scorers of a call together as well: the mean of their costs, each over its spread among
all answers (`models ensemble --cost mean` measures it on answers of the training pairs). What is done is not
done again; a training that was killed goes on.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import common
import numpy as np
from common import ROOT, save
from scorer_folds_split import AT_RANDOM, FOLDS, SPLITS, Split, read_split, seen_before
from scorer_folds_steps import FEATURES, FOLD, FeaturesConfig, FoldConfig, Scores, read_scores

from equipoise.config import Config, apply_override, parse_override
from equipoise.data.io import read_records, write_records
from equipoise.errors import DataError, EquipoiseError, RunStoppedError
from equipoise.evaluation.pair_scores import PairScores
from equipoise.lineage import Manifest, Step, identify, produce
from equipoise.records import Exchange, Pair
from equipoise.stats import Estimate, Floats, Indices, auroc, bootstrap, bootstrap_mean, paired_difference

DRAWS = 2000
SCORERS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"backbone": "smollm2-135m", "depth": 20, "layers": 4},
    "mpnet": {"backbone": "mpnet"},
    "minilm": {"backbone": "minilm"},
    "qwen2.5-coder-1.5b": {
        "backbone": "qwen2.5-coder-1.5b",
        "depth": 20,
        "layers": 4,
        "optim": {"bf16": True},
    },
}
"""Settings of `train scorer`; the first was chosen by cross-validation on other rows of this kind."""
UPPER_HALF = {"smollm2-135m": 10, "mpnet": 6, "minilm": 3, "qwen2.5-coder-1.5b": 10}
"""Layers that learn with `--tune top`, of those that are run."""
TUNED = {"lr": 1e-4, "head_lr": 1e-3, "epochs": 2}


def done(folder: Path, step: Step, config: Config) -> tuple[Path, Manifest]:
    """Run a step into a folder of its own, named by what decides its result."""
    identity = identify(step, config)
    place = folder / identity.key[:12]
    return place, produce(place, step, config, identity=identity).manifest


def written(place: Path, records: Sequence[Pair] | Sequence[Exchange], kind: type[Any] = Pair) -> Path:
    """Write records where they do not stand already; a run is known by what its inputs hold."""
    if not place.exists() or list(read_records(place, kind)) != list(records):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_records(place, records)
    return place


class Folds(NamedTuple):
    """What came of some folds."""

    places: Indices
    """Of the pairs that were scored, fold by fold."""
    scores: Scores
    took: dict[str, float]


def run_folds(split: Split, folder: Path, count: int, scorer: Mapping[str, Any] | None) -> Folds:
    """Score the first `count` folds.

    Args:
        split: The rows.
        folder: Where the runs of this split lie.
        count: Of the folds.
        scorer: Settings of `train scorer`; the baseline where None.
    """
    features, steps = None, []
    kind = {} if scorer is None else {"trunk": "pooled", "tune": "frozen", **scorer}
    if (kind.get("trunk"), kind.get("tune")) == ("pooled", "frozen"):
        given = {name: kind[name] for name in ("backbone", "depth", "layers") if name in kind}
        everything = written(folder / "all.jsonl", split.pairs)
        single = written(folder / "beside.jsonl", split.beside, Exchange) if split.beside else None
        dtype = "bfloat16" if kind.get("optim", {}).get("bf16") else "auto"
        config = FeaturesConfig(pairs=everything, exchanges=single, dtype=dtype, **given)
        features, manifest = done(folder.parent / "features", FEATURES, config)
        steps.append(manifest)
    parts = []
    for k in range(count):
        fold = FoldConfig(
            **parts_of(split, folder, k), features=features, scorer=None if scorer is None else dict(scorer)
        )
        place, manifest = done(folder / ("tfidf" if scorer is None else "scorer"), FOLD, fold)
        steps.append(manifest)
        parts.append(read_scores(place))
    took = {
        name: round(sum(getattr(step, name) for step in steps), 1) for name in ("wall_seconds", "cpu_seconds")
    }
    scores = Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return Folds(np.concatenate([test for _, test in split.folds[:count]]), scores, took)


def joined(members: Sequence[Folds]) -> Folds:
    """The mean of what several scorers say, each over its spread among all answers; no label is looked at."""
    order, sign = (
        np.mean([column / column.std() for column in columns], axis=0)
        for columns in zip(*(member.scores for member in members), strict=True)
    )
    took = {name: round(sum(m.took[name] for m in members), 1) for name in members[0].took}
    return Folds(members[0].places, Scores(order, sign), took)


def parts_of(split: Split, folder: Path, k: int) -> dict[str, Path]:
    """Files of the pairs to learn from and to score, and of single answers to learn from where there are."""
    found = {
        part: written(folder / f"{part}-{k}.jsonl", [split.pairs[i] for i in rows])
        for part, rows in zip(("train", "test"), split.folds[k], strict=True)
    }
    if split.beside:
        found["beside"] = written(folder / f"beside-{k}.jsonl", split.learned_beside(k), Exchange)
    return found


def compared(split: Split, places: Indices, ours: Scores, theirs: Scores) -> dict[str, Any]:
    """Order and sign of both, and their differences on the same rows."""
    names = split.prompts
    pairs, prompts = [split.pairs[i] for i in places], [names[i] for i in places]
    safer = np.array([pair.safer if pair.safer in (0, 1) else -1 for pair in pairs])
    rows = np.flatnonzero(np.array([split.is_ordered[i] for i in places]) & (safer >= 0))
    mine, other = (
        PairScores(pairs, side.order, safer, "higher_is_worse").right[rows] for side in (ours, theirs)
    )
    clusters = [prompts[i] for i in rows]
    found = {
        "ordering": {
            "scorer": plain(bootstrap_mean(mine, clusters, draws=DRAWS)),
            "tfidf": plain(bootstrap_mean(other, clusters, draws=DRAWS)),
            "difference": plain(paired_difference(mine, other, clusters, draws=DRAWS)),
        }
    }
    labels = [answer.is_safe for pair in pairs for answer in pair.answers]
    ordered = np.repeat([split.is_ordered[i] for i in places], 2)
    known = np.array([label is not None for label in labels])
    for name, chosen in (("sign", known), ("sign_of_the_pairs_in_order", known & ordered)):
        at = np.flatnonzero(chosen)
        if len(at):
            unsafe = np.array([not labels[i] for i in at])
            sides = [side.sign.ravel()[at] for side in (ours, theirs)]
            found[name] = separation(sides, unsafe, [prompts[i // 2] for i in at])
    return found


def separation(sides: Sequence[Floats], unsafe: Any, clusters: Sequence[str]) -> dict[str, Any]:
    """AUROC of both sides and their difference."""
    x, y = sides
    statistics: dict[str, Callable[[Indices], float]] = {
        "scorer": lambda i: auroc(x[i], unsafe[i]),
        "tfidf": lambda i: auroc(y[i], unsafe[i]),
        "difference": lambda i: auroc(x[i], unsafe[i]) - auroc(y[i], unsafe[i]),
    }
    return {name: plain(bootstrap(one, clusters, draws=DRAWS)) for name, one in statistics.items()}


def plain(estimate: Estimate) -> dict[str, float]:
    return estimate._asdict()


def settings_of(name: str, tune: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Settings of `train scorer` for one scorer."""
    settings = SCORERS[name] | {"on_contradiction": "drop", "tune": tune}
    if tune == "top":
        settings |= {"top_layers": UPPER_HALF[name], "optim": dict(TUNED)}
    for item in overrides:
        apply_override(settings, *parse_override(item))
    return settings


def measure(
    data: Path,
    runs: Path,
    scorers: Mapping[str, Mapping[str, Any]],
    name: str,
    count: int,
    *,
    share: float = 1.0,
    join: bool = False,
) -> dict[str, Any]:
    """Measure scorers on a split, and save after each; what was saved before stays.

    Args:
        data: Folder with the files.
        runs: Where the runs lie.
        scorers: Name -> settings.
        name: Of the split.
        count: Of the folds that are scored, from the first.
        share: Of the prompts to learn from, that are learned from.
        join: Whether all scorers together are measured too.
    """
    found, part = earlier(), "" if share == 1 else f"-share-{share:g}"
    split = read_split(data, name)
    folder = runs / (name.replace(", ", "-").replace(" ", "-") + part)
    told = found["splits"].setdefault(name, {})
    told |= {
        "pairs": len(split.pairs),
        "prompts": len(set(split.prompts)),
        "to_be_ordered": seen_before(split),
        **({"beside": len(split.beside)} if split.beside else {}),
        **({} if SPLITS[name].by_prompt else {"note": AT_RANDOM}),
    }
    learned = [len(train) for train, _ in split.folds[:count]]
    split = split.with_share(share)
    kept = [len(train) for train, _ in split.folds[:count]]
    if not all(kept):
        raise DataError(f"--share: got {share:g}, which leaves a fold nothing to learn from; expected more")
    peer = run_folds(split, folder, count, None)
    told.setdefault("tfidf_took", {})[f"{count} folds{part}"] = peer.took

    def keep(label: str, settings: Mapping[str, Any], ours: Folds) -> None:
        measured = compared(split, ours.places, ours.scores, peer.scores)
        how = {"settings": settings, "folds": count, "took": ours.took, "machine": common.machine()}
        how |= {} if share == 1 else {"pairs_of_a_fold": round(fmean(kept)), "of": round(fmean(learned))}
        told.setdefault("scorers", {})[label] = how | measured
        save("scorer_folds", found)
        print(json.dumps({name: {label: measured}}), flush=True)

    members = []
    for label, settings in scorers.items():
        members.append(run_folds(split, folder, count, settings))
        keep(label, settings, members[-1])
    if join:
        keep(" + ".join(scorers), {"mean_of": list(scorers)}, joined(members))
    return found


def earlier() -> dict[str, Any]:
    """What was saved before, without what it was measured on."""
    path = common.RESULTS / "scorer_folds.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    found.pop("machine", None)
    return {"splits": {}} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the rows")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "scorer-folds", help="where runs lie")
    parser.add_argument("--scorers", nargs="+", choices=SCORERS, default=["smollm2-135m", "mpnet"])
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--tune", choices=("frozen", "top", "full"), default="frozen")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each scorer with each of them")
    parser.add_argument("--join", action="store_true", help="measure the scorers together too")
    parser.add_argument("--folds", type=int, choices=range(1, FOLDS + 1), default=FOLDS)
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts to learn from, 0..1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of `train scorer`")
    given = parser.parse_args()
    if given.join and len(given.scorers) * len(given.seeds) < 2:
        parser.error("--join: got one scorer; expected two at least (--scorers, --seeds)")
    if not 0 < given.share <= 1:
        parser.error(f"--share: got {given.share:g}; expected above 0, and at most 1")
    if given.share < 1 and any(SPLITS[name].beside for name in given.splits):
        parser.error("--share: goes not with single answers beside the pairs; choose other --splits")
    words = [given.tune, *given.set, *([f"{given.folds} of {FOLDS} folds"] if given.folds < FOLDS else [])]
    words += [f"share {given.share:g}"] if given.share < 1 else []
    scorers = {
        ", ".join([name, *words, *own]): settings_of(name, given.tune, [*given.set, *own])
        for seed in given.seeds
        for own in [[f"optim.seed={seed}"] if seed else []]
        for name in given.scorers
    }
    try:
        for split in given.splits:
            measure(given.data, given.runs, scorers, split, given.folds, share=given.share, join=given.join)
    except (EquipoiseError, RunStoppedError) as exc:
        raise SystemExit(f"error: {exc}") from exc


if __name__ == "__main__":
    main()
