"""A score is the text's own: not its neighbours', not the order's, not the server's."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from equipoise.lineage import produce
from equipoise.moderation.batch import MODERATE, ModerateConfig
from equipoise.moderation.server.engine import load_engine
from equipoise.moderation.server.service import Service
from equipoise.moderation.server.settings import ServeConfig

TEXT = (
    "How do I bake bread at home without an oven Mix flour water salt and yeast then wait until the dough "
    "has doubled The weather in the mountains changes quickly so take a warm coat"
)
WORDS = TEXT.split()
CLOSE = 1e-5


def texts() -> list[str]:
    """Texts from one word to more than the encoder reads, all different."""
    draw = random.Random(3)
    return [" ".join(draw.choices(WORDS, k=k)) for k in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 300)]


@pytest.fixture(scope="module")
def real(random_guard: Path, start: Any) -> Iterator[Any]:
    settings = ServeConfig(guard=random_guard, device="cpu")
    service = Service(settings, lambda observe: load_engine(settings, observe=observe))
    service.start()
    with start(service) as served:
        yield served


def scores(found: Any) -> list[float]:
    return [found["unsafe_probability"], *found["severity_probabilities"]]


def check_same(one: Any, other: Any) -> None:
    assert scores(one) == pytest.approx(scores(other), abs=CLOSE)
    assert one["category_probabilities"] == pytest.approx(other["category_probabilities"], abs=CLOSE)
    for name in ("is_safe", "severity", "harm_categories", "truncated", "target"):
        assert one[name] == other[name]


def test_a_score_does_not_depend_on_who_is_judged_with_it(real: Any) -> None:
    given = texts()
    alone = [real.post("/v1/guard", {"prompt": text}).json() for text in given]
    spread = [one["unsafe_probability"] for one in alone]
    assert max(spread) - min(spread) > 0.05  # the texts do differ
    together = real.post("/v1/moderations", {"input": given}).json()["results"]
    backwards = real.post("/v1/moderations", {"input": given[::-1]}).json()["results"][::-1]
    with ThreadPoolExecutor(12) as pool:
        crowd = list(pool.map(lambda text: real.post("/v1/guard", {"prompt": text}).json(), given))
    for i, one in enumerate(alone):
        check_same(one, crowd[i])
        for result in (together[i], backwards[i]):
            categories = {name: c["score"] for name, c in result["native_categories"].items()}
            check_same(one, {**result, "category_probabilities": categories})


def test_the_server_says_what_the_command_line_says(real: Any, random_guard: Path, tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": text} for i, text in enumerate(texts())]
    rows += [{"id": f"r{i}", "prompt": "Tell me.", "response": text} for i, text in enumerate(texts())]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ModerateConfig(file=tmp_path / "in.jsonl", guard=random_guard)
    produce(tmp_path / "out.jsonl", MODERATE, settings)
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        row = json.loads(line)
        asked = {name: row[name] for name in ("prompt", "response") if name in row}
        check_same(real.post("/v1/guard", asked).json(), row)
