"""`train rules`: graders from answers labelled by proposition, then weights from answers of known class."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, JsonValue, model_validator

from equipoise.config import Config, InputPath, IsInput, ModelRef
from equipoise.data.corpus import corpus
from equipoise.data.io import read_records
from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.evaluation.files import write_json
from equipoise.generation.endpoint_options import EndpointOptionScorer
from equipoise.generation.sources import Device
from equipoise.judges.propositions import PropositionGrader
from equipoise.judges.rules import AskedOf, RulesCard, TrainedBy, asking, scorer_reward
from equipoise.lineage import Run, Step, content_hash, write_text
from equipoise.models.checkpoints import save_card
from equipoise.records import Exchange, Prompt, text_of
from equipoise.rewards.completions import class_of, load_templates
from equipoise.rewards.rule_fit import RankedAnswers, fit_weights, in_order, ordered_pairs, totals
from equipoise.rewards.rules import Grader, RuleSet, load_rule_set
from equipoise.stats import Estimate, bootstrap_mean, paired_difference


class RulesConfig(Config):
    """Settings of `train rules`."""

    rules: Annotated[str, IsInput()] = "style"
    """Propositions and response types: `style`, or a YAML file."""
    exchanges: tuple[InputPath, ...] = ()
    """Answers with `provenance.propositions`, which train the graders."""
    judge: AskedOf | None = None
    """A language model that grades instead; nothing is trained then but the weights."""
    completions: tuple[InputPath, ...] = ()
    """Answers with `provenance.class`, several to a prompt; where empty, those of the built-in templates."""
    prompts: Annotated[int, Field(ge=4)] = 100
    """Built-in prompts that these are answers to, half of them harmless as far as there are."""
    hold_back_wordings: bool = False
    """Measure the fit on built-in sentences in other wordings too, and not on other prompts only."""
    scorer: InputPath | None = None
    """Whose reward the rules are added to."""
    backbone: ModelRef = "minilm"
    layers: Annotated[int, Field(ge=1)] = 6
    """Layers that are pooled, as in `train scorer`."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the prompts of completions that only measure the fit."""
    keep_signs: bool = False
    """What an ideal answer must have is worth 0 or more, what it must not 0 or less, the rest nothing."""
    margin: Annotated[float, Field(gt=0)] = 1.0
    """By how much the better of two answers should score higher."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    steps: Annotated[int, Field(ge=1)] = 1000
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    seed: int = 0
    device: Device = "auto"

    @model_validator(mode="after")
    def _one_grader(self) -> Self:
        if bool(self.exchanges) == (self.judge is not None):
            got = "both" if self.exchanges else "none"
            raise ValueError(f"expected one of exchanges, to train graders, and judge, got {got}")
        return self


def train_rules(config: RulesConfig, run: Run) -> None:
    """Write graders, weights, `rules.json` with what both are worth, and the card.

    Raises:
        DataError: Labels or classes are missing, or too few prompts.
    """
    rules = load_rule_set(config.rules)
    fitted, held = _completions(config, rules)
    scores: dict[str, float] = {}
    grader: Grader
    kind: TrainedBy | AskedOf
    if config.judge is None:
        grader, kind, scores = _train_grader(config, rules, run)
    else:
        blank = RulesCard(rules=rules, grader=config.judge, weights={})
        grader, kind = asking(blank, config.device, run.scratch / "journal.jsonl"), config.judge
    reward = None if config.scorer is None else scorer_reward(config.scorer, config.device)

    def ranked(exchanges: Sequence[Exchange]) -> RankedAnswers:
        return RankedAnswers(
            np.asarray(grader(exchanges)),
            np.array([-s.harm for s in reward(exchanges)]) if reward else np.zeros(len(exchanges)),
            [class_of(e) for e in exchanges],
            [rules.type_of(e) for e in exchanges],
            [_prompt(e) for e in exchanges],
        )

    fit = fit_weights(
        ranked(fitted),
        rules,
        keep_signs=config.keep_signs,
        margin=config.margin,
        lr=config.lr,
        steps=config.steps,
        weight_decay=config.weight_decay,
    )
    order = measure_order(ranked(held), fit.weights)
    run.licences |= {e.licence for e in (*fitted, *held)}
    beside = None if config.scorer is None else content_hash(config.scorer)
    card = RulesCard(rules=rules, grader=kind, weights=fit.weights, reward=beside)
    save_card(run.out, card)
    told = {"f1": scores, "order": order, "pairs": fit.pairs, "loss": fit.loss}
    write_json(run.out / "rules.json", told)
    run.notes |= {"held_back_pairs_in_order": str(order["all"]["total"]), "pairs": sum(fit.pairs.values())}
    run.notes |= _usage(grader, config.judge)
    write_text(run.card, _card(card, scores, order, run.licences))


def _usage(grader: Grader, judge: AskedOf | None) -> dict[str, JsonValue]:
    """Return what a server's grades took, as a note; nothing where no server was asked."""
    if judge is None or judge.endpoint is None:
        return {}
    assert isinstance(grader, PropositionGrader)
    assert isinstance(grader.scorer, EndpointOptionScorer)
    return {"usage": grader.scorer.take_usage().note(judge.endpoint.price_of(judge.model))}


