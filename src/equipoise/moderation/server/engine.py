"""One loaded guard with its policies and its queue; a reload makes a new one beside it."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

from equipoise.errors import ConfigError, ModelError, near
from equipoise.lineage import content_hash
from equipoise.models.guard import Target
from equipoise.models.windows import TextPair
from equipoise.moderation.batcher import Batcher, Batching
from equipoise.moderation.guard import Guard, load_guard
from equipoise.moderation.policies import Policy, find_policy
from equipoise.moderation.reading import Reading
from equipoise.moderation.server.crosswalks import Translation, translation
from equipoise.moderation.server.settings import ServeConfig
from equipoise.moderation.streaming import is_sound
from equipoise.progress import silent
from equipoise.protocols import RefusalVerdict, Verdict

_LOOKED_AT = 2000
"""Characters from which the language of a text is told."""

_TRIAL = "The weather in the mountains changes quickly."
"""Judged once before a guard serves: one that cannot answer does not begin."""


class Guessed(Protocol):
    """A guess at a language, as `curation.language` makes it."""

    @property
    def language(self) -> str:
        """ISO 639-1."""

    @property
    def is_sure(self) -> bool:
        """Whether to trust it."""


Identify = Callable[[str], Guessed]
"""Tells the language of a text."""


class Ask(NamedTuple):
    """A text to judge, and the policy that decides."""

    text: TextPair
    policy: Policy


class Judged(NamedTuple):
    """What the guard says of one text."""

    target: Target
    verdict: Verdict
    shadow: tuple[Verdict, ...]
    """By the policies that decide nothing."""
    language: str | None
    """ISO 639-1; None where it is in doubt."""
    is_supported: bool | None
    refusal: RefusalVerdict | None
    """Of a response, where the guard knows refusals."""


class Engine:
    """A guard that answers; made by `load_engine`."""

    def __init__(
        self,
        guard: Guard,
        policies: dict[str, Policy],
        *,
        version: str = "unknown",
        batching: Batching | None = None,
        languages: Sequence[str] = (),
        identify: Identify | None = None,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        """Put a queue before a guard.

        Raises:
            ConfigError: No policy is enforced.
        """
        self.guard, self.policies, self.version = guard, policies, version
        self.created = int(time.time())
        self._languages, self._identify = tuple(languages), identify
        enforced = [policy for policy in policies.values() if policy.enforced]
        if not enforced:
            raise ConfigError("policies: all are in shadow; expected one that decides")
        self.default = enforced[0]
        self._shadow = [policy for policy in policies.values() if not policy.enforced]
        self.batcher = Batcher(self.judge_now, batching, observe=observe)

    def policy(self, name: str | None) -> Policy:
        """Return the policy of that name, or the default one; ConfigError where it decides nothing."""
        if name is None:
            return self.default
        policy = self.policies.get(name)
        if policy is None or not policy.enforced:
            known = [policy.name for policy in self.policies.values() if policy.enforced]
            what = "no such policy" if policy is None else "a policy in shadow decides nothing"
            raise ConfigError(f"{what}{near(name, known)}; expected one of: {', '.join(known)}")
        return policy

    def judge_now(self, asks: Sequence[Ask]) -> list[Judged]:
        """Judge texts in this thread; an answer that is no probability, or none, raises ModelError."""
        try:
            with silent():
                reading = self.guard.read([ask.text for ask in asks])
        except RuntimeError as exc:  # such as an accelerator out of memory; its message may hold anything
            raise ModelError(f"the guard's computation failed ({type(exc).__name__})") from exc
        return [self._judged(reading, row, ask) for row, ask in enumerate(asks)]

    def trial(self) -> None:
        """Judge a harmless text of each kind; a guard that cannot raises what is wrong with it."""
        for target in self.guard.card.targets:
            response = _TRIAL if target == "response" else None
            self.judge_now([Ask(TextPair(_TRIAL, response), self.default)])

    @cached_property
    def openai13(self) -> Translation:
        """To OpenAI's categories."""
        return translation(self.guard.card.taxonomy, "openai13")

    @cached_property
    def mlcommons(self) -> Translation:
        """To the hazard codes of Llama Guard."""
        return translation(self.guard.card.taxonomy, "mlcommons")

    @cached_property
    def azure4(self) -> Translation:
        """To Azure's categories."""
        return translation(self.guard.card.taxonomy, "azure4")

    def _judged(self, reading: Reading, row: int, ask: Ask) -> Judged:
        verdict, *shadow = (self._sound(reading.verdict(row, p)) for p in (ask.policy, *self._shadow))
        target: Target = "prompt" if ask.text.response is None else "response"
        refusal = None
        if target == "response" and self.guard.card.knows_refusals:
            refusal = reading.refusal_verdict(row)
        language = self._language(ask.text.prompt if ask.text.response is None else ask.text.response)
        supported = None if language is None else language in self._languages
        if supported is False or verdict.truncated:  # not read, or not all of it: nothing to be sure of
            verdict = verdict._replace(review=True)
        return Judged(target, verdict, tuple(shadow), language, supported, refusal)

    def _sound(self, verdict: Verdict) -> Verdict:
        if not is_sound(verdict):
            raise ModelError("the guard's answer is no probability")
        return verdict

    def _language(self, text: str) -> str | None:
        if self._identify is None:
            return None
        guess = self._identify(text[:_LOOKED_AT])
        return guess.language if guess.is_sure else None


def load_engine(
    settings: ServeConfig,
    identify: Identify | None = None,
    observe: Callable[[int, float], None] | None = None,
) -> Engine:
    """Load the guard and the policies of the settings, and see that it answers.

    Raises:
        EquipoiseError: Something is missing or does not fit.
    """
    guard = load_guard(settings.guard, settings.device, settings.runtime)
    own = guard.policies
    chosen: dict[str, Policy] = {}
    for given in settings.policies:
        policy = find_policy(given, own, guard.card.taxonomy)
        if policy.name in chosen:
            raise ConfigError(f"{given}: there is a policy '{policy.name}' already; expected another name")
        chosen[policy.name] = policy
    engine = Engine(
        guard,
        chosen | {name: policy for name, policy in own.items() if name not in chosen},
        version=content_hash(settings.guard)[:12],
        batching=settings.batching,
        languages=settings.languages,
        identify=identify,
        observe=observe,
    )
    engine.trial()
    return engine
