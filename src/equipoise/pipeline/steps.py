"""What a recipe can do: the names of steps, and where each lies."""

import importlib

from equipoise.lineage import Step

STEPS = {
    "data.import": "equipoise.data.steps:IMPORT",
    "data.check": "equipoise.data.steps:CHECK",
    "data.split": "equipoise.data.steps:SPLIT",
    "data.merge": "equipoise.data.steps:MERGE",
    "data.prompts": "equipoise.data.prompts:PROMPTS",
    "data.export": "equipoise.data.export.run:EXPORT",
    "data.stats": "equipoise.data.steps:STATS",
    "data.card": "equipoise.data.steps:CARD",
    "annotate.judge": "equipoise.judges.run:JUDGE",
    "curate.dedup": "equipoise.curation.steps:DEDUP",
    "prompts.expand": "equipoise.pipeline.factory:EXPAND",
    "prompts.refine": "equipoise.pipeline.cleaning:REFINE",
    "prompts.coverage": "equipoise.pipeline.factory:COVERAGE",
    "generate": "equipoise.pipeline.guarded:GENERATE",
    "responses.select": "equipoise.pipeline.cleaning:SELECT",
    "annotate.consensus": "equipoise.annotation.steps:CONSENSUS",
    "annotate.agreement": "equipoise.annotation.steps:AGREEMENT",
    "annotate.sample": "equipoise.annotation.sample:SAMPLE",
    "annotate.export": "equipoise.annotation.people:EXPORT",
    "annotate.import": "equipoise.annotation.people:IMPORT",
    "annotate.route": "equipoise.annotation.route:ROUTE",
    "train.guard": "equipoise.training.guard:TRAIN_GUARD",
    "guard.calibrate": "equipoise.pipeline.calibrate:CALIBRATE",
    "train.scorer": "equipoise.training.scorer:TRAIN_SCORER",
    "train.sft": "equipoise.training.sft:TRAIN_SFT",
    "train.mixture": "equipoise.training.mixture_run:TRAIN_MIXTURE",
    "train.rules": "equipoise.pipeline.rules:TRAIN_RULES",
    "models.ensemble": "equipoise.rewards.ensemble:ENSEMBLE",
    "models.merge": "equipoise.models.merge:MERGE",
    "score": "equipoise.rewards.batch:SCORE",
    "one-shot": "equipoise.pipeline.one_shot:ONE_SHOT",
    "train.preference": "equipoise.training.preference:TRAIN_PREFERENCE",
    "train.ppo_lag": "equipoise.pipeline.online:TRAIN_PPO_LAG",
    "train.group_lag": "equipoise.pipeline.online:TRAIN_GROUP_LAG",
    "evaluate": "equipoise.evaluation.steps:EVALUATE",
    "evaluate.compare": "equipoise.evaluation.compare_run:COMPARE",
    "evaluate.certify": "equipoise.evaluation.certify_run:CERTIFY",
    "evaluate.front": "equipoise.evaluation.front_run:FRONT",
    "evaluate.detection": "equipoise.evaluation.detection:DETECTION",
    "evaluate.scorer": "equipoise.evaluation.scorer_run:SCORER_QUALITY",
    "report": "equipoise.evaluation.report.build:REPORT",
}
"""Name in a recipe -> where the step lies; imported when it is used, since some need torch."""


def step_of(name: str) -> Step:
    """Import the step behind a name of STEPS."""
    module, attribute = STEPS[name].split(":")
    step: Step = getattr(importlib.import_module(module), attribute)
    return step
