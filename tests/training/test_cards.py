"""The card of a model says what it is, what it was trained on, and which way its scores go."""

from pathlib import Path

from equipoise.lineage import Run
from equipoise.training.cards import model_card


def card(folder: Path, run: Run, **more: dict[str, str]) -> str:
    model_card(run, "Scorer", "tiny", "scores a response", **more)
    return (folder / "card.md").read_text("utf-8")


def test_a_card_tells_rows_licences_and_limits(tmp_path: Path) -> None:
    run = Run(tmp_path, tmp_path / "scratch")
    run.licences |= {"MIT", "CC0-1.0"}
    run.notes |= {"rows": 12, "truncated": 3}
    text = card(tmp_path, run)
    assert text.startswith("# Scorer on tiny\n\nScores a response.\n")
    assert (
        "- rows: 12\n- licences: CC0-1.0, MIT\n- texts that do not fit their windows, read in part: 3\n"
        in text
    )
    assert "English, single-turn" in text
    assert "## Polarity" not in text


def test_a_card_tells_the_polarity_of_scores(tmp_path: Path) -> None:
    text = card(tmp_path, Run(tmp_path, tmp_path), polarity={"cost": "higher_is_worse"})
    assert "## Polarity\n\n- cost: higher is worse\n" in text
    assert "- licences: none" in text
    assert "rows cut" not in text
