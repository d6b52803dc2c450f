"""Rewards and costs from a server, which may run anything. What is sent and taken is a public contract:

    POST URL   {"exchanges": [{"id": "p1#0", "prompt": "...", "response": "..."}, ...]}
    200        {"rewards": [0.3, ...], "costs": {"cost": [-1.2, ...], ...}}

`prompt` is a text, or a list of messages with `role` and `content`. There is one number for each exchange, in
order: a reward is better when higher, a cost worse, and above 0 means unsafe. `groups` has rewards in the
eyes of groups, by name, as `costs` has costs. What nobody asks for may be missing, and other fields are not
read, but `error`, which says that there are no scores yet. It and the statuses 408, 409, 425, 429 and those
from 500 on mean "later" (a Retry-After is followed); any other error, a number that is missing and one that
is not finite stop the run.
"""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, JsonValue

from equipoise.config import IsAside
from equipoise.errors import RunStoppedError, near
from equipoise.generation.client import Client, ServerConfig, read_key
from equipoise.generation.replies import FailedError, Reply
from equipoise.generation.session import Tries, first_error, run_to_end
from equipoise.records import Exchange

_LARGEST = sys.float_info.max


class RewardServer(ServerConfig):
    """A server that scores responses; its address is asked as it stands."""

    place: ClassVar[str] = "scoring.server"

    batch_size: Annotated[int, Field(ge=1), IsAside()] = 32
    """Responses in a request."""


class Served(NamedTuple):
    """What the server said of some responses."""

    rewards: list[float] | None
    """None where they were not asked for."""
    costs: dict[str, list[float]]
    """Those that were asked for, by name."""
    groups: dict[str, list[float]] = {}
    """Rewards in the eyes of the groups that were asked for, by name."""


class ServedScores:
    """Scores of responses by a server."""

    def __init__(
        self,
        settings: RewardServer,
        *,
        reward: bool = True,
        costs: Sequence[str] = (),
        groups: Sequence[str] = (),
    ) -> None:
        """Read the key; the server is first asked when there is something to score.

        Args:
            settings: The server.
            reward: Whether the rewards are needed.
            costs: Names of the costs that are needed.
            groups: Names of the groups whose rewards are needed.

        Raises:
            ConfigError: The key is not set.
        """
        self.settings, self.reward = settings, reward
        self.costs, self.groups = tuple(costs), tuple(groups)
        self._key = read_key(settings)

    def __call__(self, exchanges: Sequence[Exchange]) -> Served:
        """Return the scores of each exchange, in order.

        Raises:
            RunStoppedError: The server gave none after all tries, or what it gave is not what was asked for.
        """
        size = self.settings.batch_size
        parts = [exchanges[start : start + size] for start in range(0, len(exchanges), size)]
        found = run_to_end(self._ask_all(parts))
        return Served(
            [value for part in found for value in part.rewards or ()] if self.reward else None,
            {name: [value for part in found for value in part.costs[name]] for name in self.costs},
            {name: [value for part in found for value in part.groups[name]] for name in self.groups},
        )

    async def _ask_all(self, parts: Sequence[Sequence[Exchange]]) -> list[Served]:
        found: dict[int, Served] = {}
        async with Client(self.settings, self._key) as client:
            tries = Tries(client, self.settings)
            todo = iter(enumerate(parts))

            async def work() -> None:
                for number, part in todo:
                    found[number] = await self._ask(tries, part)

            with first_error():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.settings.concurrency, len(parts))):
                        group.create_task(work())
        return [found[number] for number in range(len(parts))]

    async def _ask(self, tries: Tries, exchanges: Sequence[Exchange]) -> Served:
        rows: JsonValue = [e.model_dump(mode="json", include={"id", "prompt", "response"}) for e in exchanges]
        read = partial(self._read, exchanges)
        try:
            return await tries.tried({"exchanges": rows}, exchanges[0].id, read, self.settings.tries)
        except FailedError as failed:
            raise RunStoppedError(f"{self.settings.url}: gave no scores: {failed.reason}") from failed

    def _read(self, exchanges: Sequence[Exchange], reply: Reply) -> Served:
        rewards = _numbers(reply.get("rewards"), "rewards", exchanges) if self.reward else None
        tables = (_table(reply, name, getattr(self, name), exchanges) for name in ("costs", "groups"))
        return Served(rewards, *tables)


def _table(
    reply: Reply, where: str, names: Sequence[str], exchanges: Sequence[Exchange]
) -> dict[str, list[float]]:
    """Return a reply's numbers under names."""
    given: Any = reply.get(where)
    given = given if isinstance(given, dict) else {}
    for name in names:
        if name not in given:
            known = ", ".join(map(str, given)) or "none"
            what = f"{where}: no '{name}'{near(name, given)}; the reply has: {known:.100}"
            raise FailedError(what, retry=False)
    return {name: _numbers(given[name], f"{where}.{name}", exchanges) for name in names}


def _numbers(given: Any, where: str, exchanges: Sequence[Exchange]) -> list[float]:
    """Return a reply's numbers; what is not one finite number for each exchange is never made good."""
    if not isinstance(given, list) or len(given) != len(exchanges):
        got = f"{len(given)}" if isinstance(given, list) else "missing" if given is None else "no list"
        raise FailedError(f"{where}: expected {len(exchanges)} numbers, got {got}", retry=False)
    for value, exchange in zip(given, exchanges, strict=True):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _LARGEST:  # nor is NaN
            got = f"expected a finite number, got {value!r:.40}"
            raise FailedError(f"{where}: {exchange.id}: {got}", retry=False)
    return [float(value) for value in given]
