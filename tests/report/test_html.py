"""The page of a report: of the shipped records of cifar_small, with everything that came from a file made hostile."""

import base64
import hashlib
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench.grid.cell import cell_id
from bench.grid.expand import expand
from bench.grid.load import load_grid
from bench.grid.schema import Grid, Published
from bench.report.claims import judged
from bench.report.collect import collect
from bench.report.costs import ALONE, TARGETS
from bench.report.document import report_document
from bench.report.figures.costs import front
from bench.report.render.html import html_document, sort_keys
from bench.report.sections.savings import has_savings
from bench.report.tables import NONE, Entry, Table
from bench.store.record import Failed, Finished, Record, Score, read_records, write_record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RECORDS = Path(__file__).parent.parent.parent / "results" / "cifar_small"
HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)> javascript:alert(3)"
NASTY, LEGIBLE = f"{HOSTILE} \u2028\x00\x1b[31m\u202e&amp;", f"{HOSTILE} [31m &amp;"
VOID = {"meta", "input", "img", "link", "br"}


class Parsed(HTMLParser):
    """What a browser would make of a page: tags with attributes, the text in each kind of tag, and what stays open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.stack: list[str] = []
        self.inside: list[tuple[str, str]] = []  # each tag, and the one that it is in
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append((tag, self.stack[-1] if self.stack else ""))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.stack[-1] if self.stack else "", data))

    def text(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]


def hostile() -> tuple[Grid, list[Record]]:
    """The grid and its records with a hostile string wherever one can stand; one cell failed, one is missing."""
    grid = load_grid("cifar_small")
    arms = tuple(arm.model_copy(update={"name": f"{NASTY} {index}"}) for index, arm in enumerate(grid.arms))
    names = {arm.name or arm.method: new.name for arm, new in zip(grid.arms, arms, strict=True)}
    claims = tuple(
        claim.model_copy(update={"name": NASTY, "arm": names[claim.arm], "baseline": names[claim.baseline]})
        for claim in grid.claims
        if claim.baseline in names
    )
    published = (Published(arm=str(arms[0].name), epoch=10, linear=0.4, source=NASTY),)
    grid = grid.model_copy(update={"title": NASTY, "arms": arms, "claims": claims, "published": published})
    records, _ = read_records(RECORDS)
    changed = [
        record.model_copy(
            update={
                "dataset_title": NASTY,
                "provenance": record.provenance | {"cpu": f"{NASTY} {index % 2}", "packages": {NASTY: NASTY}},
                "ledger": record.ledger.model_copy(update={"flops_not_counted": NASTY}),
            }
        )
        for index, record in enumerate(records[1:])
    ]
    first, *others = changed
    kept = {name: getattr(first, name) for name in ("id", "grid", "cell", "inputs", "dataset_title", "provenance")}
    return grid, [Failed(status="failed", error=NASTY, **kept), *others]


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    grid, records = hostile()
    for record in records:
        write_record(record, folder / "records")
    path = folder / "index.html"
    path.write_text(html_document(report_document(collect(grid, folder / "records"))), encoding="utf-8")
    return path


def real_grid() -> Grid:
    return load_grid("cifar_small", settings=["budgets=[0.1, 0.2, 0.5]"])  # nothing was run at 10 %


@pytest.fixture(scope="module")
def real_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "index.html"
    grid = real_grid()
    for record in read_records(RECORDS)[0]:
        write_record(alone(record), path.parent / "records")
    path.write_text(html_document(report_document(collect(grid, path.parent / "records"))), encoding="utf-8")
    return path


def alone(record: Finished) -> Finished:
    """Return the record as if nothing else had been on the machine."""
    quiet = {"side_by_side": 1, "other_load": 0.0}
    targets = record.ledger.targets and record.ledger.targets.model_copy(update=quiet)
    return record.model_copy(update={"ledger": record.ledger.model_copy(update=quiet | {"targets": targets})})


def test_what_came_from_a_file_is_text(hostile_page: Path) -> None:
    page = Parsed(hostile_page.read_text(encoding="utf-8"))
    assert page.stack == []
    names = [tag for tag, _ in page.tags]
    assert (names.count("script"), names.count("img")) == (1, 0)
    titled = [around for tag, around in page.inside if tag == "title"]
    assert titled == ["head"] + ["use"] * (len(titled) - 1)
    assert len(titled) > 50
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in page.tags)
    assert page.text("h1") == [LEGIBLE]
    everything = "\n".join(text for _, text in page.texts)
    assert not re.search("[\u2028\u202e\x00-\x09\x0b-\x1f]", everything)
    for line in (f"failed: {LEGIBLE}, ", f"CPU: {LEGIBLE} 0 (", f"FLOP: {LEGIBLE}.", f"{LEGIBLE}: {LEGIBLE}"):
        assert line in everything
    assert any(text.startswith(LEGIBLE) for text in page.text("article") + page.text("h3"))
    assert LEGIBLE in page.text("td")


def test_the_browser_is_told_to_run_nothing_else(hostile_page: Path) -> None:
    page = Parsed(hostile_page.read_text(encoding="utf-8"))
    (policy,) = (a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag in ("script", "style"):
        (content,) = page.text(tag)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"


def test_ids_are_unique_and_links_lead_somewhere(real_page: Path) -> None:
    page = Parsed(real_page.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    pointed = [str(a[key]).lstrip("#") for _, a in page.tags for key in ("href", "for", "aria-labelledby") if key in a]
    assert len(pointed) > 50
    assert set(pointed) <= set(ids)


def test_verdicts_come_first_then_table_1(real_page: Path) -> None:
    page, best = Parsed(real_page.read_text(encoding="utf-8")), "Against the best tuned arm without ReLA: "
    assert page.text("h2")[:2] == ["Verdicts", "Linear accuracy"]
    badges = [a["data-answer"] for _, a in page.tags if "data-answer" in a]
    claims = judged(collect(real_grid(), real_page.parent / "records"))
    assert badges == [one.verdict for judgements in claims for one in judgements]
    won = "CF10-R20, tuned at 20% of the steps is no worse than BYOL, tuned at 100%: +2.3 ("
    assert page.text("strong")[0].startswith(best + won)
    text = real_page.read_text(encoding="utf-8")
    assert '<strong><u>59.2 ± 0.6</u></strong> <span class="note">(n=3; by Adam ' in text
    assert '>\n<td data-sort="' not in text  # a cell has no white space of its own
    assert "<u>43.8 ± 1.1</u>" in text
    assert "<strong><u>43.8" not in text
    assert "not in 380 steps" in text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("31.9 ± 1.5", "31.9"),
        ("+3.1 (+2.5 to +3.6)", "3.1"),
        ("-0.6 ± 1.2", "-0.6"),
        ("48.7%", "48.7"),
        ("34.4% (33.9% to 35.0%)", "34.4"),
        ("99,840", "99840"),
        ("1,234,567.5", "1234567.5"),
        ("2.0e-06", "2e-06"),
        ("n=3", "3"),
        ("at 400 to 420 (2 of 3 seeds)", "400"),
        ("not in 140 steps", ""),
        ("never", ""),
        (NONE, ""),
        ("", ""),
    ],
)
def test_what_a_number_is_sorted_by(text: str, key: str) -> None:
    assert sort_keys(Table(("Arm", "Value"), ((Entry("a"), Entry(text)),), names=1)) == [[None, key]]


def test_names_are_sorted_as_numbers_when_all_of_them_are() -> None:
    rows = [("10%", "1", "1.5 GFLOP"), ("100%", "b", "2 TFLOP")]
    table = Table(("Budget", "Seed", "Cost"), tuple((Entry(a), Entry(b), Entry(c)) for a, b, c in rows), names=2)
    assert sort_keys(table) == [["10", None, "1.5"], ["100", None, "2"]]
    other_units = [
        (row[0], row[1], Entry(row[2].text, value=value)) for row, value in zip(table.rows, (1.5e9, 2e12), strict=True)
    ]
    assert [row[2] for row in sort_keys(Table(table.head, tuple(other_units), 2))] == ["1500000000", "2e+12"]


def test_a_point_names_its_cells(real_page: Path) -> None:
    records, _ = read_records(RECORDS)
    titles = Parsed(real_page.read_text(encoding="utf-8")).text("title")[1:]
    mine = sorted(
        (record for record in records if (record.cell.arm, record.cell.budget) == ("CF10-R20", 0.5)),
        key=lambda record: record.cell.seed,
    )
    values = np.array([100 * np.mean(record.final.linear) for record in mine if record.final])
    cells = "".join(f"\nseed {record.cell.seed}: cell {record.id}" for record in mine)
    name = f"CF10-R20 at 50%: {values.mean():.1f} ± {values.std(ddof=1):.1f} % (n=3)"
    assert f"{name}\n380 steps{cells}" in titles
    assert f"{name}\n48,640 images{cells}" in titles
    totals = [(r.ledger.flops, r.ledger.flops_with_targets) for r in mine]
    for flops in np.mean(totals, axis=0) / 1e12:
        assert f"{name}\n{flops:.2f} TFLOP{cells}" in titles
    assert len([title for title in titles if title.startswith(name)]) == 7  # currencies and ledgers that differ
    for record, value in zip(mine, values, strict=True):
        assert record.final
        assert len(record.final.linear) == 1, "this probe has no epochs to scatter over"
        start = f"CF10-R20 at 50%, seed {record.cell.seed}: {value:.1f} %\n"
        assert [title for title in titles if title.startswith(start) and title.endswith(f"\ncell {record.id}")]


def charts(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg [^>]*class=\"chart\".*?</svg>", page, re.DOTALL)]


def test_points_lie_where_their_numbers_are(real_page: Path) -> None:
    """On the axis of accuracy: a straight line through the ticks gives back what the points' titles say."""
    svg = charts(real_page.read_text(encoding="utf-8"))[0]
    ticks = []
    for group in svg.iter("g"):
        line, label = group.find("path"), group.find("text")
        if line is not None and label is not None and label.get("text-anchor") == "end":
            height = re.fullmatch(r"M[\d.]+ ([\d.]+)L[\d.]+ \1", line.attrib["d"])
            assert height
            ticks.append((float(height[1]), float(label.text or "")))
    assert len(ticks) > 3
    slope, zero = np.polyfit(*np.array(ticks, dtype=float).T, 1)
    titles = [(use.findtext("title") or "", float(use.attrib["y"])) for use in svg.iter("use")]
    points = [(value[1], y) for title, y in titles if (value := re.match(r".*?: ([\d.]+) ±", title))]
    assert len(points) == 24
    for value, y in points:
        assert slope * y + zero == pytest.approx(float(value), abs=0.06)


