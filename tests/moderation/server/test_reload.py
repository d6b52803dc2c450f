"""A new guard takes over without a gap; one that cannot serve changes nothing."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from equipoise.lineage import replacing
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.moderation.server.engine import load_engine
from equipoise.moderation.server.service import Service
from equipoise.moderation.server.settings import Keys, ServeConfig

KEY = {"authorization": "Bearer k"}


@pytest.fixture
def folder(random_guard: Path, tmp_path: Path) -> Path:
    shutil.copytree(random_guard, tmp_path / "guard")
    return tmp_path / "guard"


@pytest.fixture
def real(folder: Path, start: Any) -> Iterator[Any]:
    settings = ServeConfig(guard=folder, device="cpu", policies=("default",))
    service = Service(settings, lambda observe: load_engine(settings, observe=observe), Keys(["k"]))
    service.start()
    with start(service) as served:
        yield served


def turn_over(folder: Path) -> None:
    """Write weights that say the opposite, as a new version."""
    weights = load_tensors(folder / "weights.safetensors")
    save_tensors(
        folder / "weights.safetensors", {n: -t if "severity" in n else t for n, t in weights.items()}
    )


def ask(server: Any) -> Any:
    answer = server.post("/v1/guard", {"prompt": "take a warm coat"}, headers=KEY)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_new_version_takes_over_without_a_gap(real: Any, folder: Path) -> None:
    before = ask(real)
    found: list[Any] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            found.append(ask(real))

    asking = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in asking:
        thread.start()
    while len(found) < 5:
        time.sleep(0.005)
    turn_over(folder)
    answer = real.post("/v1/reload", None, headers=KEY)
    assert answer.status_code == 200, answer.text
    seen = len(found)
    while len(found) < seen + 5:
        time.sleep(0.005)
    stop.set()
    for thread in asking:
        thread.join()
    after = ask(real)
    assert after["version"] == answer.json()["version"] != before["version"]
    assert after["unsafe_probability"] != pytest.approx(before["unsafe_probability"], abs=1e-3)
    for one in found:  # each by one of the two, and none by a mixture
        version = before if one["version"] == before["version"] else after
        assert one["unsafe_probability"] == pytest.approx(version["unsafe_probability"], abs=1e-5)


@pytest.mark.parametrize("broken", ["weights.safetensors", "model.json", "nan"])
def test_a_guard_that_cannot_serve_changes_nothing_and_says_so(real: Any, folder: Path, broken: str) -> None:
    before = ask(real)
    if broken == "nan":
        weights = load_tensors(folder / "weights.safetensors")
        save_tensors(folder / "weights.safetensors", {n: t * float("nan") for n, t in weights.items()})
    else:
        with replacing(folder / broken) as part:
            part.write_bytes(b"no guard")
    answer = real.post("/v1/reload", None, headers=KEY)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith("not loaded: ")
    assert answer.json()["error"]["message"].endswith(f"; {before['version']} goes on")
    assert ask(real) == before


def test_a_policy_that_was_changed_takes_over_and_a_broken_one_does_not(
    folder: Path, tmp_path: Path, start: Any
) -> None:
    written = tmp_path / "house.yaml"
    written.write_text("name: house\nunsafe: 0.9\n")
    settings = ServeConfig(guard=folder, device="cpu", policies=(str(written),))
    service = Service(settings, lambda observe: load_engine(settings, observe=observe), Keys(["k"]))
    service.start()
    with start(service) as served:
        for text, status, threshold in (
            ("name: house\nunsafe: 0.2\n", 200, 0.2),
            ("name: house\nunsafe: 2\n", 503, 0.2),
        ):
            written.write_text(text)
            assert served.post("/v1/reload", None, headers=KEY).status_code == status
            (house, *_) = served.client.get("/v1/policies", headers=KEY).json()["policies"]
            assert (house["name"], house["unsafe"]["response"]) == ("house", threshold)
        counted = served.client.get("/metrics", headers=KEY).text
    assert 'equipoise_rejected_total{reason="reload"} 1.0' in counted


def test_only_who_has_a_key_may_reload_and_without_keys_nobody(real: Any, serve: Any) -> None:
    assert real.client.post("/v1/reload").status_code == 401
    assert serve().client.post("/v1/reload").status_code == 403
