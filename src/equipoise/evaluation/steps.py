"""The step that evaluates with the models that its settings name. Loads torch when it runs, not before."""

from pathlib import Path

from equipoise.evaluation.rows import STEP_NAME
from equipoise.evaluation.run import STEP_VERSION, EvaluateConfig, assess, respond, suite_of, take
from equipoise.lineage import Run, Step


def evaluate_models(config: EvaluateConfig, run: Run) -> None:
    """Read the suite and load the judges, which are checked before anything is written, then the model.

    The model that responds, if one does, is gone before its responses are judged.
    """
    from equipoise.generation.local import load_generator
    from equipoise.moderation.guard import load_guard
    from equipoise.moderation.refusal import PrefixRefusals
    from equipoise.rewards.learned import load_scorer

    suite_of(config)  # what is wrong with it is said before models are loaded
    guard = load_guard(Path(config.guard))
    scorer = load_scorer(Path(config.scorer)) if config.scorer else None
    refusals = guard.refusals if config.refusals == "classifier" else PrefixRefusals()
    if config.model is None:
        responses = take(config, run)
    else:
        responses = respond(config, run, load_generator(config.model, batch_size=config.batch_size))
    assess(config, run, responses, judge=guard, refusals=refusals, scorer=scorer)


EVALUATE = Step(STEP_NAME, STEP_VERSION, evaluate_models, config=EvaluateConfig)
