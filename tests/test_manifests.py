"""The card that every run has: its step's own, or one made of what its manifest says."""

from pathlib import Path

import pytest

from equipoise.config import Config, InputPath
from equipoise.lineage import Run, Step, content_hash, produce, write_text
from equipoise.manifests import card_of


class Settings(Config):
    data: InputPath | None = None
    times: int = 2


def build(config: Settings, run: Run) -> None:
    write_text(run.out / "text.txt" if run.out.is_dir() else run.out, "x" * config.times)
    run.notes["times"] = config.times
    run.licences |= {"MIT", "CC0-1.0"}


STEP = Step("repeat", 1, build)
FILE_STEP = Step("repeat-file", 1, build, writes_file=True)


def test_a_step_that_writes_no_card_gets_one_that_names_no_folder_and_no_time(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data.txt"
    data.write_text("abc")

    def builds(config: Settings, run: Run) -> None:
        build(config, run)
        run.notes |= {"skipped": ["a", "b"], "parts": {"train": 3, "test": 1}, "left_out": []}

    for name in ("one", "two"):
        produce(tmp_path / name, Step("repeat", 1, builds), Settings(data=data))
    card = (tmp_path / "one" / "card.md").read_text("utf-8")
    assert card == (tmp_path / "two" / "card.md").read_text("utf-8")
    assert card.startswith("# Repeat\n")
    for line in (
        "- times: 2",
        "- skipped: 2, listed in the manifest",
        "- parts: train 3, test 1",
        "- left out: none",
        f"- data: data.txt (sha256 {content_hash(data)[:12]})",
        "- licences: CC0-1.0, MIT",
    ):
        assert line in card.splitlines()
    assert str(tmp_path) not in card


@pytest.mark.parametrize("step", [STEP, FILE_STEP])
def test_a_card_of_the_steps_own_is_left_alone_and_goes_with_its_run(tmp_path: Path, step: Step) -> None:
    out = tmp_path / "out"

    def carded(config: Settings, run: Run) -> None:
        step.build(config, run)
        write_text(run.card, f"times {config.times}")

    own = step._replace(build=carded)
    produce(out, own, Settings())
    card = card_of(out, is_file=step.writes_file)
    assert card.read_text("utf-8") == "times 2"
    produce(out, step, Settings(times=3), force=True)
    assert "- times: 3" in card.read_text("utf-8").splitlines()


def test_the_card_of_a_run_that_was_killed_before_its_manifest_is_not_taken_for_anothers(
    tmp_path: Path,
) -> None:
    out = tmp_path / "rows.jsonl"

    def killed(config: Settings, run: Run) -> None:
        write_text(run.card, "of the run that was killed")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce(out, FILE_STEP._replace(build=killed), Settings())
    produce(out, FILE_STEP, Settings(times=3), force=True)
    assert "killed" not in card_of(out, is_file=True).read_text("utf-8")


def test_an_output_that_is_a_card_itself_gets_none(tmp_path: Path) -> None:
    produce(tmp_path / "card.md", FILE_STEP._replace(own_card=True), Settings())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.md", "card.md.manifest.json"]
