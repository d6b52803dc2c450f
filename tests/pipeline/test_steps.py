"""Every name that a recipe can use leads to a step."""

import pytest

from equipoise.config import Config
from equipoise.pipeline.steps import STEPS, step_of


@pytest.mark.parametrize("name", STEPS)
def test_every_kind_of_step_is_there_and_takes_settings(name: str) -> None:
    step = step_of(name)
    assert issubclass(step.config, Config)
    assert step.config is not Config
    assert callable(step.build)
