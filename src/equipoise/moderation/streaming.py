"""Release a stream of text only as far as it was judged: pure logic, without a server and without a model.

The text is judged in overlapping windows: one ends at every `stride` characters, and one at the end of the
text. When a window passes, the text is released up to `hold_back` characters before the window's end; when
the last one passes, all of it is. What this guarantees, for any judge and however the text is cut into
deltas:

    A part of the text that is no longer than `hold_back` is not released, nor any piece of it, before a
    window that holds it whole has passed.

So a judge that flags whatever holds a harmful part of that length stops the stream before the first
character of the part. Of a longer part that still fits the windows, what exceeds the hold-back may be out
before the window that holds all of it is judged; nothing follows.

A hit halts the release. `hits` of them in a row stop the stream, and one is enough at the end; a window
that passes in between takes the halt back. No verdict, one that is no number, or one on a part of the window
stops too. Work is linear
in the text: each character is judged about window / stride times. Lengths are in characters, which are
code points.
"""

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from math import isfinite
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from equipoise.config import Config
from equipoise.errors import EquipoiseError, RunStoppedError
from equipoise.protocols import Verdict

FAILURES = (EquipoiseError, RunStoppedError, TimeoutError, OSError)
"""What a judge raises that cannot answer; anything else is a bug, and releases nothing either."""

_AT_ONCE = 16
"""Windows that are judged together, where a delta brings many; a stop spares the rest."""

Length = Annotated[int, Field(ge=1)]


class StreamConfig(Config):
    """How a stream is judged; lengths in characters."""

    window: Length = 512
    """What is judged at a time; the judge must be able to read all of it."""
    stride: Length = 64
    """From one window's end to the next."""
    hold_back: Annotated[int, Field(ge=0)] = 128
    """Text that waits for what follows it."""
    hits: Length = 2
    """Windows in a row that stop the stream."""

    @model_validator(mode="after")
    def _windows_hold_what_waits(self) -> Self:
        least = self.hold_back + self.hits * self.stride
        if self.window < least:
            raise ValueError(
                f"window: too short to hold all that is not released yet, got {self.window}; "
                f"expected at least hold_back + hits * stride = {least}"
            )
        return self


class Check(NamedTuple):
    """A window that is to be judged: characters `start` to `end` of the stream."""

    start: int
    end: int
    text: str
    """In a form that every tokenizer takes: half a surrogate pair is replaced."""
    is_last: bool


class Released(NamedTuple):
    """Text that may go out, as it came in."""

    text: str
    offset: int
    """Characters that went out before it."""


class Stopped(NamedTuple):
    """The stream is unsafe; nothing goes out any more."""

    offset: int
    """Characters that went out."""
    severity: int
    categories: tuple[str, ...]
    window: tuple[int, int]
    """Where in the stream the text lies that the verdict is on: first character, and the one past it."""
    verdict: Verdict


class Failed(NamedTuple):
    """There is no judgement; nothing goes out any more."""

    offset: int
    reason: str
    """Holds no text of the stream."""
    status: int = 503
    """What a server answers: 503, there is no judgement; 413, the guard does not read a window whole."""


class Done(NamedTuple):
    """All of the text went out."""

    offset: int


Event = Released | Stopped | Failed | Done


