"""Talking to one server for the length of a call: tries, waits, and whether it is alive at all.

A request that fails is tried again after a wait that doubles, with jitter from the request's own seed.
What a server asks to wait, all requests wait. When an answer is given up and no other request has got
through since it began, a small request of our own decides whether the server is dead, which stops the
run, or only this answer is missing.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

from pydantic import JsonValue

from equipoise.errors import RunStoppedError
from equipoise.generation.client import Client, EndpointConfig, ServerConfig
from equipoise.generation.replies import FailedError, Reply, first_choice

T = TypeVar("T")

_LONGEST_WAIT = 60.0
"""Seconds between two tries, unless the server asks for more."""
_TRIES_OF_A_SIGN_OF_LIFE = 3


def wait_seconds(failures: int, first: float, jitter: random.Random) -> float:
    """Return the wait after the n-th failure: `first` doubled each time, times 0.5 to 1.

    >>> [round(wait_seconds(n, 1.0, random.Random(0)), 2) for n in (1, 2, 3, 9)]
    [0.92, 1.84, 3.69, 55.33]
    """
    return min(first * 2.0 ** min(failures - 1, 30), _LONGEST_WAIT) * (0.5 + 0.5 * jitter.random())


class Tries:
    """Requests to any server within one event loop, each sent again until it brings an answer."""

    def __init__(self, client: Client, settings: ServerConfig) -> None:
        """Hold an open client."""
        self._client = client
        self._first_wait = settings.first_wait_seconds
        self._pause_until = self._last_success = 0.0

    async def tried(
        self, body: Mapping[str, JsonValue], seed: str, read: Callable[[Reply], T], tries: int
    ) -> T:
        """Return what `read` makes of the reply; `seed` names the request for its jitter.

        Raises:
            FailedError: no try brought an answer, or another would not help.
        """

        async def send() -> T:
            return read(await self._client.post(dict(body)))

        return await self._until_done(send, seed, tries)

    async def told(self, url: str, body: Mapping[str, JsonValue], tries: int) -> None:
        """Send a request to another address of the server; of the reply only an error is read.

        Raises:
            FailedError: no try went well, or another would not help.
        """
        await self._until_done(lambda: self._client.tell(url, dict(body)), url, tries)

    async def _until_done(self, send: Callable[[], Awaitable[T]], seed: str, tries: int) -> T:
        jitter = random.Random(seed)
        failures = 0
        while True:
            await self._sit_out_pause()
            try:
                answer = await send()
            except FailedError as failed:
                failures += 1
                if failed.after is not None:
                    self._pause_until = max(self._pause_until, monotonic() + failed.after)
                if not failed.retry or failures == tries:
                    failed.reason += f" ({failures} tries)" if failures > 1 else ""
                    raise
                await asyncio.sleep(wait_seconds(failures, self._first_wait, jitter))
            else:
                self._last_success = monotonic()
                return answer

    async def _sit_out_pause(self) -> None:
        while (left := self._pause_until - monotonic()) > 0:
            await asyncio.sleep(left)


class Session(Tries):
    """Requests to one server of the chat protocol within one event loop."""

    def __init__(self, client: Client, settings: EndpointConfig, model: str) -> None:
        """Hold an open client; `model` is the name that the server knows."""
        super().__init__(client, settings)
        self._settings, self._model = settings, model
        self.limit = "max_tokens"
        """The name under which this server takes the length of a response."""
        self._checking = asyncio.Lock()

    async def ask(self, body: Mapping[str, JsonValue], seed: str, read: Callable[[Reply], T]) -> T:
        """Return what `read` makes of the reply to one request, after as many tries as it takes.

        Raises:
            FailedError: no try brought an answer; this one is missing.
            RunStoppedError: the server is dead.
        """
        began = monotonic()
        try:
            return await self._tried(body, seed, read, self._settings.tries)
        except FailedError as failed:
            if failed.is_about_server:
                await self._check_alive(began)
            raise

    async def hello(
        self, fields: Mapping[str, JsonValue], read: Callable[[Reply], T], tries: int | None = None
    ) -> T:
        """Return what `read` makes of the reply to a word of greeting, with these fields beside it."""
        messages: JsonValue = [{"role": "user", "content": "Hi"}]
        body = {"messages": messages, self.limit: 1, **fields}
        return await self._tried(body, "hello", read, tries or self._settings.tries)

    async def _check_alive(self, began: float) -> None:
        async with self._checking:
            if self._last_success >= began:
                return
            try:
                await self.hello({}, first_choice, _TRIES_OF_A_SIGN_OF_LIFE)
            except FailedError as dead:
                raise RunStoppedError(f"{self._settings.url}: the server is dead: {dead.reason}") from dead

    async def _tried(
        self, body: Mapping[str, JsonValue], seed: str, read: Callable[[Reply], T], tries: int
    ) -> T:
        whole: dict[str, JsonValue] = {"model": self._model, **body}
        return await self.tried(
            {**whole, "stream": True} if self._settings.stream else whole, seed, read, tries
        )


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@contextmanager
def first_error() -> Iterator[None]:
    """Raise what stopped one of several tasks by itself, not as a group."""
    try:
        yield
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
