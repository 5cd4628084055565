"""The page in a real Chromium: no error, no request, legible at any width, for anyone."""

import json
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from quantlab.plans.page import render_page as plan_page
from quantlab.plans.plan import make_plan
from quantlab.plans.problem import Request
from quantlab.records.table import read_aggregate
from quantlab.report import page as pages
from quantlab.report.texts import Texts
from tests.conftest import aggregate
from tests.report.samples import FORMAT_LEVELS as LEVELS
from tests.report.samples import findings_of, many_answers, some
from tests.report.test_page import many
from tests.report.test_plots import crowd

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SMALLEST = """Math.min(...[...document.querySelectorAll("body *")]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .filter(e => e.checkVisibility() && !["SCRIPT", "STYLE"].includes(e.tagName))
    .map(e => parseFloat(getComputedStyle(e).fontSize)
        * (e.ownerSVGElement ? e.ownerSVGElement.getBoundingClientRect().width
            / e.ownerSVGElement.viewBox.baseVal.width : 1)))"""


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:  # it takes root and Debian's packages, which CI has
        pytest.skip("there is no chromium: `make chromium` installs Debian's")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The report of 120 tensors."""
    directory = tmp_path_factory.mktemp("checkpoint")
    many(directory, [f"blocks.{n}.attention.weight" for n in range(120)])
    aggregate(directory)
    return directory


@pytest.fixture(params=["lab", "checkpoint"])
def report(request, lab_sweep):
    """The directory of a sweep with a report."""
    return lab_sweep[0] if request.param == "lab" else request.getfixturevalue("checkpoint")


@pytest.fixture
def visit(chromium):
    """Open a report in a window; at the end nothing must have been asked for or gone wrong."""
    contexts, asked, wrong = [], [], []

    def open_page(directory, width=1280, scheme="light", name="report.html"):
        contexts.append(
            chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((directory / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    pages = ("/report.html", "/plan.html")
    assert all(url.startswith("file:") and url.endswith(pages) for url in asked)


def cells(page, column):
    """The text of a column of the table, of the rows that are shown."""
    head = page.locator("#all thead th").all_inner_texts().index(column) + 1
    return page.locator(f"#all tbody tr:not([hidden]) td:nth-child({head})").all_inner_texts()


def test_the_verdict_and_every_row_are_there(visit, report):
    page = visit(report)
    results = json.loads((report / "results.json").read_text())
    rows = page.locator("#all tbody tr").count()
    if "verb_probs" in results:
        question = page.get_by_text("Can INT8 alone be trusted for verb-form prediction?")
        assert question.is_visible()
        dists, modes = cells(page, "dist"), cells(page, "mode")
        assert list(zip(dists, modes, strict=True)) == [
            (dist, mode) for dist, modes in results.items() for mode in modes
        ]
    else:
        assert page.get_by_text("of 120 tensors meet the bar").is_visible()
        assert rows == 240


def test_a_heading_sorts_numbers_words_and_puts_nothing_last(visit, report):
    page = visit(report)
    for head, key in (
        ("sqnr_db", float),
        ("rel_err", lambda text: float(text[:-1])),
        ("mode", str),
    ):
        button = page.get_by_role("button", name=head, exact=True)
        for state, backwards in (("ascending", False), ("descending", True)):
            button.click()
            column = page.locator("#all thead th", has=button)
            assert column.get_attribute("aria-sort") == state
            shown = [key(text) for text in cells(page, head) if text != "–"]
            assert shown == sorted(shown, reverse=backwards)
            assert all(text == "–" for text in cells(page, head)[len(shown) :])
    assert page.locator("#all thead th[aria-sort]").count() == 1


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("VERB asym", ["verb_probs asymmetric"]),
        ("symmetric", ["tense_logits symmetric", "verb_probs symmetric", "hidden symmetric"]),
        ("met", ["tense_logits asymmetric"]),
        ("1024", ["hidden symmetric", "hidden asymmetric"]),
        ("102", []),
        ("merged probs", ["verb_probs symmetric", "verb_probs asymmetric"]),
        ("top_order 0.0286771", []),
        ("(*", []),
    ],
)
def test_the_filter_keeps_the_rows_with_every_word(visit, lab_sweep, typed, kept):
    page = visit(lab_sweep[0])
    words = page.get_by_role("searchbox")
    words.fill(typed)
    assert page.locator("#shown").inner_text() == f"{len(kept)} of 6 rows"
    page.get_by_role("button", name="n_elements", exact=True).click()  # sorting keeps the filter
    shown = [" ".join(each) for each in zip(cells(page, "dist"), cells(page, "mode"), strict=True)]
    assert sorted(shown) == sorted(kept)
    words.fill("")
    assert len(cells(page, "dist")) == 6


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_nothing_is_wider_than_the_window_nor_too_small(visit, report, width, scheme):
    page = visit(report, width, scheme)
    assert page.evaluate(TOO_WIDE) == 0
    for fold in page.locator("details").all():
        fold.evaluate("fold => fold.open = true")
    assert page.evaluate(TOO_WIDE) == 0
    assert page.evaluate(SMALLEST) >= 11  # CSS pixels


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit, report, scheme):
    page = visit(report, 400, scheme)
    for fold in page.locator("details").all():
        fold.evaluate("fold => fold.open = true")
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["impact"], each["nodes"][0]["html"]) for each in found] == []


def test_on_paper_nothing_is_cut_off(visit, report, tmp_path):
    page = visit(report)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1032, "height": 700})  # A4 across, less its margins
    for table in page.locator("table").all():
        assert table.bounding_box()["width"] <= 1032
    assert len(page.pdf(path=tmp_path / "report.pdf")) > 10_000


def test_without_scripts_the_page_is_whole(chromium, lab_sweep):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((lab_sweep[0] / "report.html").as_uri())
    assert page.locator("#all tbody tr").count() == 6
    assert not page.get_by_role("searchbox").is_visible()
    context.close()


@pytest.fixture(scope="module", params=["few", "crowd", "answers"])
def formats(request, tmp_path_factory):
    """The report of a sweep of formats."""
    directory = tmp_path_factory.mktemp("formats")
    rows = crowd() if request.param == "crowd" else some()
    answers = [*many_answers(), *many_answers("second")] if request.param == "answers" else ()
    levels = [*LEVELS, "scale_dtype", "range"]
    html = pages.artefacts(findings_of(rows, levels, answers=answers), Texts("en"))
    (directory / "report.html").write_bytes(html["report.html"])
    return directory


@pytest.mark.parametrize(("width", "scheme"), [(380, "light"), (1600, "dark")])
def test_formats_are_legible_too(visit, formats, width, scheme):
    page = visit(formats, width, scheme)
    assert page.get_by_role("heading", name="Error against storage").is_visible()
    assert page.evaluate(TOO_WIDE) == 0
    assert page.evaluate(SMALLEST) >= 11
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


@pytest.fixture(scope="module", params=["few", "many"])
def planned(request, remedies_sweep, tmp_path_factory):
    """The page of a plan, for the lab's three tensors and for those of 120 layers."""
    directory = tmp_path_factory.mktemp("planned")
    source = remedies_sweep[0]
    if request.param == "many":
        source = directory
        many(directory, [f"blocks.{n}.attention.weight" for n in range(120)])
        aggregate(directory)
    found = read_aggregate(source)
    plan = make_plan(found, Request(bits=9))
    (directory / "plan.html").write_bytes(plan_page(plan, "quantlab plan", "0" * 64, Texts("en")))
    return directory


@pytest.mark.parametrize(("width", "scheme"), [(380, "light"), (1600, "dark")])
def test_a_plan_is_legible_and_complete(visit, planned, width, scheme):
    page = visit(planned, width, scheme, "plan.html")
    assert page.get_by_role("heading", name="Noise over size").is_visible()
    assert page.get_by_role("img").count() == 2
    assert page.locator("#all tbody tr").count() in (3, 120)
    page.get_by_role("searchbox").fill("nothing has this name")
    assert page.locator("#all tbody tr:not([hidden])").count() == 0
    assert page.evaluate(TOO_WIDE) == 0
    assert page.evaluate(SMALLEST) >= 11
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