def test_charts_have_the_colours_of_the_page_which_has_them_for_light_and_dark(real_page: Path) -> None:
    text = real_page.read_text(encoding="utf-8")
    used = {
        each.get(name, "none") for svg in charts(text) for each in svg.iter() for name in ("fill", "stroke", "color")
    }
    assert len(used) > 5
    names = {re.fullmatch(r"var\((--\w+)\)", colour) for colour in used - {"none"}}
    assert None not in names
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)[:2]
    for name in names:
        assert name
        shades = [re.search(rf"{name[1]}: (#\w+);", scheme) for scheme in (light, dark)]
        assert all(shades)
        assert len({shade[1] for shade in shades if shade}) == 2, "another one in the dark"


def test_a_chart_is_told_in_words_to_those_who_do_not_see_it(real_page: Path) -> None:
    text = real_page.read_text(encoding="utf-8")
    page = Parsed(text)
    for svg in charts(text):
        assert svg.get("role") == "img"
        assert " against " in svg.attrib["aria-label"]
        listed = page.text("li")
        titles = [use.findtext("title") or "" for use in svg.iter("use")]
        means = [title.partition("\nseed ")[0] for title in titles if title and not re.search(r", seed \d+: ", title)]
        assert means
        assert {" ".join(mean.split()) for mean in means} <= set(listed)