class StreamGuard:
    """Says what to judge next and what may be released; whoever drives it calls the judge.

    Checks are answered in the order in which they were given::

        for check in guard.feed(delta):  # and at last guard.end()
            events += guard.judged(check, judge(check.text))
    """

    def __init__(self, settings: StreamConfig | None = None) -> None:
        """Begin an empty stream."""
        self.settings = settings or StreamConfig()
        self.released = 0
        """Characters that went out."""
        self.is_over = False
        """Whether the stream has stopped, failed or gone out whole."""
        self._kept, self._kept_from = "", 0  # the text that may still be needed, and where it begins
        self._cut_to = 0  # end of the last window that was cut
        self._waiting: deque[Check] = deque()
        self._hits = 0
        self._has_ended = False

    def feed(self, delta: str) -> list[Check]:
        """Take in more text and return the windows that it completes."""
        if self._has_ended:
            raise ValueError("text after the end of the stream")
        if self.is_over:
            return []
        self._forget()
        self._kept += delta
        total = self._kept_from + len(self._kept)
        ends = range(self._cut_to + self.settings.stride, total + 1, self.settings.stride)
        return [self._cut(end, is_last=False) for end in ends]

    def end(self) -> list[Check]:
        """Take note that the text is complete, and return the window that holds all that is left."""
        self._has_ended = True
        return [] if self.is_over else [self._cut(self._kept_from + len(self._kept), is_last=True)]

    def judged(self, check: Check, verdict: Verdict) -> list[Event]:
        """Take the verdict on the next check and return what follows from it; nothing where all is over."""
        if self.is_over:
            return []
        if not self._waiting or self._waiting.popleft() is not check:
            raise ValueError("a verdict out of turn; expected one on the oldest check that has none")
        if not is_sound(verdict):
            return self.failed("the guard's answer is not finite")
        if verdict.is_safe and verdict.truncated:
            return self.failed("a window is longer than the guard reads; expected a smaller one", 413)
        if verdict.is_safe:
            self._hits = 0
            return self._release(check)
        self._hits += 1
        if self._hits < self.settings.hits and not check.is_last:
            return []
        self.is_over = True
        window = (check.start, check.end)
        return [Stopped(self.released, verdict.severity, verdict.categories, window, verdict)]

    def failed(self, reason: str, status: int = 503) -> list[Event]:
        """Take note that there is no verdict, and stop."""
        self.is_over = True
        return [Failed(self.released, reason, status)]

    def _cut(self, end: int, *, is_last: bool) -> Check:
        start = max(0, end - self.settings.window)
        text = self._kept[start - self._kept_from : end - self._kept_from]
        check = Check(start, end, _readable(text), is_last)
        self._cut_to = end
        self._waiting.append(check)
        return check

    def _release(self, check: Check) -> list[Event]:
        events: list[Event] = []
        to = check.end if check.is_last else check.end - self.settings.hold_back
        if to > self.released:
            text = self._kept[self.released - self._kept_from : to - self._kept_from]
            events.append(Released(text, self.released))
            self.released = to
        if check.is_last:
            self.is_over = True
            events.append(Done(to))
        return events

    def _forget(self) -> None:
        """Drop the text that neither a release nor a window needs any more."""
        needed = min(self.released, max(0, self._cut_to - self.settings.window))
        self._kept = self._kept[needed - self._kept_from :]
        self._kept_from = needed


def is_sound(verdict: Verdict) -> bool:
    """Return whether all that a verdict says are probabilities; one with a NaN in it says nothing."""
    said = [verdict.unsafe_probability, *verdict.severity_probabilities]
    return all(isfinite(p) and 0 <= p <= 1 for p in (*said, *verdict.category_probabilities.values()))


def guard_stream(
    deltas: Iterable[str],
    judge: Callable[[Sequence[str]], Sequence[Verdict]],
    settings: StreamConfig | None = None,
) -> Iterator[Event]:
    """Yield what becomes of a stream of text; `judge` gives one verdict per window."""
    guard = StreamGuard(settings)
    for checks in _batches(guard, deltas):
        try:
            verdicts = judge([check.text for check in checks])
        except FAILURES as exc:
            yield from guard.failed(_no_answer(exc))
            return
        yield from _settle(guard, checks, verdicts)


async def guard_stream_async(
    deltas: AsyncIterable[str],
    judge: Callable[[Sequence[str]], Awaitable[Sequence[Verdict]]],
    settings: StreamConfig | None = None,
) -> AsyncIterator[Event]:
    """Yield what becomes of a stream of text, as `guard_stream` does; the caller closes `deltas`."""
    guard = StreamGuard(settings)
    async for checks in _batches_async(guard, deltas):
        try:
            verdicts = await judge([check.text for check in checks])
        except FAILURES as exc:
            for event in guard.failed(_no_answer(exc)):
                yield event
            return
        for event in _settle(guard, checks, verdicts):
            yield event


def _batches(guard: StreamGuard, deltas: Iterable[str]) -> Iterator[list[Check]]:
    for delta in deltas:
        yield from _few(guard, guard.feed(delta))
        if guard.is_over:
            return
    yield guard.end()


async def _batches_async(guard: StreamGuard, deltas: AsyncIterable[str]) -> AsyncIterator[list[Check]]:
    async for delta in deltas:
        for checks in _few(guard, guard.feed(delta)):
            yield checks
        if guard.is_over:
            return
    yield guard.end()


def _few(guard: StreamGuard, checks: list[Check]) -> Iterator[list[Check]]:
    for first in range(0, len(checks), _AT_ONCE):
        if not guard.is_over:
            yield checks[first : first + _AT_ONCE]


def _settle(guard: StreamGuard, checks: Sequence[Check], verdicts: Sequence[Verdict]) -> list[Event]:
    both = zip(checks, verdicts, strict=True)
    return [event for check, verdict in both for event in guard.judged(check, verdict)]


def _no_answer(exc: BaseException) -> str:
    return f"the guard gave no answer ({type(exc).__name__})"


def _readable(text: str) -> str:
    """Return a text with its surrogate pairs joined, and U+FFFD for each half that stands alone.

    >>> _readable("a\\ud83d\\ude00b\\ud83d")
    'a😀b\ufffd'
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
