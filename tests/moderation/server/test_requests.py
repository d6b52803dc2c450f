"""What a client may send, who may send it, and what is written down of it."""

import json
import logging
import socket
import time
from typing import Any

import pytest

from equipoise.errors import ConfigError
from equipoise.moderation.server.app import JUDGING
from equipoise.moderation.server.logs import JsonLines
from equipoise.moderation.server.settings import KEYS, ServeConfig, read_keys

PATHS = [route.path for module in JUDGING for route in module.router.routes if "POST" in route.methods]
SECRET = "zebracrossing"


@pytest.fixture(scope="module")
def tight(serve_shared: Any) -> Any:
    """A server with small limits."""
    limits = {"max_request_bytes": 2000, "max_texts": 3, "max_chars": 300, "body_seconds": 0.3}
    return serve_shared(limits=limits)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"\x1f\x8b\x08\x00binary",
        b'{"prompt": "\\ud800", "input": "\\ud800", "text": "\\ud800"}',
        b'{"input": NaN}',
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"9" * 5000,
        b"{}",
        b'{"input": 1, "prompt": 2, "text": 3, "texts": 4, "messages": 5, "response": 6}',
        b'{"input": null, "prompt": null, "text": null, "texts": null, "messages": null}',
    ],
)
def test_what_is_no_request_is_refused_in_the_protocols_form(server: Any, path: str, raw: bytes) -> None:
    answer = server.client.post(path, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert ("type" in error) != path.startswith("/contentsafety")


@pytest.mark.parametrize("path", PATHS)
def test_too_many_bytes_are_refused_also_where_nobody_said_how_many(tight: Any, path: str) -> None:
    body = json.dumps({"input": "a" * 3000}).encode()
    assert tight.client.post(path, content=body).status_code == 413
    assert tight.client.post(path, content=iter([body[:1000], body[1000:]])).status_code == 413
    huge = json.dumps({"input": "a" * 100_000}).encode()  # more than is read and dropped
    assert tight.client.post(path, content=huge).status_code == 413


def test_too_many_texts_and_too_long_ones_are_refused(tight: Any) -> None:
    for path, body in (
        ("/v1/moderations", {"input": ["a"] * 4}),
        ("/v1/completions", {"prompt": ["a"] * 4}),
        ("/v1/moderations", {"input": "a" * 301}),
        ("/v1/guard", {"prompt": "a" * 200, "response": "a" * 101}),
        ("/contentsafety/text:analyze", {"text": "a" * 301}),
        ("/v1/guard/stream", {"prompt": "a" * 301, "response": "b"}),
        ("/beta/litellm_basic_guardrail_api", {"texts": ["a"] * 4, "input_type": "request"}),
        ("/beta/litellm_basic_guardrail_api", {"texts": ["a" * 301], "input_type": "response"}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "a" * 301}]}),
        ("/v1/completions", {"prompt": "a" * 301}),
    ):
        answer = tight.post(path, body)
        assert answer.status_code == 413, path
        assert "expected at most" in answer.json()["error"]["message"]
    assert tight.post("/v1/moderations", {"input": ["a" * 300] * 3}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/guard", "/v1/guard/stream"])
def test_a_request_that_does_not_get_on_is_given_up(tight: Any, path: str) -> None:
    host, port = tight.url.removeprefix("http://").split(":")
    kind = "application/x-ndjson" if path.endswith("stream") else "application/json"
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 90\r\n\r\n"
        slow.sendall(head.encode() + b'{"prompt"')
        assert slow.recv(4000).startswith(b"HTTP/1.1 408 ")


def test_a_path_or_a_method_that_is_not_served_gets_the_form_too(server: Any) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/moderation", 404),
        ("GET", "/v1/guard", 405),
        ("DELETE", "/contentsafety/text:analyze", 405),
        ("GET", "/contentsafety/image:analyze", 404),
    ):
        answer = server.client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
        assert ("type" in answer.json()["error"]) != path.startswith("/contentsafety")


@pytest.fixture(scope="module")
def locked(serve_shared: Any) -> Any:
    return serve_shared(keys=("first-key", "s\u00e9cond"))


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/v1/policies", "/metrics", "/v1/reload"])
def test_without_a_key_nothing_is_told(locked: Any, path: str) -> None:
    method = "GET" if path in {"/v1/models", "/v1/policies", "/metrics"} else "POST"
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer first-key-and-more"},
        {"authorization": "Bearer"},
        {"authorization": "Basic first-key"},
        {"x-api-key": "FIRST-KEY"},
        {"authorization": b"Bearer \xff\xfe"},
    ):
        answer = locked.client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] in {"invalid_api_key", "401"}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer first-key"},
        {"authorization": "Bearer s\u00e9cond".encode()},
        {"x-api-key": "first-key"},
        {"Ocp-Apim-Subscription-Key": "first-key"},
        {"api-key": "first-key"},
    ],
)
def test_any_of_the_keys_opens_in_the_header_of_any_protocol(locked: Any, headers: Any) -> None:
    assert locked.post("/v1/guard", {"prompt": "a coat"}, headers=headers).status_code == 200


def test_probes_and_the_page_need_no_key(locked: Any) -> None:
    for path in ("/health", "/ready", "/"):
        assert locked.client.get(path).status_code == 200