def test_front() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        points = [(float(c), float(a)) for c, a in draw.integers(0, 8, (9, 2))]
        best = {(c, a) for c, a in points if not any((oc <= c and oa >= a) and (oc, oa) != (c, a) for oc, oa in points)}
        assert front(points) == sorted(best)


@pytest.mark.slow
def test_a_page_of_table_1_is_small(tmp_path: Path) -> None:
    """88 cells of three seeds each, copied from one real record."""
    grid = load_grid("paper_table1")
    real = next(record for record in read_records(RECORDS)[0] if record.cell.rela)
    for cell in expand(grid):
        prior = real.inputs.prior if cell.rela else None
        inputs = real.inputs.model_copy(update={"data": cell.dataset, "prior": prior})
        changed = {"cell": cell, "inputs": inputs, "id": cell_id(cell, inputs), "dataset_title": cell.dataset}
        write_record(alone(real.model_copy(update=changed)), tmp_path)
    page = html_document(report_document(collect(grid, tmp_path)))
    titles = Parsed(page).text("title")[1:]
    seeds = [title for title in titles if re.search(r", seed \d+: ", title)]
    assert len(seeds) == 7 * 264
    assert len(titles) - len(seeds) >= 7 * 88
    assert len(page.encode()) < 1_500_000


def test_a_currency_has_a_chart_where_it_was_measured(tmp_path: Path, real_page: Path) -> None:
    def shown(page: str) -> list[str]:
        return [text for text in Parsed(page).text("label") if text.strip()]

    counted = [f"{what}, {ledger}" for what in ("Images", "FLOP", "Seconds") for ledger in (ALONE, TARGETS)]
    savings = ["Steps, training alone", "FLOP, with targets", "Seconds, with targets"]
    known = savings * has_savings(collect(load_grid("cifar_small"), RECORDS))
    assert shown(real_page.read_text(encoding="utf-8")) == ["Steps, training alone", *counted, *known]
    for record in read_records(RECORDS)[0]:
        points = [point.model_copy(update={"joules": 50.0 * point.step}) for point in record.curve]
        points[0] = points[0].model_copy(update={"score": Score(linear=(0.1,), knn=0.1)})  # below any target
        write_record(alone(record.model_copy(update={"curve": tuple(points)})), tmp_path)
    page = html_document(report_document(collect(load_grid("cifar_small"), tmp_path)))
    assert shown(page) == ["Steps, training alone", *counted, "Joules, training alone", *savings]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install rela-bench[browser]")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium: apt-get install chromium")
    root = os.geteuid() == 0  # as whom Chromium has no sandbox
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, chromium_sandbox=not root)
        yield browser
        browser.close()


