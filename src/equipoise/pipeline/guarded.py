"""`generate` with a guard behind the model, a scorer or rules to choose by, or both."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from equipoise.config import InputPath, IsInput
from equipoise.errors import ConfigError, DataError
from equipoise.extras import require
from equipoise.generation import batch
from equipoise.generation.batch import GenerateConfig
from equipoise.generation.best_of import BestOf
from equipoise.generation.sources import Asked, Draw
from equipoise.lineage import Run
from equipoise.moderation.default import GuardPath
from equipoise.moderation.guarded import REFUSAL_TEXT, Guarding, Method
from equipoise.protocols import Reward, Verdict
from equipoise.records import Exchange, text_of
from equipoise.rewards.rules import RESPONSE_TYPE

if TYPE_CHECKING:
    from equipoise.moderation.guard import Guard
    from equipoise.moderation.policies import Policy
    from equipoise.rewards.rules import RuleSet, TypeOf


class GuardedGenerateConfig(GenerateConfig):
    """Settings of `generate`."""

    guard: GuardPath | None = None
    """A trained guard: it lets answers through, or none."""
    policy: Annotated[str, IsInput()] | None = None
    """Decides what is safe: the name of one of the guard's, or a YAML file; its default one where None."""
    guarded: Method = "best_of_n"
    """best_of_n draws all tries and takes the best safe one; reject takes the first safe one."""
    tries: Annotated[int, Field(ge=1)] = 4
    """Draws for one answer, where something chooses among them."""
    refusal_text: str = REFUSAL_TEXT
    """The answer where no try is safe."""
    scorer: InputPath | None = None
    """Of the safe tries the one with the highest reward is taken, of all tries where there is no guard;
    without a reward, the one with the least P(unsafe)."""
    rules: InputPath | None = None
    """A folder of `train rules`, added to the reward. The guard says which prompts ask for harm; without one
    each row says it itself, by `is_harmful`. A row's `provenance.response_type` stands above both."""

    @model_validator(mode="after")
    def _guard_can_choose(self) -> Self:
        chooses = any((self.guard, self.scorer, self.rules))
        if not chooses and "tries" in self.changed:
            raise ValueError("tries: nobody chooses; expected a guard, a scorer or rules beside it")
        if self.guard is None:
            for name in ("policy", "guarded", "refusal_text"):
                if name in self.changed:
                    raise ValueError(f"{name}: nothing is refused; expected a guard beside it")
        if chooses and self.sampling.temperature == 0 and self.tries > 1:
            raise ValueError(
                f"tries: {self.tries} greedy tries are all the same; "
                "expected sampling.temperature above 0, or tries=1"
            )
        for name in ("scorer", "rules"):
            if getattr(self, name) is not None and self.guarded == "reject":
                raise ValueError(f"{name}: reject takes the first safe answer; expected guarded=best_of_n")
        return self


def generate(config: GuardedGenerateConfig, run: Run) -> None:
    """Write the responses that the guard lets through or that a reward chooses, or else the model's own."""
    choose = _choosing(config)
    check = None if config.rules is None else _says_its_type(config.rules, config.guard is not None)
    batch.generate(config, run, choose, check)


def _says_its_type(folder: Path, has_guard: bool) -> Callable[[Asked], None]:
    """Return what refuses a row whose response type these rules cannot know, or do not know."""
    from equipoise.judges.rules import RulesCard
    from equipoise.models.checkpoints import load_card

    rules = load_card(folder, RulesCard).rules

    def check(asked: Asked) -> None:
        check_type(rules, asked.provenance or {}, asked.is_harmful, has_guard=has_guard)

    return check


def check_type(
    rules: "RuleSet", provenance: Mapping[str, Any], is_harmful: bool | None, *, has_guard: bool
) -> None:
    """Raise DataError where rules cannot know what an answer to a prompt should be.

    Args:
        rules: Whose response types they are.
        provenance: Of the prompt.
        is_harmful: Whether it asks for harm, as far as it says so.
        has_guard: Whether a guard says it otherwise.
    """
    if rules.type_said(provenance, is_harmful) is None and not has_guard:
        raise DataError(
            f"is_harmful: expected true or false, or provenance.{RESPONSE_TYPE};"
            " rules without a guard that judges prompts go by these"
        )


def _choosing(config: GuardedGenerateConfig) -> Callable[[Draw], Draw] | None:
    if config.guard is None:
        reward = _reward(config)
        return None if reward is None else BestOf(reward, config.tries)
    require("equipoise generate --guard", "train")
    from equipoise.models.windows import TextPair
    from equipoise.moderation.batch import policy_of
    from equipoise.moderation.guard import load_guard

    guard = load_guard(config.guard, config.device)
    guard.require("response")
    policy = policy_of(guard, config.policy)
    if not policy.enforced:
        raise ConfigError(f"policy: '{policy.name}' is in shadow mode; expected one that decides")

    def judge(exchanges: Sequence[Exchange]) -> list[Verdict]:
        reading = guard.read([TextPair(text_of(e.prompt), e.response) for e in exchanges])
        return [reading.verdict(row, policy) for row in range(len(exchanges))]

    return Guarding(judge, config.guarded, config.tries, config.refusal_text, _reward(config, guard, policy))


def _reward(
    config: GuardedGenerateConfig, guard: "Guard | None" = None, policy: "Policy | None" = None
) -> Reward | None:
    if config.rules is None and config.scorer is None:
        return None
    require("equipoise generate with a scorer or rules", "train")
    from equipoise.judges.rules import load_rules, scorer_reward

    if config.rules is None:
        assert config.scorer is not None
        return scorer_reward(config.scorer, config.device)
    rules = load_rules(config.rules, scorer=config.scorer, device=config.device)
    if guard is not None and policy is not None:
        guard.require("prompt")
        rules.type_of = type_by_guard(guard, policy, rules.rules)
    return rules


def type_by_guard(guard: "Guard", policy: "Policy", rules: "RuleSet") -> "TypeOf":
    """Let a guard say which prompts ask for harm, and so what answers to them should be.

    What a prompt says of itself by `provenance.response_type` stands above it.
    """
    from equipoise.models.windows import TextPair

    def type_of(exchanges: Sequence[Exchange]) -> list[str]:
        named = [rules.type_said(e.provenance, None) for e in exchanges]
        asked = [text_of(e.prompt) for e, name in zip(exchanges, named, strict=True) if name is None]
        prompts = list(dict.fromkeys(asked))  # several tries share one
        by_guard = {}
        if prompts:
            reading = guard.read([TextPair(prompt, None) for prompt in prompts])
            for row, prompt in enumerate(prompts):
                is_safe = reading.verdict(row, policy).is_safe
                by_guard[prompt] = rules.harmless if is_safe else rules.harmful
        return [name or by_guard[text_of(e.prompt)] for e, name in zip(exchanges, named, strict=True)]

    return type_of


GENERATE = batch.GENERATE._replace(build=generate, config=GuardedGenerateConfig)
