"""The page of statistics: self-contained, no text of a record, only what there is."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from equipoise.data.identity import AnyRecord
from equipoise.data.statistics import statistics
from equipoise.data.statistics_page import page
from equipoise.records import Answer, Exchange, Pair, Prompt

SAFE = Answer(response="secret", is_safe=True, severity=0, categories=frozenset())
FRAUD = frozenset({"Economic Crime", "White-Collar Crime"})
FALSE_BILL = Answer(response="secret", is_safe=False, severity=2, categories=FRAUD)
INSULT = Answer(response="secret", is_safe=False, severity=1, categories=frozenset({"Insulting Behavior"}))

RECORDS: list[AnyRecord] = [
    Pair(id="1", prompt="secret", answers=(SAFE, FALSE_BILL), better=1, safer=0),
    Pair(id="2", prompt="secret", answers=(INSULT, FALSE_BILL), better=1, safer=0, source="<own>"),
    Exchange(id="3", prompt="secret", **INSULT.model_dump()),
    Prompt(
        id="4", prompt="secret", is_harmful=True, severity=1, categories=frozenset({"Insulting Behavior"})
    ),
]


def titles(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_the_page_has_every_part_and_shows_no_text() -> None:
    text = page(statistics(RECORDS), "Small set")
    assert "secret" not in text
    assert titles(text) == [
        "What it holds",
        "Categories of responses",
        "Severity in each category of responses",
        "Categories that go together in unsafe responses",
        "One category given another in unsafe responses",
        "Categories that stand alone in unsafe responses",
        "Categories of prompts",
        "Severity in each category of prompts",
        "Categories that go together in harmful prompts",
        "One category given another in harmful prompts",
        "Categories that stand alone in harmful prompts",
        "Help against harm",
        "Lengths",
        "Sources",
    ]
    assert "Economic Crime and White-Collar Crime: phi 1.000" in text
    assert "White-Collar Crime and Economic Crime</td><td>1.000</td><td>100.0%</td>" in text
    assert "100.0% of 1" in text  # mixed: the more helpful answer is unsafe


def test_the_page_loads_nothing_and_its_plots_are_well_formed() -> None:
    text = page(statistics(RECORDS), "Small set")
    assert not re.search(r"https?:|\bsrc=|\bhref=|url\(|@import|<script", text)
    assert "default-src 'none'" in text
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) > 10
    for plot in plots:
        ElementTree.fromstring(plot)


def test_names_from_the_data_are_escaped() -> None:
    text = page(statistics(RECORDS), "a <b> set")
    assert "&lt;own&gt;" in text
    assert "<own>" not in text
    assert "<h1>a &lt;b&gt; set</h1>" in text


@pytest.mark.parametrize(
    "records", [[], [Prompt(id="1", prompt="p")], [Exchange(id="1", prompt="p", response="r", is_safe=False)]]
)
def test_parts_without_labels_are_left_out(records: Sequence[AnyRecord]) -> None:
    assert titles(page(statistics(records), "Bare")) == ["What it holds", "Lengths", "Sources"]