def test_keys_come_from_the_environment_and_a_variable_without_a_key_is_a_mistake() -> None:
    keys = read_keys({KEYS: " one, two ,,"})
    assert [keys.admit({"x-api-key": text}) for text in ("one", "two", "three", "", ",")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert not read_keys({})
    assert read_keys({}).admit({})
    for empty in ("", " , "):
        with pytest.raises(ConfigError, match=f"^{KEYS}: is set and holds no key"):
            read_keys({KEYS: empty})


def test_a_limit_that_the_queue_can_never_meet_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"limits\.max_texts: more than the queue holds, got 64"):
        ServeConfig.model_validate({"guard": "g", "batching": {"max_queue": 8}})


def test_a_request_has_an_id_of_its_own_or_the_clients(server: Any) -> None:
    first, second = (server.client.get("/health").headers["x-request-id"] for _ in range(2))
    assert first != second
    for given, kept in (("job-7.a", True), ("no spaces", False), ("x" * 65, False)):
        found = server.client.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
        assert (found == given) is kept


def test_the_page_asks_no_other_host_for_anything(server: Any) -> None:
    answer = server.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "://" not in answer.text


def test_the_description_of_the_interface_is_whole(server: Any) -> None:
    described = server.client.get("/openapi.json").json()
    for path in set(PATHS) - {"/v1/chat/completions"}:
        body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"]
        assert "$ref" not in json.dumps(body)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the server would write; the client of these tests logs in the same process."""
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    return [json.loads(JsonLines().format(record)) for record in ours]


def test_no_text_of_a_request_is_in_any_log_line_or_counter(
    serve: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def fault() -> None:
        raise errors.pop()

    errors: list[Exception] = []
    server = serve(batching={"timeout_seconds": 1})
    caplog.set_level(logging.DEBUG)
    quoted = {"prompt": SECRET, "input": SECRET, "text": SECRET, "texts": [SECRET], "input_type": "request"}
    quoted |= {"model": SECRET, "messages": [{"role": "user", "content": SECRET}], "response": SECRET}
    statuses = set()
    for path in PATHS:
        for more in ({}, {SECRET: SECRET}, {"policy": SECRET}):
            statuses.add(server.post(f"{path}?q={SECRET}", {**quoted, **more}).status_code)
        statuses.add(server.client.post(path, content=f'{{"a": "{SECRET}'.encode()).status_code)
    for error in (ZeroDivisionError(SECRET), OSError(SECRET)):
        errors.append(error)
        server.reader.fault = fault
        statuses.add(server.post("/v1/guard", {"prompt": SECRET}).status_code)
    headers = {"x-request-id": f"{SECRET} !", "user-agent": SECRET, SECRET: SECRET}
    statuses.add(server.client.get(f"/v1/{SECRET}", headers=headers).status_code)
    statuses.add(server.client.get(f"/v1/models/{SECRET}").status_code)
    assert {200, 400, 404, 500, 503} <= statuses
    counted = server.client.get("/metrics").text
    lines = lines_of(caplog)
    assert len([line for line in lines if line["event"] == "request"]) > 30
    assert SECRET not in json.dumps(lines) + counted
    assert SECRET not in "".join(capfd.readouterr())


def test_a_log_line_says_what_was_asked_and_found(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    caplog.set_level(logging.INFO)
    server.post("/v1/moderations", {"input": ["the harm", "a coat"]}, headers={"x-request-id": "r1"})
    deadline = time.monotonic() + 5
    while not (asked := [line for line in lines_of(caplog) if line.get("request_id") == "r1"]):
        assert time.monotonic() < deadline
    (line,) = asked
    expected = {"method": "POST", "path": "/v1/moderations", "status": 200, "texts": 2, "flagged": 1}
    assert line == line | expected | {"review": 0, "policy": "default", "level": "info"}
    assert line["ms"] > 0


def test_of_an_error_the_log_has_the_kind_and_the_places_of_the_whole_chain() -> None:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as inner:
            raise ValueError(SECRET) from inner
    except ValueError as outer:
        record = logging.LogRecord("x", 40, "p", 1, "failed", (), (ValueError, outer, outer.__traceback__))
    line = json.loads(JsonLines().format(record))
    assert [one["type"] for one in line["error"]] == ["ValueError", "KeyError"]
    assert "test_requests.py" in line["error"][0]["where"][0]
    assert SECRET not in json.dumps(line["error"])


def test_the_counters_tell_how_much_how_long_and_how_bad(serve: Any) -> None:
    server = serve()
    server.post("/v1/moderations", {"input": ["the harm is warm", "a coat", "salt"]})
    server.post("/v1/guard", {"prompt": "a"})
    server.client.post("/v1/guard", content=b"{")
    text = server.client.get("/metrics").text
    for line in (
        'equipoise_requests_total{endpoint="/v1/moderations",status="200"} 1.0',
        'equipoise_requests_total{endpoint="/v1/guard",status="400"} 1.0',
        'equipoise_request_seconds_count{endpoint="/v1/guard"} 2.0',
        'equipoise_verdicts_total{policy="default",severity="2",shadow="false"} 1.0',
        'equipoise_verdicts_total{policy="default",severity="0",shadow="false"} 2.0',
        'equipoise_flagged_total{category="Drugs",policy="default",shadow="false"} 1.0',
        'equipoise_unsafe_probability_count{target="prompt"} 4.0',
        "equipoise_queue_depth 0.0",
        'equipoise_guard_info{policy="default",taxonomy="pku19",version="planted"} 1.0',
    ):
        assert line in text, line
    assert "equipoise_batch_size_sum 4.0" in text
