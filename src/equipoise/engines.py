"""Where record-to-record work runs: in this machine's processes, or on Ray; same operator, same output.

An operator answers a chunk of items. It is sent to every worker once and stays there, so one that
loads a model does so at its first call and keeps it. Answers come in the order of the items, and only
a few chunks are under way at a time, so memory does not grow with the input::

    answers = map_records(operator, records, engine="ray", workers=8, chunk=256)

Ray is imported only when it is asked for. Where RAY_ADDRESS names a cluster it is used; otherwise a
small one is started here and ended with the work: no dashboard, no usage statistics.
"""

import multiprocessing
import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, TypeVar

from equipoise.errors import EquipoiseError, RunStoppedError
from equipoise.extras import require

T = TypeVar("T")
U = TypeVar("U")

Engine = Literal["local", "ray"]
"""Where work runs."""

_AHEAD = 2
"""Chunks per process that are under way or done and not yet taken."""
_WINDOW = 32
"""Chunks per worker that Ray gets at a time, as one data set."""
_OBJECT_STORE = 256 * 2**20
"""Bytes of shared memory of the Ray that we start."""
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_METRICS_EXPORT_PORT": "0",
}


def map_records(
    operator: Callable[[list[T]], Sequence[U]],
    records: Iterable[T],
    *,
    engine: Engine = "local",
    workers: int = 1,
    chunk: int = 256,
) -> Iterator[U]:
    """Yield the operator's answers to all records, in order; it gives one answer per record of a chunk.

    Args:
        operator: Takes a chunk; must be picklable where it leaves this process.
        records: What to work on; read as it is needed.
        engine: `local` with one worker is this process itself.
        workers: Processes, or Ray actors of one CPU.
        chunk: Records at a time.

    Raises:
        RunStoppedError: a worker died.
        MissingExtraError: `ray` is not installed.
    """
    return chain.from_iterable(map_chunks(operator, records, engine=engine, workers=workers, chunk=chunk))


def map_chunks(
    operator: Callable[[list[T]], U],
    records: Iterable[T],
    *,
    engine: Engine = "local",
    workers: int = 1,
    chunk: int = 256,
) -> Iterator[U]:
    """Yield the operator's answer to each chunk of records, in order; arguments as `map_records`.

    >>> list(map_chunks(sum, [1, 2, 3, 4, 5], chunk=2))
    [3, 7, 5]
    """
    chunks = _chunks(iter(records), chunk)
    if engine == "ray":
        require("the engine 'ray'", "scale")
        return _on_ray(operator, chunks, workers)
    return map(operator, chunks) if workers == 1 else _in_processes(operator, chunks, workers)


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while part := list(islice(items, size)):
        yield part


class _Failed(NamedTuple):
    """An error of ours on its way back from a worker; not every class of them can be pickled."""

    kind: type[Exception]
    message: str

    def error(self) -> Exception:
        return self.kind.__new__(self.kind, self.message)


def _answer(operator: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    try:
        return operator(items)
    except (EquipoiseError, RunStoppedError) as exc:
        return _Failed(type(exc), str(exc))


def _opened(answer: Any) -> Any:
    if isinstance(answer, _Failed):
        raise answer.error()
    return answer


_held: Callable[[list[Any]], Any]  # the operator, in a worker process


def _hold(operator: Callable[[list[Any]], Any]) -> None:
    global _held  # noqa: PLW0603  (a process pool has no other place for what its workers keep)
    _held = operator


def _work(items: list[Any]) -> Any:
    return _answer(_held, items)


def _in_processes(operator: Callable[[list[T]], U], chunks: Iterator[list[T]], workers: int) -> Iterator[U]:
    # spawned, not forked: a fork of a process with threads (torch, Arrow) can hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_hold, initargs=(operator,))
    waiting: deque[Future[Any]] = deque()
    try:
        for items in chunks:
            waiting.append(pool.submit(_work, items))
            if len(waiting) >= _AHEAD * workers:
                yield _opened(waiting.popleft().result())
        while waiting:
            yield _opened(waiting.popleft().result())
    except BrokenProcessPool as exc:
        raise RunStoppedError("a worker process ended by itself (out of memory?)") from exc
    finally:
        pool.shutdown(cancel_futures=True)


class _Actor:
    """What Ray keeps per worker; rows hold pickled chunks, which Arrow need not understand."""

    def __init__(self, operator: Callable[[list[Any]], Any]) -> None:
        self.operator = operator

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"answer": pickle.dumps(_answer(self.operator, pickle.loads(row["items"])))}


def _on_ray(operator: Callable[[list[T]], U], chunks: Iterator[list[T]], workers: int) -> Iterator[U]:
    with _ray(workers) as ray:
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        while window := list(islice(chunks, _WINDOW * workers)):
            rows = [{"items": pickle.dumps(items)} for items in window]
            answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _Actor,
                fn_constructor_args=(operator,),
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
            )
            for row in answers.iter_rows():
                yield _opened(pickle.loads(row["answer"]))


@contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Yield Ray, started here unless it runs already or RAY_ADDRESS names a cluster."""
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import logging

    import ray
    import ray.data

    is_ours = not ray.is_initialized()
    if is_ours and "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.ERROR)
    elif is_ours:
        ray.init(
            num_cpus=workers,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # workers find the modules that this process finds
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()