def measure_order(ranked: RankedAnswers, weights: dict[str, list[float]]) -> dict[str, dict[str, Estimate]]:
    """Share of ordered pairs that are in order: by the total, by the reward alone, and the difference.

    Over all response types and for each; intervals from resampling whole prompts.
    """
    pairs = ordered_pairs(ranked)
    by_total, by_reward = in_order(ranked, totals(ranked, weights)), in_order(ranked, ranked.rewards)
    types = np.array(ranked.response_types)[pairs.better]
    prompts = [ranked.prompts[i] for i in pairs.better]
    found = {}
    for name in ("all", *weights):
        mine = np.flatnonzero((types == name) | (name == "all"))
        whose = [prompts[i] for i in mine]
        found[name] = {
            "total": bootstrap_mean(by_total[mine], whose, draws=2000),
            "reward_alone": bootstrap_mean(by_reward[mine], whose, draws=2000),
            "difference": paired_difference(by_total[mine], by_reward[mine], whose, draws=2000),
        }
    return found


def _prompt(exchange: Exchange) -> str:
    return normalise_prompt(text_of(exchange.prompt))


def _completions(config: RulesConfig, rules: RuleSet) -> tuple[list[Exchange], list[Exchange]]:
    """Return answers of known class to prompts for the fit, and to others that measure it."""
    if config.completions:
        given = [e for path in config.completions for e in read_records(path, Exchange)]
        kept = _kept_back(sorted({_prompt(e) for e in given}), config)
        return [e for e in given if _prompt(e) not in kept], [e for e in given if _prompt(e) in kept]
    prompts = built_in_prompts(config.prompts)
    kept = _kept_back(sorted(prompts), config)
    templates = load_templates(config.rules)
    fitted = [prompt for text, prompt in prompts.items() if text not in kept]
    held = [prompt for text, prompt in prompts.items() if text in kept]
    return (
        templates.write(fitted, rules, seed=config.seed),
        templates.write(held, rules, held_back=config.hold_back_wordings, seed=config.seed),
    )


