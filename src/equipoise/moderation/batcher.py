"""Gathers the items of many callers into batches for one worker thread; no caller waits for ever.

    batcher = Batcher(judge_many, Batching(max_batch=32))
    verdicts = await batcher([text])  # or OverloadedError, ClosedError, TimeoutError, what the work raised
    await batcher.close()             # what was accepted is finished

The queue is bounded: a call that does not fit is refused at once and whole, with a guess of when to come
again. Who waits longer than the deadline gets TimeoutError, and what of it has not begun is dropped. A batch
that fails is done again caller by caller, so that one caller's items cannot spoil another's.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Generic, NamedTuple, TypeVar

from pydantic import Field

from equipoise.config import Config

T = TypeVar("T")
R = TypeVar("R")

_LONGEST_PAUSE = 60
"""Seconds that a caller is asked to wait at most."""


class Batching(Config):
    """How items are gathered, and how long the queue may grow."""

    max_batch: Annotated[int, Field(ge=1)] = 32
    """Items that are worked on together."""
    max_wait_ms: Annotated[float, Field(ge=0, le=5)] = 2.0
    """How long an idle worker waits for more items, in milliseconds."""
    max_queue: Annotated[int, Field(ge=1)] = 512
    """Items that may wait or be at work; more are refused."""
    timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """From the call to its answer."""


class OverloadedError(Exception):
    """The queue is full; come again after some seconds."""

    def __init__(self, after: int) -> None:
        """Hold the whole seconds after which there may be room."""
        super().__init__(f"the queue is full; there may be room in {after} s")
        self.after = after


class ClosedError(Exception):
    """Nothing is accepted any more."""


class _Piece(NamedTuple, Generic[T, R]):
    """Items of one caller that fit one batch."""

    items: Sequence[T]
    done: "asyncio.Future[list[R]]"
    since: float


class Batcher(Generic[T, R]):
    """Calls `work` in a thread of its own with the items of several callers at once."""

    def __init__(
        self,
        work: Callable[[Sequence[T]], Sequence[R]],
        settings: Batching | None = None,
        *,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        """Prepare; the first call starts the work.

        Args:
            work: Gives one result per item, in order.
            settings: Sizes and times.
            observe: Told the size of every batch and the seconds that it took.
        """
        self.settings = settings or Batching()
        self.depth = 0
        """Items that were accepted and have no answer yet."""
        self._work, self._observe = work, observe
        self._waiting: deque[_Piece[T, R]] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._runner: asyncio.Task[None] | None = None
        self._is_closing = False
        self._busy_since: float | None = None
        self._seconds_per_item = 0.0

    async def __call__(self, items: Sequence[T]) -> list[R]:
        """Return one result per item, in order.

        Raises:
            OverloadedError: There is no room for all of the items.
            ClosedError: The batcher is closing.
            TimeoutError: There was no answer in time.
        """
        if self._is_closing:
            raise ClosedError("closing; nothing is accepted any more")
        if self.depth + len(items) > self.settings.max_queue:
            raise OverloadedError(self._pause())
        loop = asyncio.get_running_loop()
        size = self.settings.max_batch
        pieces = [
            _Piece[T, R](items[i : i + size], loop.create_future(), loop.time())
            for i in range(0, len(items), size)
        ]
        for piece in pieces:
            self._accept(piece)
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                return [result for piece in pieces for result in await piece.done]
        finally:  # whoever gave up, or failed in part, needs the rest no more
            for piece in pieces:
                piece.done.cancel()

    @property
    def is_stuck(self) -> bool:
        """Whether the work has not come back for longer than any caller waits."""
        now = asyncio.get_running_loop().time()
        return self._busy_since is not None and now - self._busy_since > self.settings.timeout_seconds

    async def close(self, seconds: float | None = None) -> bool:
        """Accept nothing more and finish what was accepted; return False where that takes too long.

        Work that hangs keeps its thread, which only the end of the process stops.
        """
        self._is_closing = True
        self._changed.set()
        is_done = True
        if self._runner is not None:
            await asyncio.wait([self._runner], timeout=seconds)
            is_done = self._runner.done()
        self._thread.shutdown(wait=is_done)
        return is_done

    def _accept(self, piece: _Piece[T, R]) -> None:
        self.depth += len(piece.items)
        self._waiting.append(piece)
        self._changed.set()
        piece.done.add_done_callback(lambda done: self._settled(piece))

    def _settled(self, piece: _Piece[T, R]) -> None:
        """Make room, also where a caller gave up."""
        self.depth -= len(piece.items)
        if not piece.done.cancelled():
            piece.done.exception()  # a caller who left does not ask for it

    def _pause(self) -> int:
        return min(max(1, math.ceil(self.depth * self._seconds_per_item)), _LONGEST_PAUSE)

    async def _run(self) -> None:
        while self._waiting or not self._is_closing:
            self._changed.clear()
            if not self._waiting:
                await self._changed.wait()
                continue
            await self._gather()
            if pieces := self._take():
                await self._answer(pieces)

    async def _gather(self) -> None:
        """Wait a little for more items, unless there are enough or the first has waited already."""
        loop = asyncio.get_running_loop()
        until = self._waiting[0].since + self.settings.max_wait_ms / 1000
        while not self._is_closing and sum(len(p.items) for p in self._waiting) < self.settings.max_batch:
            self._changed.clear()
            if loop.time() >= until:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._changed.wait()

    def _take(self) -> list[_Piece[T, R]]:
        """Return the oldest pieces that fit one batch; those that nobody waits for are dropped."""
        taken: list[_Piece[T, R]] = []
        room = self.settings.max_batch
        while self._waiting and (self._waiting[0].done.done() or len(self._waiting[0].items) <= room):
            piece = self._waiting.popleft()
            if not piece.done.done():
                taken.append(piece)
                room -= len(piece.items)
        return taken

    async def _answer(self, pieces: Sequence[_Piece[T, R]]) -> None:
        results = await self._attempt([item for piece in pieces for item in piece.items])
        if isinstance(results, BaseException) and len(pieces) > 1:
            for piece in pieces:
                await self._answer([piece])
            return
        start = 0
        for piece in pieces:
            end = start + len(piece.items)
            if piece.done.done():
                pass  # nobody waits for it any more
            elif isinstance(results, BaseException):
                piece.done.set_exception(results)
            else:
                piece.done.set_result(results[start:end])
            start = end

    async def _attempt(self, items: Sequence[T]) -> list[R] | BaseException:
        """Return the results, or what the work raised, whatever that is."""
        loop = asyncio.get_running_loop()
        self._busy_since = loop.time()
        done = loop.run_in_executor(self._thread, self._checked, items)
        await asyncio.wait([done])
        seconds = loop.time() - self._busy_since
        self._busy_since = None
        self._seconds_per_item += 0.2 * (seconds / len(items) - self._seconds_per_item)
        if self._observe is not None:
            self._observe(len(items), seconds)
        return done.exception() or done.result()

    def _checked(self, items: Sequence[T]) -> list[R]:
        results = list(self._work(items))
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results for {len(items)} items")
        return results
