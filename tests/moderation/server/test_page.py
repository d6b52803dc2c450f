"""The page in a real browser: it shows the verdict, hides harmful text, and asks this server only."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from equipoise.annotation.environment import install_tool
from equipoise.models.builtin import cache_folder
from equipoise.moderation.policies import Policy

pytestmark = pytest.mark.tools

LOCK = Path(__file__).parents[2] / "tools" / "selenium.lock"
MARKUP = "<img src=x onerror=\"document.title = 'taken'\"> & the harm is warm"


def drive(task: dict[str, Any]) -> Any:
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install chromium chromium-driver")
    python = install_tool(cache_folder(), "selenium", LOCK.read_text("utf-8"))
    script = Path(__file__).with_name("drive_page.py")
    done = subprocess.run(
        [python, str(script)], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_person_sees_verdict_bars_and_policies(serve: Any, tmp_path: Path) -> None:
    policies = (
        Policy(name="strict", unsafe=0.001, about="Flags nearly all."),
        Policy(name="usual", unsafe=0.5, review=(0.9, 1.0)),
        Policy(name="unsure", unsafe=1.0, review=(0.0, 1.0)),
        Policy(name="quiet", unsafe=1.0, shadow=True),
    )
    server = serve(policies=policies, keys=("k",))
    steps = [
        {"prompt": "take a coat"},
        {"prompt": MARKUP, "policy": "usual"},
        {"prompt": "the harm", "response": "a warm coat", "policy": "usual"},
        {"prompt": "take a coat", "policy": "unsure"},
    ]
    picture = tmp_path / "page.png"
    seen = drive({"url": server.url, "key": "k", "steps": steps, "picture": str(picture)})
    strict, unsafe, answer, unsure = seen["steps"]
    assert strict["badge"].startswith("Unsafe, ")
    assert unsafe["badge"] == "Unsafe, moderate"
    assert "a person should look" in unsafe["notes"]
    assert unsafe["bars"]["Violence"] == "95.0 %"
    assert {"unsafe", "safe", "minor", "moderate", "severe"} <= unsafe["bars"].keys()
    assert len(unsafe["bars"]) == 1 + 4 + 19
    assert unsafe["flagged"] == ["moderate", "Violence"]
    assert (unsafe["is_veiled"], unsafe["is_open"]) == (True, False)
    assert answer["badge"] == "Safe"
    assert (answer["is_veiled"], answer["is_open"]) == (False, False)
    assert (unsure["badge"], unsure["flagged"], unsure["is_veiled"]) == ("For review", [], True)
    assert seen["hosts"] == [server.url.removeprefix("http://")]
    assert picture.stat().st_size > 20_000


def test_where_there_is_no_verdict_the_page_says_so(serve: Any) -> None:
    server = serve()
    server.reader.is_nan = True
    seen = drive({"url": server.url, "key": None, "steps": [{"prompt": "take a coat"}], "picture": None})
    assert seen["steps"][0]["badge"] == "No verdict"
    assert seen["steps"][0]["bars"] == {}