def built_in_prompts(count: int) -> dict[str, Prompt]:
    """Return prompts of the built-in exchanges by their text; those for evaluation are not among them.

    Up to half of them are harmless.
    """
    kinds: dict[bool, dict[str, Prompt]] = {True: {}, False: {}}
    for exchange in corpus("exchanges"):
        assert isinstance(exchange, Exchange)
        prompt = Prompt(
            id=exchange.id,
            source=exchange.source,
            licence=exchange.licence,
            prompt=exchange.prompt,
            is_harmful=exchange.prompt_is_harmful,
        )
        kinds[bool(prompt.is_harmful)].setdefault(_prompt(exchange), prompt)
    harmless = list(kinds[False].items())[: count // 2]
    return dict(list(kinds[True].items())[: count - len(harmless)] + harmless)


def _kept_back(prompts: Sequence[str], config: RulesConfig) -> set[str]:
    count = round(config.held_out * len(prompts))
    if not 0 < count < len(prompts):
        raise DataError(
            f"completions: of {len(prompts)} prompts {count} would be held back; expected more prompts"
        )
    chosen = np.random.default_rng(config.seed).permutation(len(prompts))[:count]
    return {prompts[i] for i in chosen}


def _train_grader(
    config: RulesConfig, rules: RuleSet, run: Run
) -> tuple[Grader, TrainedBy, dict[str, float]]:
    from equipoise.models.backbone import load_encoder
    from equipoise.rewards.answer_features import Features, fit_reader
    from equipoise.rewards.grading import answer_groups, fit_heads
    from equipoise.rewards.trained_grader import TrainedGrader

    exchanges = [e for path in config.exchanges for e in read_records(path, Exchange)]
    if not exchanges:
        raise DataError("exchanges: none; expected answers that are labelled by proposition")
    labels = np.array([rules.labels(e) for e in exchanges])
    run.licences |= {e.licence for e in exchanges}
    run.notes["rows"] = len(exchanges)
    backbone = load_encoder(config.backbone, device=config.device)
    features, answers = Features(backbone, config.layers), [e.response for e in exchanges]
    found = features(exchanges)
    reader = fit_reader(found, answers)
    heads, scores = fit_heads(reader(found, answers), labels, answer_groups(exchanges))
    grader = TrainedGrader(features, reader, heads)
    grader.save(run.out)
    kind = TrainedBy(backbone=str(backbone.model.name_or_path), layers=config.layers)
    return grader, kind, dict(zip(rules.names, scores, strict=True))


def _card(
    card: RulesCard, scores: dict[str, float], order: dict[str, dict[str, Estimate]], licences: Iterable[str]
) -> str:
    rules, weights, graded = card.rules, card.weights, card.grader
    who = f"heads on {graded.backbone}" if isinstance(graded, TrainedBy) else graded.model
    lines = [f"# Rules '{rules.name}', version {rules.version}, graded by {who}", ""]
    lines += ["A reward: higher is better. What each proposition adds, by response type:", ""]
    lines += [f"| proposition | {' | '.join(weights)} | F1 |", "|---|" + "---|" * (len(weights) + 1)]
    for place, name in enumerate(rules.names):
        each = " | ".join(f"{column[place]:+.2f}" for column in weights.values())
        score = scores.get(name, float("nan"))
        lines += [f"| {name} | {each} | {'' if np.isnan(score) else f'{score:.2f}'} |"]
    lines += ["", "| held-back pairs in order | reward and rules | reward alone |", "|---|---|---|"]
    lines += [f"| {name} | {found['total']} | {found['reward_alone']} |" for name, found in order.items()]
    lines += ["", f"Licences: {', '.join(sorted(licences))}.", "", "## Limits", ""]
    if isinstance(graded, TrainedBy):
        lines += [
            "F1 is by cross-validation over prompts, with threshold and shares chosen on the same answers. A"
        ]
        lines += ["proposition without F1 had too few labels, and is taken to be false."]
    else:
        lines += [
            "A grade is the probability of yes to the question of a proposition; how often the model is"
        ]
        lines += ["right was not measured."]
    lines += ["Held-back pairs are of the same kind as those of the fit: they do not say how a policy's own"]
    lines += ["answers are ordered.", ""]
    return "\n".join(lines)


TRAIN_RULES = Step("train.rules", 4, train_rules, config=RulesConfig)