def opened(browser: "Browser", path: Path, **options: Any) -> "Page":
    """Open a page; a message of the browser, an error or a request for anything else fails the test at the end."""
    page = browser.new_page(**options)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.complaints = complaints  # type: ignore[attr-defined]
    return page


def finished(page: "Page") -> None:
    assert page.complaints == []  # type: ignore[attr-defined]
    page.close()


def column(page: "Page", table: str, index: int) -> list[str]:
    cells = page.locator(f"#{table} tbody tr td:nth-child({index + 1})").all_text_contents()
    return [" ".join(cell.split()) for cell in cells]


def test_a_hostile_page_runs_nothing(browser: "Browser", hostile_page: Path) -> None:
    page = opened(browser, hostile_page, viewport={"width": 400, "height": 800})
    assert page.locator("h1").inner_text() == LEGIBLE
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    finished(page)


def test_a_click_on_a_head_sorts_and_back(browser: "Browser", real_page: Path) -> None:
    page = opened(browser, real_page)
    head = page.locator("#costs-1 th").nth(3)  # steps: 140, 380, ..., of several arms
    before = column(page, "costs-1", 3)
    as_numbers = sorted(int(text.replace(",", "")) for text in before)
    assert before != [f"{steps:,}" for steps in as_numbers]
    orders = []
    for key in ("click", "Enter", "Space"):
        head.locator("button").click() if key == "click" else head.locator("button").press(key)
        orders.append((head.get_attribute("aria-sort"), column(page, "costs-1", 3)))
    assert orders == [
        ("ascending", [f"{steps:,}" for steps in as_numbers]),
        ("descending", [f"{steps:,}" for steps in reversed(as_numbers)]),
        ("none", before),
    ]
    rand = page.locator("#linear-1 th").nth(3)  # has a result that is missing, which stays last
    for expected in (["41.7 ± 1.0", "43.8 ± 1.1", "—"], ["43.8 ± 1.1", "41.7 ± 1.0", "—"]):
        rand.locator("button").click()
        assert [text.partition(" (")[0] for text in column(page, "linear-1", 3)] == expected
    page.locator("#linear-1 th").nth(0).locator("button").click()
    assert [th.get_attribute("aria-sort") for th in page.locator("#linear-1 th").all()].count("none") == 6
    finished(page)


