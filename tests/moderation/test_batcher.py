"""The batcher: every accepted call gets its own results or an error, in time, and no neighbour's."""

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from equipoise.moderation.batcher import Batcher, Batching, ClosedError, OverloadedError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Squares:
    """Squares numbers; a negative one fails the whole batch. Remembers the batches and the threads."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.add(threading.current_thread().name)
        assert self.go_on.wait(10)
        time.sleep(self.seconds)
        if any(item < 0 for item in items):
            raise ValueError("a negative number")
        return [item * item for item in items]


async def until(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def test_every_caller_gets_its_own_results_in_order() -> None:
    work = Squares()
    batcher = Batcher(work, Batching(max_batch=4))
    calls = [list(range(i, i + i % 7)) for i in range(40)]
    found = await asyncio.gather(*(batcher(call) for call in calls))
    assert found == [[n * n for n in call] for call in calls]
    assert max(map(len, work.batches)) <= 4
    assert len(work.batches) < sum(map(len, calls))  # they were gathered
    assert work.threads == {"batcher_0"}
    assert batcher.depth == 0
    assert await batcher.close()


async def test_a_lone_call_waits_no_longer_than_it_is_told_to() -> None:
    batcher = Batcher(Squares(), Batching(max_wait_ms=5, max_batch=100))
    started = time.perf_counter()
    assert await batcher([3]) == [9]
    assert time.perf_counter() - started < 1
    await batcher.close()


async def test_calls_that_come_while_the_worker_is_busy_go_together() -> None:
    work = Squares()
    work.go_on.clear()
    batcher = Batcher(work, Batching(max_batch=8, max_wait_ms=0))
    first = asyncio.create_task(batcher([1]))
    await until(lambda: work.batches)
    rest = [asyncio.create_task(batcher([n])) for n in range(2, 7)]
    await until(lambda: batcher.depth == 6)
    work.go_on.set()
    assert await asyncio.gather(first, *rest) == [[1], [4], [9], [16], [25], [36]]
    assert work.batches == [[1], [2, 3, 4, 5, 6]]
    await batcher.close()


async def test_one_callers_failure_is_not_its_neighbours() -> None:
    work = Squares()
    work.go_on.clear()
    batcher = Batcher(work, Batching(max_wait_ms=0))
    blocker = asyncio.create_task(batcher([1]))
    await until(lambda: work.batches)
    calls = [asyncio.create_task(batcher(call)) for call in ([2], [-3, 4], [5])]
    await until(lambda: batcher.depth == 5)
    work.go_on.set()
    two, bad, five = await asyncio.gather(*calls, return_exceptions=True)
    assert (two, five) == ([4], [25])
    assert isinstance(bad, ValueError)
    assert await blocker == [1]
    await batcher.close()


async def test_what_does_not_fit_the_queue_is_refused_whole_and_at_once() -> None:
    work = Squares()
    work.go_on.clear()
    batcher = Batcher(work, Batching(max_queue=4))
    accepted = [asyncio.create_task(batcher([n, n])) for n in (1, 2)]
    await until(lambda: batcher.depth == 4)
    with pytest.raises(OverloadedError) as caught:
        await batcher([3])
    assert caught.value.after >= 1
    work.go_on.set()
    assert await asyncio.gather(*accepted) == [[1, 1], [4, 4]]
    assert await batcher([3]) == [9]
    assert 3 not in [n for batch in work.batches[:1] for n in batch]
    await batcher.close()


async def test_who_waits_too_long_gets_an_error_and_the_rest_is_dropped() -> None:
    work = Squares()
    work.go_on.clear()
    batcher = Batcher(work, Batching(timeout_seconds=0.5, max_batch=2))
    calls = [asyncio.create_task(batcher([n, n])) for n in (1, 2)]
    await until(lambda: work.batches)
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, TimeoutError) for one in found)
    assert batcher.depth == 0
    await until(lambda: batcher.is_stuck)
    work.go_on.set()
    await until(lambda: not batcher.is_stuck)
    assert await batcher([3]) == [9]
    assert work.batches == [[1, 1], [3]]  # the second was never begun
    await batcher.close()


async def test_a_caller_who_leaves_makes_room() -> None:
    work = Squares()
    work.go_on.clear()
    batcher = Batcher(work, Batching(max_queue=2, max_wait_ms=0))
    first = asyncio.create_task(batcher([1]))
    await until(lambda: work.batches)
    second = asyncio.create_task(batcher([2]))
    await until(lambda: batcher.depth == 2)
    second.cancel()
    await until(lambda: batcher.depth == 1)
    third = asyncio.create_task(batcher([3]))
    work.go_on.set()
    assert await asyncio.gather(first, third) == [[1], [9]]
    assert [2] not in work.batches
    await batcher.close()


async def test_closing_finishes_what_was_accepted_and_takes_no_more() -> None:
    work = Squares(seconds=0.01)
    batcher = Batcher(work, Batching(max_batch=2))
    calls = [asyncio.create_task(batcher([n])) for n in range(10)]
    await until(lambda: batcher.depth == 10)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(ClosedError):
        await batcher([99])
    assert await asyncio.gather(*calls) == [[n * n] for n in range(10)]
    assert await closing


async def test_closing_does_not_wait_for_ever_for_work_that_hangs() -> None:
    work = Squares()
    work.go_on.clear()
    batcher = Batcher(work, Batching(timeout_seconds=0.5))
    call = asyncio.create_task(batcher([1]))
    await until(lambda: work.batches)
    with pytest.raises(TimeoutError):
        await call
    assert not await batcher.close(0.05)
    work.go_on.set()
    assert await batcher.close(5)


async def test_results_that_do_not_match_the_items_are_an_error() -> None:
    batcher = Batcher(lambda items: [*items][:-1], Batching())
    with pytest.raises(RuntimeError, match="1 results for 2 items"):
        await batcher([1, 2])
    await batcher.close()


async def test_sizes_and_times_of_batches_are_told() -> None:
    seen: list[tuple[int, float]] = []
    batcher = Batcher(Squares(0.002), Batching(max_batch=3), observe=lambda n, s: seen.append((n, s)))
    await batcher([1, 2, 3, 4])
    assert [size for size, _ in seen] == [3, 1]
    assert all(seconds >= 0.002 for _, seconds in seen)
    await batcher.close()
