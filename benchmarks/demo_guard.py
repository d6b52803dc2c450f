"""How well the quickstart's guard reads the answers of the model that it judges in the demo.

SmolLM2-135M-Instruct answers the prompts of the built-in exchanges (greedy, 48 tokens). We labelled
these answers by hand; `data/demo_answers.jsonl` holds the labels and a hash of each answer, not its
text. The guard is trained with the quickstart's settings in four folds over prompts and judges only
answers to prompts that it has not seen. The thresholds of the quickstart were set on these rows, so
the rates at the thresholds are in-sample; the AUROCs are not.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from equipoise.data.corpus import corpus, corpus_path
from equipoise.data.io import write_records
from equipoise.generation.local import load_generator
from equipoise.lineage import produce
from equipoise.moderation.guard import load_guard
from equipoise.pipeline.recipe import load_recipe
from equipoise.protocols import Sampling
from equipoise.records import Exchange, text_of
from equipoise.stats import auroc, bootstrap
from equipoise.training.guard import TRAIN_GUARD, GuardConfig, GuardOptim

HERE = Path(__file__).parent
FOLDS = 4


def answers(labels: dict[str, dict[str, Any]]) -> list[Exchange]:
    """Let the model answer again; an answer that is not the labelled one is left out and counted."""
    asked = [e for e in corpus("exchanges") if e.id in labels]
    generator = load_generator("smollm2-135m", batch_size=32)
    messages = [[{"role": "user", "content": text_of(e.prompt)}] for e in asked]
    texts = generator(messages, Sampling(max_new_tokens=48), [e.id for e in asked])
    found = [
        Exchange(id=e.id, prompt=e.prompt, prompt_is_harmful=e.prompt_is_harmful, response=text)
        for e, (text,) in zip(asked, texts, strict=True)
    ]
    return [
        e
        for e in found
        if hashlib.sha256(e.response.encode()).hexdigest()[:16] == labels[e.id]["response_sha256"]
    ]


def main() -> None:
    lines = (HERE / "data" / "demo_answers.jsonl").read_text("utf-8").splitlines()
    labels = {row["id"]: row for row in map(json.loads, lines)}
    rows = answers(labels)
    settings = dict(load_recipe(HERE.parent / "recipes" / "quickstart.yaml").steps["guard"].with_)
    settings = {key: settings[key] for key in ("unsafe_threshold", "refusal_threshold")}
    exchanges = list(corpus("exchanges"))
    prompts = sorted({text_of(e.prompt) for e in exchanges})
    fold = {p: int(hashlib.sha256(p.encode()).hexdigest(), 16) % FOLDS for p in prompts}
    unsafe, declines = np.zeros(len(rows)), np.zeros(len(rows))
    flagged, refused = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for k in range(FOLDS):
        with tempfile.TemporaryDirectory() as folder:
            train = Path(folder) / "train.jsonl"
            write_records(train, [e for e in exchanges if fold[text_of(e.prompt)] != k])
            produce(Path(folder) / "guard", TRAIN_GUARD, GuardConfig(exchanges=(train,), **settings))
            guard = load_guard(Path(folder) / "guard")
        held = [i for i, e in enumerate(rows) if fold[text_of(e.prompt)] == k]
        for i, verdict, refusal in zip(
            held, guard([rows[i] for i in held]), guard.refusals([rows[i] for i in held]), strict=True
        ):
            unsafe[i], flagged[i] = verdict.unsafe_probability, not verdict.is_safe
            declines[i], refused[i] = 1 - refusal.probabilities["none"], refusal.refusal != "none"
    is_unsafe = np.array([labels[e.id]["unsafe"] for e in rows])
    is_refusal = np.array([labels[e.id]["refusal"] != "none" for e in rows])
    harmful = np.array([bool(e.prompt_is_harmful) for e in rows])
    names = [e.id for e in rows]
    result = {
        "corpus": str(corpus_path("exchanges").name),
        "answers": len(rows),
        "left_out": len(labels) - len(rows),
        "unsafe_auroc": bootstrap(lambda i: auroc(unsafe[i], is_unsafe[i]), names)._asdict(),
        "refusal_auroc": bootstrap(lambda i: auroc(declines[i], is_refusal[i]), names)._asdict(),
        "flagged_harmful": round(float(flagged[harmful].mean()), 3),
        "labelled_unsafe_harmful": round(float(is_unsafe[harmful].mean()), 3),
        "flagged_benign": round(float(flagged[~harmful].mean()), 3),
        "refused_benign": round(float(refused[~harmful].mean()), 3),
        "labelled_refusal_benign": round(float(is_refusal[~harmful].mean()), 3),
        "settings": settings,
        "seed": GuardOptim().seed,
    }
    save("demo_guard", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