def test_a_point_tells_what_it_is(browser: "Browser", real_page: Path) -> None:
    page = opened(browser, real_page)
    records, _ = read_records(RECORDS)
    ids = sorted(record.id for record in records if (record.cell.arm, record.cell.budget) == ("byol", 0.2))
    titles = page.locator("#figure-costs .view:visible use title").all_text_contents()
    title = next(title for title in titles if title.startswith("byol at 20%: 37.4 ± 1.1 % (n=3)\n140 steps"))
    assert sorted(re.findall(r"cell (\w{16})", title)) == ids
    assert any(title.startswith("byol at 20%, seed 0") for title in titles)
    point = page.locator("#figure-costs .view:visible use:has(title)").first
    before = point.evaluate("(e) => getComputedStyle(e).strokeWidth")
    point.hover(force=True)
    assert point.evaluate("(e) => getComputedStyle(e).strokeWidth") != before
    page.locator("#figure-costs .view:visible summary").press("Enter")
    words = page.locator("#figure-costs .view:visible li").all_text_contents()
    assert any(text.startswith("byol at 20%: 37.4 ± 1.1 % (n=3) 140 steps") for text in words)
    page.locator("#figure-costs label", has_text="Seconds, with targets").click()
    assert page.locator("#figure-costs .view:visible").count() == 1
    assert "minutes" in page.locator("#figure-costs .view:visible use title").first.text_content()
    finished(page)


def test_a_phone_the_dark_and_paper(browser: "Browser", real_page: Path) -> None:
    def ink(page: "Page") -> set[str]:
        paths = page.locator("#figure-costs .view:visible .chart text")
        return set(paths.evaluate_all("(all) => all.map((e) => getComputedStyle(e).fill)"))

    def colours(page: "Page") -> set[str]:
        style = "[...arguments].flat().map((e) => getComputedStyle(e)).flatMap((s) => [s.color, s.backgroundColor])"
        return set(page.evaluate(f"((...arguments) => {style})(document.body)"))

    page = opened(browser, real_page, viewport={"width": 400, "height": 800}, color_scheme="light")
    light, drawn = colours(page), ink(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    wide = page.locator(".scroll:has(#costs-1)")
    assert wide.evaluate("(e) => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX") == "auto"
    page.emulate_media(color_scheme="dark")
    assert not colours(page) & light
    assert not ink(page) & drawn
    page.emulate_media(media="print", color_scheme="dark")
    assert colours(page) == {"rgb(0, 0, 0)", "rgb(255, 255, 255)"}
    page.set_viewport_size({"width": 688, "height": 980})  # of A4 between its margins
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not page.locator(".values:visible").count()
    tables = page.locator("table")
    assert all(
        table.is_visible() and table.evaluate("(e) => e.getBoundingClientRect().right <= 688") for table in tables.all()
    )
    assert page.pdf(format="A4").startswith(b"%PDF")
    finished(page)
