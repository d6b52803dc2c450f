"""What a run ran on."""

import platform
from importlib import metadata

from equipoise.machine import cpu_seconds, processor, versions


def test_versions_are_those_that_are_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["pydantic"] == metadata.version("pydantic")


def test_the_processor_is_one_line() -> None:
    assert "\n" not in processor()


def test_processor_time_counts_work_and_not_waiting() -> None:
    before = cpu_seconds()
    sum(i * i for i in range(300_000))
    assert 0 < cpu_seconds() - before < 60
