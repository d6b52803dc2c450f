"""The report page: self-contained, escaped, closed examples, and a verdict that follows the numbers."""

import json
from html.parser import HTMLParser

import pytest

from equipoise.config import parse_config
from equipoise.errors import ConfigError
from equipoise.evaluation.report.build import REPORT, REPORT_FILE, ReportConfig, gather, numbers, report_step
from equipoise.evaluation.report.headline import headline
from equipoise.lineage import produce

ATTACK = "<script>alert(1)</script><img src='https://example.org/x'>"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.hidden: list[str] = []
        self.visible: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        closed = "details" in self.open and "summary" not in self.open
        (self.hidden if closed else self.visible).append(data)


@pytest.fixture
def two(make_row, make_run):
    before = [make_row(f"h{i}", 2 * (i < 12), response=f"{ATTACK} SECRET") for i in range(20)]
    after = [make_row(f"h{i}", 2 * (i < 4), response=f"{ATTACK} SECRET") for i in range(20)]
    benign = [make_row(f"b{i}", prompt=f"{ATTACK} SECRET") for i in range(10)]
    return [make_run("base", before + benign), make_run("<b>after</b>", after + benign)]


@pytest.fixture
def page(two, tmp_path) -> Page:
    produce(tmp_path / "report", REPORT, ReportConfig(runs=two, title="A & B <i>"))
    return Page((tmp_path / "report" / "report.html").read_text("utf-8"))


def test_the_page_parses_and_every_tag_is_closed(page) -> None:
    assert page.open == []
    assert {"svg", "table", "details", "summary"} <= {tag for tag, _ in page.tags}


def test_the_page_loads_nothing(page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"src", "href", "srcset", "xlink:href", "action", "data", "poster"}
    assert not any(name.startswith("on") for name in names)
    values = " ".join(value or "" for _, attributes in page.tags for value in attributes.values())
    style = "".join(text for text in page.visible if "{" in text)
    for outside in ("://", "//", "url(", "@import", "expression("):
        assert outside not in values + style


def test_texts_are_escaped_and_shown_as_they_were(page) -> None:
    assert sum(ATTACK in text for text in page.hidden) > 0
    assert any("A & B <i>" in text for text in page.visible)
    assert any("<b>after</b>" in text for text in page.visible)


def test_no_prompt_or_response_shows_before_a_click(page) -> None:
    assert any("SECRET" in text for text in page.hidden)
    assert not any("SECRET" in text for text in page.visible)
    details = [attributes for tag, attributes in page.tags if tag == "details"]
    assert details
    assert all("open" not in attributes for attributes in details)


def test_folder_holds_numbers_and_summary_without_texts(two, tmp_path) -> None:
    produce(tmp_path / "r", REPORT, ReportConfig(runs=two))
    text = (tmp_path / "r" / "report.json").read_text()
    found = json.loads(text)
    assert found["comparisons"][0]["metrics"]["harmful_rate"]["difference"]["value"] == pytest.approx(-0.4)
    assert found["tone"] == "better"
    summary = (tmp_path / "r" / "report.md").read_text()
    assert "| Harmful responses to harmful prompts | 60% " in summary
    card = (tmp_path / "r" / "card.md").read_text()
    assert found["headline"] in card
    assert "SECRET" not in text + summary + card


def test_a_path_that_ends_in_html_is_one_page_with_its_manifest_beside_it(two, tmp_path) -> None:
    out = tmp_path / "r.html"
    assert report_step(out) is REPORT_FILE
    assert report_step(tmp_path / "r") is REPORT
    produce(out, report_step(out), ReportConfig(runs=two, examples=0))
    assert "SECRET" not in out.read_text("utf-8")
    assert (tmp_path / "r.html.manifest.json").exists()
    assert "- tone: better" in (tmp_path / "r.html.card.md").read_text("utf-8").splitlines()


def test_labels_name_the_runs(two) -> None:
    report = gather(ReportConfig(runs=two, labels=["SmolLM2", "after SafeDPO"]))
    assert "after SafeDPO is less harmful than SmolLM2" in report.headline.sentence
    with pytest.raises(ConfigError, match="labels: 1 for 2 runs; expected one each or none"):
        parse_config(ReportConfig, {"runs": two, "labels": ["one"]}, "here")


@pytest.mark.parametrize("count", [1, 3])
def test_one_run_and_several_make_a_page(make_row, make_run, tmp_path, count) -> None:
    runs = [
        make_run(f"run{k}", [make_row(f"h{i}", int(i > k)) for i in range(4)] + [make_row("b1")])
        for k in range(count)
    ]
    produce(tmp_path / "r.html", REPORT_FILE, ReportConfig(runs=runs))
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    assert page.open == []
    assert all(any(f"run{k}" in text for text in page.visible) for k in range(count))


def test_runs_of_one_kind_of_prompt_make_a_page_that_says_so(make_row, make_run, tmp_path) -> None:
    for kind in "hb":
        runs = [make_run(f"{kind}{k}", [make_row(f"{kind}{i}") for i in range(3)]) for k in range(2)]
        report = gather(ReportConfig(runs=runs))
        produce(tmp_path / f"{kind}.html", REPORT_FILE, ReportConfig(runs=runs))
        words = "over-refusal was not measured" if kind == "h" else "nothing is said about harm"
        assert kind == "h" or words in report.headline.sentence
        assert "NaN" not in json.dumps(numbers(report), allow_nan=False)


def verdict(make_row, make_run, name, before, after):
    """Rows as (harmful of 40, refused of 30 benign) on each side."""
    folders = [
        make_run(
            f"{name}{side}",
            [make_row(f"h{i}", int(i < harmful)) for i in range(40)]
            + [make_row(f"b{i}", refusal="full" if i < refused else "none") for i in range(30)],
        )
        for side, (harmful, refused) in enumerate((before, after))
    ]
    return headline(gather(ReportConfig(runs=folders)).comparisons[0])


@pytest.mark.parametrize(
    ("sides", "tone", "words"),
    [
        (((30, 2), (10, 2)), "better", "less harmful than x0: 75% before, 25% after on 40 harmful prompts"),
        (((30, 2), (10, 20)), "mixed", "but refusals of benign prompts rise by 60 points"),
        (((10, 2), (30, 2)), "worse", "is more harmful than x0"),
        (((10, 2), (10, 2)), "unchanged", "not clearly different"),
        (((10, 2), (9, 2)), "unchanged", "not clearly different"),
        (((10, 2), (10, 22)), "worse", "but truly safe responses fall"),
    ],
)
def test_the_verdict_follows_the_numbers(make_row, make_run, sides, tone, words) -> None:
    found = verdict(make_row, make_run, "x", *sides)
    assert found.tone == tone
    assert words in found.sentence
    assert found.sentence.count(". ") == 0  # one sentence
