"""Which fields of a request a server takes: found out with requests of our own, never by accident.

Servers differ: one refuses `seed`, another `top_p`, a third knows `max_completion_tokens` only. A field is
sent with a prompt of the user's only after the server has taken it with a greeting of ours. One request
settles all fields where none is refused.
"""

import json
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from equipoise.errors import ConfigError, RunStoppedError
from equipoise.generation.replies import FailedError, Reply, first_choice
from equipoise.generation.session import Session
from equipoise.progress import say

_LIMITS = ("max_tokens", "max_completion_tokens")
_MISTAKES = {401: "the key", 402: "the account", 403: "the key", 404: "the address or the model's name"}
_FEW = 3
"""Tries of a first request, which may fail for a field or because the server is not up yet."""

Fields = Mapping[str, JsonValue]


class Dialect:
    """What is known of the fields that one server takes."""

    def __init__(self, where: str) -> None:
        """Know nothing yet; `where` names server and model in messages."""
        self._where = where
        self._limit: str | None = None
        self._takes: dict[str, bool] = {}

    async def learn(self, session: Session, needed: Fields, wished: Fields) -> set[str]:
        """Find out what is not known yet, and return the wished fields that the server takes.

        Args:
            session: Where to ask; it is told the name of the field for the length.
            needed: Fields without which the answers are not what the user wants.
            wished: Fields that can be left out; whatever value they have.

        Raises:
            ConfigError: the server refuses a needed field, the key or the model.
            RunStoppedError: the server is dead.
        """
        session.limit = self._limit or session.limit
        fields = {_mark(name, value): {name: value} for name, value in needed.items()}
        fields |= {name: {name: value} for name, value in wished.items()}
        unknown = {mark: field for mark, field in fields.items() if mark not in self._takes}
        if unknown or self._limit is None:
            together = {name: value for field in unknown.values() for name, value in field.items()}
            if await self._accepts(session, together, tries=_FEW):
                self._takes |= dict.fromkeys(unknown, True)
                self._limit = session.limit
            else:
                await self._greet(session)
                for mark, field in unknown.items():
                    self._takes[mark] = await self._accepts(session, field)
                    if not self._takes[mark] and mark in wished:
                        say(f"{self._where}: the server does not take '{mark}'; it is left out")
        for name, value in needed.items():
            if not self._takes[_mark(name, value)]:
                raise ConfigError(f"{self._where}: the server refuses '{name}', got {json.dumps(value)}")
        return {name for name in wished if self._takes[name]}

    async def takes(self, session: Session, fields: Fields, shows: Callable[[Reply], bool]) -> bool:
        """Return whether the server takes the fields together and its reply shows that it heeds them."""
        if self._limit is None:
            await self._greet(session)
        session.limit = self._limit or session.limit
        has = await self._accepts(session, fields, shows)
        if has:
            self._takes |= {_mark(name, value): True for name, value in fields.items()}
        return has

    async def _greet(self, session: Session) -> None:
        """Say a plain word to the server, and find the name of the field for the length."""
        for name in [self._limit] if self._limit else _LIMITS:
            session.limit = name
            try:
                await session.hello({}, first_choice)
            except FailedError as failed:
                if failed.retry:
                    raise RunStoppedError(f"{self._where}: the server is dead: {failed.reason}") from failed
                self._blame(failed)
                refusal = failed
            else:
                self._limit = name
                return
        raise ConfigError(f"{self._where}: the server refuses a plain request: {refusal.reason}")

    async def _accepts(
        self,
        session: Session,
        fields: Fields,
        shows: Callable[[Reply], bool] = lambda reply: True,
        tries: int | None = None,
    ) -> bool:
        try:
            reply = await session.hello(fields, _with_choice, tries)
        except FailedError as failed:
            self._blame(failed)
            return False
        return shows(reply)

    def _blame(self, failed: FailedError) -> None:
        if failed.status in _MISTAKES:
            raise ConfigError(
                f"{self._where}: {failed.reason}; expected {_MISTAKES[failed.status]} to be right"
            )


def _mark(name: str, value: JsonValue) -> str:
    return f"{name}={json.dumps(value, sort_keys=True)}"


def _with_choice(reply: Reply) -> Reply:
    first_choice(reply)
    return reply
