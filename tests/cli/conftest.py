"""The command line as tests call it: `call` gives all there is, `ask` the text, `tell` the JSON object."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from equipoise.cli.main import app

Call = Callable[..., Result]


@pytest.fixture(scope="session")
def call() -> Call:
    """Run `equipoise WORDS`. Mistakes and bugs are raised; an exit code is the caller's to look at."""

    def run(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def ask(call: Call) -> Callable[..., str]:
    """Run a command that must succeed, and return what it prints on stdout."""

    def run(*words: object) -> str:
        result = call(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture(scope="session")
def tell(ask: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """Run a command that must succeed with `--json`, and return the one object that it prints last."""

    def run(*words: object) -> dict[str, Any]:
        found = json.loads(ask(*words, "--json").splitlines()[-1])
        assert isinstance(found, dict)
        return found

    return run
