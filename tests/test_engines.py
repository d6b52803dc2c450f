"""Where work runs: the same answers in the same order from this process, from processes and from Ray."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from equipoise.engines import Engine, map_chunks, map_records
from equipoise.errors import DataError, MissingExtraError, RunStoppedError

OPERATORS = '''
import os
import time

from equipoise.errors import MissingExtraError


def double(items):
    time.sleep(0.05 if items[0] == 0 else 0)  # the first chunk ends last
    return [2 * item for item in items]


def pid(items):
    return os.getpid()


def demand(items):
    raise MissingExtraError("the work", "scale")


def vanish(items):
    os._exit(9)


class Counting:
    """Counts its calls, as an operator that keeps a model would."""

    calls = 0

    def __call__(self, items):
        self.calls += 1
        return self.calls
'''


@pytest.fixture
def operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that worker processes can import."""
    (tmp_path / "operators_of_a_test.py").write_text(OPERATORS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import operators_of_a_test

    yield operators_of_a_test
    del sys.modules["operators_of_a_test"]


RAY = pytest.param("ray", marks=[pytest.mark.tools, pytest.mark.filterwarnings("default")])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ["local", RAY])
def test_answers_come_in_the_order_of_the_records(
    operators: ModuleType, engine: Engine, workers: int
) -> None:
    answers = map_records(operators.double, iter(range(25)), engine=engine, workers=workers, chunk=3)
    assert list(answers) == [2 * i for i in range(25)]


def test_work_leaves_this_process_only_where_workers_are_asked_for(operators: ModuleType) -> None:
    here = operators.pid([])
    assert set(map_chunks(operators.pid, range(4), chunk=2)) == {here}
    assert here not in set(map_chunks(operators.pid, range(4), workers=2, chunk=2))


def test_a_worker_keeps_its_operator(operators: ModuleType) -> None:
    assert list(map_chunks(operators.Counting(), range(6), chunk=2)) == [1, 2, 3]
    elsewhere = list(map_chunks(operators.Counting(), range(12), workers=2, chunk=1))
    assert len(elsewhere) == 12
    assert max(elsewhere) >= 6


def test_nothing_to_do_is_no_answer(operators: ModuleType) -> None:
    assert list(map_records(operators.double, [], workers=2)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_only_a_few_chunks_are_read_ahead(operators: ModuleType, workers: int) -> None:
    taken: list[int] = []

    def records() -> Iterator[int]:
        for number in range(1, 1001):
            taken.append(number)
            yield number

    answers = map_records(operators.double, records(), workers=workers, chunk=2)
    assert [next(answers), next(answers)] == [2, 4]
    assert len(taken) <= 2 * 2 * workers


@pytest.mark.parametrize("engine", ["local", RAY])
def test_an_error_of_ours_in_a_worker_arrives_as_it_is(operators: ModuleType, engine: Engine) -> None:
    with pytest.raises(MissingExtraError, match=r"^the work needs the extra 'scale'"):
        list(map_chunks(operators.demand, range(3), engine=engine, workers=2))


def test_an_error_of_the_records_is_not_swallowed(operators: ModuleType) -> None:
    def records() -> Iterator[int]:
        yield 1
        raise DataError("line 2")

    with pytest.raises(DataError, match="line 2"):
        list(map_records(operators.double, records(), workers=2, chunk=1))


def test_a_worker_that_dies_stops_the_run(operators: ModuleType) -> None:
    with pytest.raises(RunStoppedError, match="a worker process ended"):
        list(map_chunks(operators.vanish, range(3), workers=2))


def test_ray_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="the engine 'ray' needs the extra 'scale'"):
        map_chunks(len, range(3), engine="ray")
