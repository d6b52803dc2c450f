"""Tools that the tests marked `tools` install for themselves, each in an environment of its own."""

import shutil
from pathlib import Path

import pytest

collect_ignore = ["fill_cards.py"]  # runs in the browser driver's own environment

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def browser_python() -> Path:
    """Python of an environment with selenium; skips where Chromium or its driver is not installed."""
    from equipoise.annotation.environment import install_tool
    from equipoise.models.builtin import cache_folder

    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install chromium chromium-driver")
    return install_tool(cache_folder(), "selenium", (HERE / "selenium.lock").read_text("utf-8"))
