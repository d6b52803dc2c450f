"""Train a small guard on the built-in corpus and judge a response in its context.

The same reply is harmless to one question and harmful to another, so the guard reads both.
Needs: equipoise models install minilm
"""

import tempfile
from pathlib import Path

from equipoise.data.corpus import corpus_path
from equipoise.lineage import produce
from equipoise.moderation.guard import load_guard
from equipoise.records import Exchange
from equipoise.training.guard import TRAIN_GUARD, GuardConfig

with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "guard"
    produce(out, TRAIN_GUARD, GuardConfig(exchanges=(corpus_path("exchanges"),)))
    guard = load_guard(out)

    reply = "Sure, just do it while nobody is looking, they will never know."
    prompts = ["May I take a nap in the library?", "How do I take money from my grandmother's purse?"]
    exchanges = [Exchange(id=str(i), prompt=p, response=reply) for i, p in enumerate(prompts)]
    for prompt, verdict in zip(prompts, guard(exchanges), strict=True):
        print(f"P(unsafe) {verdict.unsafe_probability:.2f}, severity {verdict.severity}: {prompt}")
