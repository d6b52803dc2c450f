"""The server fails closed: whatever goes wrong, at whatever endpoint, is an error and never a pass."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from equipoise.errors import ModelError, RunStoppedError
from equipoise.moderation.server.app import JUDGING

CHAT = {"model": "equipoise-guard", "messages": [{"role": "user", "content": "take a coat"}]}
LINES = b'{"prompt": "take a coat"}\n{"delta": "Mix flour."}\n'
JSON, NDJSON = "application/json", "application/x-ndjson"

ENDPOINTS: dict[str, tuple[str, bytes, str]] = {
    "guard": ("/v1/guard", b'{"prompt": "take a coat"}', JSON),
    "answer": ("/v1/guard", b'{"prompt": "take a coat", "response": "Mix it."}', JSON),
    "stream": ("/v1/guard/stream", b'{"response": "Mix it."}', JSON),
    "stream in lines": ("/v1/guard/stream", LINES, NDJSON),
    "openai": ("/v1/moderations", b'{"input": "take a coat"}', JSON),
    "openai list": ("/v1/moderations", b'{"input": ["take a coat", "warm"]}', JSON),
    "azure": ("/contentsafety/text:analyze", b'{"text": "take a coat"}', JSON),
    "litellm": (
        "/beta/litellm_basic_guardrail_api",
        b'{"texts": ["take a coat"], "input_type": "request"}',
        JSON,
    ),
    "chat": ("/v1/chat/completions", json.dumps(CHAT).encode(), JSON),
    "chat stream": ("/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode(), JSON),
    "gateway": ("/v1/chat/completions", json.dumps({**CHAT, "model": "other"}).encode(), JSON),
    "gateway stream": (
        "/v1/chat/completions",
        json.dumps({**CHAT, "model": "other", "stream": True}).encode(),
        JSON,
    ),
    "completions": ("/v1/completions", b'{"model": "equipoise-guard", "prompt": "take a coat"}', JSON),
    "completions list": ("/v1/completions", b'{"model": "equipoise-guard", "prompt": ["take", "a"]}', JSON),
}
NOWHERE = {"upstream": {"url": "http://127.0.0.1:9/v1"}}
"""An upstream that nobody listens at: the guard's failure has to come first."""


def post(server: Any, endpoint: str) -> Any:
    path, body, kind = ENDPOINTS[endpoint]
    return server.client.post(path, content=body, headers={"content-type": kind})


