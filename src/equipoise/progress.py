"""Progress of long work, on stderr: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0
_IS_SILENT: ContextVar[bool] = ContextVar("is_silent", default=False)


def say(message: str) -> None:
    """Write one line for the person who watches, on stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how far the loop over them has come.

    Args:
        items: What to loop over.
        label: What is being done, for example `judging`.
        total: How many items there are; taken from `len(items)` where it has one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(label, total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def bar(label: str, total: int | None = None, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show the progress of something that is no plain loop; call what is yielded once per piece.

    Args:
        label: What is being done.
        total: How many pieces there are.
        done: How many were finished before, by a run that was interrupted.
    """
    if _IS_SILENT.get():
        yield lambda: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=total, completed=done)
            yield lambda: progress.advance(task)
    else:
        yield _line_writer(label, total, done)


@contextmanager
def silent() -> Iterator[None]:
    """Show no progress of what is done inside, in this thread: nobody watches a server's single batches."""
    token = _IS_SILENT.set(True)
    try:
        yield
    finally:
        _IS_SILENT.reset(token)


def _line_writer(label: str, total: int | None, done: int) -> Callable[[], None]:
    started = last = time.monotonic()

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            say(f"{label}: {done}{f'/{total}' if total else ''} after {now - started:.0f} s")

    return advance
