"""`equipoise serve`: mistakes are said before anything is served."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import ConfigError, EquipoiseError


@pytest.fixture(autouse=True)
def logs_go_where_they_went() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "model 'minilm' is not installed; run: equipoise models install minilm"),
        (("--guard", "nowhere"), "nowhere"),
        (("--guard", "FOLDER"), "no model.json"),
        (("--guard", "FOLDER", "--set", "languages=[xx]"), "language: no language 'xx'"),
        (("--guard", "FOLDER", "--set", "batching.max_wait_ms=50"), "batching.max_wait_ms: "),
        (("--guard", "FOLDER", "--host", "256.0.0.1"), "--host 256.0.0.1 --port 0: "),
        (
            ("--guard", "FOLDER", "--upstream", "http://x", "--set", "gateway.upstream.api_key_env=NO_SUCH"),
            "endpoint.api_key_env: NO_SUCH is not set",
        ),
    ],
)
def test_a_mistake_is_one_line(
    call: Any, words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    given = [str(tmp_path) if word == "FOLDER" else word for word in words]
    with pytest.raises(EquipoiseError) as caught:
        call("serve", "--port", "0", *given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variable_of_keys_without_a_key_opens_nothing(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_API_KEYS", " , ")
    with pytest.raises(ConfigError, match="EQUIPOISE_API_KEYS: is set and holds no key"):
        call("serve", "--port", "0", "--guard", tmp_path)