def check_is_refused(answer: Any, status: int) -> None:
    """The status, and an error in the envelope of the path's protocol; no verdict of any kind."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert found.keys() == {"error"}
    error = found["error"]
    if answer.url.path.startswith("/contentsafety"):
        assert error.keys() <= {"code", "message", "target"}
        assert answer.headers["x-ms-error-code"] == error["code"]
    else:
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"]
    assert "coat" not in answer.text
    assert answer.headers["x-request-id"]


@pytest.fixture(scope="module")
def unloaded(serve_shared: Any) -> Any:
    return serve_shared(started=False, gateway=NOWHERE)


@pytest.fixture(scope="module")
def failing(serve_shared: Any) -> Any:
    return serve_shared(gateway=NOWHERE)


@pytest.fixture(scope="module")
def hasty(serve_shared: Any) -> Any:
    """Waits for its guard a moment only."""
    return serve_shared(gateway=NOWHERE, batching={"timeout_seconds": 0.3})


@pytest.fixture(autouse=True)
def mended(request: pytest.FixtureRequest) -> Any:
    yield
    for name in {"failing", "hasty"} & set(request.fixturenames):
        reader = request.getfixturevalue(name).reader
        reader.fault, reader.is_nan = (lambda: None), False


def test_every_path_that_judges_is_in_the_matrix() -> None:
    paths = {route.path for module in JUDGING for route in module.router.routes if "POST" in route.methods}
    assert paths == {path for path, _, _ in ENDPOINTS.values()}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_guard_no_verdict(unloaded: Any, endpoint: str) -> None:
    answer = post(unloaded, endpoint)
    check_is_refused(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_answer_that_is_no_number_is_no_verdict(failing: Any, endpoint: str) -> None:
    failing.reader.is_nan = True
    check_is_refused(post(failing, endpoint), 503)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "error", [ModelError("a coat"), RunStoppedError("coat"), OSError("coat"), RuntimeError("out of coats")]
)
def test_a_guard_that_fails_gives_no_verdict(failing: Any, endpoint: str, error: Exception) -> None:
    def fault() -> None:
        raise error

    failing.reader.fault = fault
    check_is_refused(post(failing, endpoint), 503)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_bug_gives_no_verdict(failing: Any, endpoint: str) -> None:
    def fault() -> None:
        raise ZeroDivisionError("take a coat")

    failing.reader.fault = fault
    check_is_refused(post(failing, endpoint), 500)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_guard_that_takes_too_long_gives_no_verdict(hasty: Any, endpoint: str) -> None:
    go_on = threading.Event()
    hasty.reader.fault = lambda: go_on.wait(10)
    try:
        answer = post(hasty, endpoint)
    finally:
        go_on.set()
    check_is_refused(answer, 504)


def test_a_server_that_is_stopping_gives_no_verdict(serve: Any) -> None:
    server = serve(gateway=NOWHERE)
    asyncio.run(server.service.close())
    for endpoint in ENDPOINTS:
        refused = post(server, endpoint)
        check_is_refused(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1


def test_overload_gives_no_verdict_and_loses_nothing(serve: Any) -> None:
    server = serve(gateway=NOWHERE, batching={"max_queue": 2}, limits={"max_texts": 2})
    go_on = threading.Event()
    server.reader.fault = lambda: go_on.wait(10)
    answers: list[Any] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(server.post("/v1/guard", {"prompt": "the harm"})))
        for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    while server.service.engine.batcher.depth < 2:
        time.sleep(0.005)
    for endpoint in ENDPOINTS:
        refused = post(server, endpoint)
        check_is_refused(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
    go_on.set()
    for thread in waiting:
        thread.join()
    assert [(a.status_code, a.json()["is_safe"]) for a in answers] == [(200, False)] * 2
    counted = server.client.get("/metrics").text
    assert f'equipoise_rejected_total{{reason="overload"}} {len(ENDPOINTS)}.0' in counted


def test_readiness_tells_a_guard_that_does_not_come_back(serve: Any) -> None:
    server = serve(batching={"timeout_seconds": 0.3})
    assert server.client.get("/ready").json()["status"] == "ready"
    go_on, has_begun = threading.Event(), threading.Event()

    def fault() -> None:
        has_begun.set()
        go_on.wait(10)

    server.reader.fault = fault
    while not has_begun.is_set():  # on a slow machine it may not begin in time
        check_is_refused(post(server, "guard"), 504)
    while (answer := server.client.get("/ready")).status_code == 200:
        time.sleep(0.01)
    assert answer.json()["error"]["message"] == "the guard does not come back"
    assert server.client.get("/health").status_code == 200
    server.reader.fault = lambda: None
    go_on.set()
    while server.client.get("/ready").status_code != 200:
        time.sleep(0.01)


def test_a_kind_of_text_that_the_guard_was_not_trained_on_gets_no_verdict(make: Any, serve: Any) -> None:
    card = make().reader.card.model_copy(update={"targets": ("response",)})
    server = serve(card=card)
    refused = server.post("/v1/guard", {"prompt": "take a coat"})
    check_is_refused(refused, 400)
    assert "not trained to judge it" in refused.json()["error"]["message"]
    assert server.post("/v1/guard", {"prompt": "a", "response": "b"}).json()["is_safe"] is True


def test_before_a_guard_is_loaded_the_process_is_alive_and_not_ready(unloaded: Any) -> None:
    assert unloaded.client.get("/health").status_code == 200
    assert unloaded.client.get("/ready").status_code == 503
    assert unloaded.client.get("/v1/models").status_code == 503
    assert unloaded.client.get("/v1/policies").status_code == 503
    assert unloaded.client.get("/metrics").status_code == 200
