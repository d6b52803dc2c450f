"""A generator that asks a server of the OpenAI chat protocol: vLLM, SGLang, llama.cpp, Ollama and others.

One request per response: k samples are k requests. Answers are kept in a journal as they come in, under a
hash of what was asked, so that a rerun asks for the missing ones only. An answer that does not come after
all tries is missing, with the reason; it is not in the journal.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from equipoise.errors import RunStoppedError
from equipoise.generation.client import Client, EndpointConfig, read_key
from equipoise.generation.fields import Dialect
from equipoise.generation.journal import Journal
from equipoise.generation.replies import Answer, FailedError, Reply, read_answer
from equipoise.generation.session import Session, first_error, run_to_end
from equipoise.generation.usage import Usage
from equipoise.progress import bar, say
from equipoise.protocols import Messages, Sampling

_ENOUGH = 4
"""Prompts whose samples are all the same are no accident."""


class Ask(NamedTuple):
    """One response that is wanted."""

    messages: Messages
    max_tokens: int
    fields: Mapping[str, JsonValue]
    """What else the request must say; a server that refuses one of these is of no use."""
    seed: int | None = None
    """Tells apart samples that are asked for in the same words; sent where the server takes it."""

    def key(self, model: str, extra: Mapping[str, JsonValue]) -> str:
        """Return the hash of all that the answer depends on; where the server is plays no part."""
        words = {**self._asdict(), "model": model, "extra": extra}
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


class EndpointGenerator:
    """Write responses by a server; a `protocols.Generator`."""

    def __init__(
        self, model: str, settings: EndpointConfig, *, journal: Path | None = None, missing: str | None = None
    ) -> None:
        """Read the key and open the journal; the server is first asked when there is something to ask.

        Args:
            model: Name that the server knows.
            settings: The server.
            journal: Where answers are kept, unless the settings name a place.
            missing: Text that `__call__` gives for a missing answer; where None, it stops the run.

        Raises:
            ConfigError: the key is not set, or the journal is something else.
        """
        self.model, self.settings = model, settings
        self._usage = Usage()
        self._key = read_key(settings)
        place = settings.journal or journal
        self._journal = Journal(place) if place else None
        self._missing = missing
        self._has_warned = False
        self._dialect = Dialect(f"{settings.url}: model '{model}'")

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        """Return `sampling.samples` texts per prompt, in order.

        Raises:
            RunStoppedError: the server is dead, or an answer is missing and no text stands for it.
        """
        found = self.answers(prompts, sampling, ids)
        lost = [answer.error for answers in found for answer in answers if answer.text is None]
        if lost and self._missing is None:
            total = len(prompts) * sampling.samples
            raise RunStoppedError(f"{self.settings.url}: {len(lost)} of {total} answers are missing")
        return [[(self._missing or "") if a.text is None else a.text for a in answers] for answers in found]

    def answers(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[Answer]]:
        """Return `sampling.samples` answers per prompt, in order, each with its text or its reason.

        `ids` name the prompts: a draw belongs to (seed, id, sample). A greedy answer belongs to the words
        of its prompt alone. Whether a server repeats a draw for the same seed is up to the server.
        """
        names = ids if ids is not None else [str(i) for i in range(len(prompts))]
        asks = [
            _ask(prompt, sampling, name, k)
            for prompt, name in zip(prompts, names, strict=True)
            for k in range(sampling.samples)
        ]
        flat = iter(self.ask(asks))
        found = [[next(flat) for _ in range(sampling.samples)] for _ in prompts]
        self._warn_if_same(found, sampling)
        return found

    def ask(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return the answers in order; what is in the journal, or asked for twice here, is asked once.

        Raises:
            RunStoppedError: the server is dead; what was answered is in the journal.
            ConfigError: the server refuses the key, the model or a field.
        """
        keys = [ask.key(self.model, self.settings.extra) for ask in asks]
        found: dict[str, Answer] = {}
        wanted: dict[str, Ask] = {}
        for key, ask in zip(keys, asks, strict=True):
            kept = self._journal.get(key) if self._journal is not None else None
            if kept is not None:
                found[key] = _from_json(kept)
            else:
                wanted[key] = ask
        if wanted:
            with bar("asking the server", len(wanted)) as advance:
                run_to_end(self._ask_all(wanted, found, advance))
        for answer in found.values():
            if answer.text is not None:
                self._usage = self._usage.plus(answer.prompt_tokens, answer.completion_tokens)
        return [found[key] for key in keys]

    def take_usage(self) -> Usage:
        """Return what the answers took since the last call, those from the journal too."""
        usage, self._usage = self._usage, Usage()
        return usage

    def takes(self, fields: Mapping[str, JsonValue], shows: Callable[[Reply], bool]) -> bool:
        """Return whether the server takes these fields, and `shows` finds in its reply that it heeds them."""

        async def try_them() -> bool:
            async with Client(self.settings, self._key) as client:
                session = Session(client, self.settings, self.model)
                return await self._dialect.takes(session, {**self.settings.extra, **fields}, shows)

        return run_to_end(try_them())

    def _warn_if_same(self, found: Sequence[Sequence[Answer]], sampling: Sampling) -> None:
        """Say once that samples do not differ: some servers take a temperature and stay greedy."""
        if self._has_warned or sampling.samples < 2 or sampling.temperature == 0 or len(found) < _ENOUGH:
            return
        if all(len({answer.text for answer in answers}) == 1 for answers in found):
            say(f"{self.settings.url}: the samples of each prompt are all the same; does the server sample?")
            self._has_warned = True

    async def _ask_all(
        self, wanted: Mapping[str, Ask], found: dict[str, Answer], advance: Callable[[], None]
    ) -> None:
        """Fill `found`, a limited number of requests at a time."""
        async with Client(self.settings, self._key) as client:
            session = Session(client, self.settings, self.model)
            needed = {name: value for ask in wanted.values() for name, value in ask.fields.items()}
            is_seeded = any(ask.seed is not None for ask in wanted.values())
            wished: dict[str, JsonValue] = {"seed": 0} if is_seeded else {}
            taken = await self._dialect.learn(session, {**self.settings.extra, **needed}, wished)
            todo = iter(wanted.items())

            async def work() -> None:
                for key, ask in todo:
                    found[key] = await self._ask_one(session, ask, key, with_seed="seed" in taken)
                    advance()

            with first_error():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.settings.concurrency, len(wanted))):
                        group.create_task(work())

    async def _ask_one(self, session: Session, ask: Ask, key: str, *, with_seed: bool) -> Answer:
        body: dict[str, Any] = {"messages": ask.messages, session.limit: ask.max_tokens}
        body |= {**self.settings.extra, **ask.fields}
        if with_seed and ask.seed is not None:
            body["seed"] = ask.seed
        try:
            answer = await session.ask(body, key, read_answer)
        except FailedError as failed:
            return Answer(None, error=failed.reason)
        if self._journal is not None:
            await asyncio.to_thread(self._journal.put, key, answer._asdict())  # the disk is waited for
        return answer


def _ask(prompt: Messages, sampling: Sampling, name: str, sample: int) -> Ask:
    fields: dict[str, JsonValue] = {"temperature": sampling.temperature}
    if sampling.temperature == 0:
        return Ask(prompt, sampling.max_new_tokens, fields)
    if sampling.top_p < 1:
        fields["top_p"] = sampling.top_p
    return Ask(prompt, sampling.max_new_tokens, fields, request_seed(sampling.seed, name, sample))


def request_seed(seed: int, name: str, sample: int) -> int:
    """Return the seed of one response, which depends on nothing else that is asked for; 31 bits.

    >>> request_seed(0, "p1", 0) == request_seed(0, "p1", 1)
    False
    """
    draw = f"{seed}\0{name}\0{sample}"
    return int.from_bytes(hashlib.sha256(draw.encode()).digest()[:4], "big") >> 1  # servers take no more


def _from_json(kept: dict[str, Any]) -> Answer:
    first = tuple((str(token), float(logp)) for token, logp in kept["first_token"])
    return Answer(**{**kept, "first_token": first})
