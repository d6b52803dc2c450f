"""The step that evaluates with the models that its settings name. Loads torch when it runs, not before."""

from pathlib import Path

from equipoise.evaluation.rows import STEP_NAME
from equipoise.evaluation.run import (
    STEP_VERSION,
    EvaluateConfig,
    assess,
    respond,
    suite_of,
    take,
)
from equipoise.lineage import Run, Step


def evaluate_models(config: EvaluateConfig, run: Run) -> None:
    """Read the suite and load the judges, which are checked before anything is written, then the model.

    The model that responds, if one does, is gone before its responses are judged.
    """
    from equipoise.generation.local import load_generator
    from equipoise.judges.rules import load_rules
    from equipoise.moderation.guard import load_guard
    from equipoise.moderation.refusal import PrefixRefusals
    from equipoise.rewards.learned import load_scorer

    prompts = suite_of(config)  # what is wrong with it is said before models are loaded
    guard = load_guard(Path(config.guard))
    scorer = load_scorer(Path(config.scorer)) if config.scorer else None
    rules = None
    if config.rules is not None:
        beside = Path(config.scorer) if config.scorer else None
        rules = load_rules(config.rules, scorer=beside, alone=True)  # the rows hold the reward already
        rules.type_of([prompt.exchange("") for prompt in prompts])
    refusals = guard.refusals if config.refusals == "classifier" else PrefixRefusals()
    if config.model is None:
        responses = take(config, run)
    else:
        responses = respond(config, run, load_generator(config.model, batch_size=config.batch_size))
    explain = rules.explain if rules else None
    assess(config, run, responses, judge=guard, refusals=refusals, scorer=scorer, rules=explain)


EVALUATE = Step(STEP_NAME, STEP_VERSION, evaluate_models, config=EvaluateConfig)
