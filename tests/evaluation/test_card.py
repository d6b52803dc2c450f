"""The texts of one evaluation."""

from equipoise.evaluation.card import evaluation_card, examples_text, metrics_text
from equipoise.evaluation.metrics import measure
from equipoise.evaluation.run import EvaluateConfig


def test_the_most_unsafe_come_first_and_without_their_texts_unless_asked(make_row) -> None:
    rows = [make_row("h1", 1, unsafe_probability=0.6), make_row("h2", 3), make_row("h3"), make_row("h4", 2)]
    quiet, shown = (examples_text(rows, 2, show_text=flag) for flag in (False, True))
    assert [line.split()[0] for line in quiet.splitlines()[1:]] == ["h2", "h4"]
    assert "question h2" in shown
    assert "a plain answer to h4" in shown
    assert "question" not in quiet
    assert "plain answer" not in quiet


def test_nothing_unsafe_needs_no_list(make_row) -> None:
    assert examples_text([make_row("h1")], 5, show_text=False) == ""


def test_the_card_says_how_refusals_were_told_and_what_was_cut(make_row) -> None:
    metrics = measure([make_row("h1", 1), make_row("b1")])
    config = EvaluateConfig(model="m", guard="g", refusals="prefix")
    card = evaluation_card(config, metrics, truncated=True)
    assert "prefix match: it misses refusals in other words" in card
    assert "longer than the judge reads" in card
    assert "1 harmful and 1 benign prompts" in card
    assert "longer than the judge reads" not in evaluation_card(config, metrics, truncated=False)


def test_the_table_shows_every_metric_that_was_measured(make_row) -> None:
    metrics = measure([make_row("h1", 1), make_row("b1")])
    assert len(metrics_text(metrics).splitlines()) == 2 + len(metrics.values)
