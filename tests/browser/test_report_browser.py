"""The report in headless Chromium: by mouse, by keyboard, on a phone, in the dark.

Needs Chromium; CONTRIBUTING.md says what to install. One browser for all: it takes long to start.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, hostile_run, long_run, small_run

from ttrl.answers import default_grader
from ttrl.report.page.page import write_page
from ttrl.report.run_record import RunRecord

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
if CHROMIUM is None:
    pytest.skip("no Chromium found: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-quic",
)  # fmt: skip
REFERENCES = {"q1": "7", "q2": "1/2", "q3": "30"}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a page, and fails if it asked for anything or complained."""
    complaints: list[str] = []
    contexts = []

    def opened(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on(
            "request", lambda asked: None if local(asked.url, url) else complaints.append(asked.url)
        )
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two runs, one of which goes on."""
    folder = tmp_path_factory.mktemp("small")
    first, second = small_run(folder / "first"), small_run(folder / "second", "seed=1", shift=0.1)
    return written(folder, replace(first, state="running"), second)


def written(folder: Path, *runs: RunRecord) -> str:
    path = folder / "report.html"
    write_page(path, runs, [REFERENCES] * len(runs), default_grader())
    return path.as_uri()


def local(asked: str, url: str) -> bool:
    """Whether a request is for the page itself, or what it has made for saving."""
    return asked.partition("#")[0] == url or asked.startswith("blob:null/")


def names(page: Any) -> list[str]:
    return [name.strip() for name in page.locator("#list .id").all_inner_texts()]


def test_search_filters_and_sorting_find_questions(small: str, visit: Open) -> None:
    page = visit(small)
    assert names(page) == ["q1", "q2", "q3"]
    page.get_by_label("wrong").check()
    assert names(page) == ["q3"]
    page.locator("#when").select_option("any")
    assert names(page) == ["q1", "q3"]
    page.get_by_label("flipped").check()
    assert names(page) == ["q1"]
    assert page.locator("#found").inner_text() == "1 of 3 questions"
    page.reload()  # the state is in the address
    page.wait_for_selector("html[data-ready]")
    assert names(page) == ["q1"]
    page.get_by_label("wrong").uncheck()
    page.get_by_label("flipped").uncheck()
    page.get_by_label("tied or missing").check()
    assert names(page) == ["q1", "q3"]
    page.get_by_label("tied or missing").uncheck()
    page.get_by_label("of undecided votes").check()
    assert names(page) == ["q2"]
    page.get_by_label("of undecided votes").uncheck()
    page.locator("#search").fill("31")
    assert names(page) == ["q3"]
    page.locator("#search").fill("nothing of the kind")
    assert names(page) == []
    page.locator("#search").fill("")
    page.locator("#sort").select_option("ratio")
    assert names(page) == ["q3", "q2", "q1"]
    page.locator("#run").select_option("1")
    page.wait_for_function("location.hash.includes('run=1')")


def test_a_question_shows_its_votes_answers_and_formulas(small: str, visit: Open) -> None:
    page = visit(small)
    page.locator("#list button", has_text="q2").click()
    page.wait_for_selector("#answers details")
    detail = page.locator("#detail")
    assert detail.locator(".visits tbody tr").count() == 3
    assert detail.locator(".said math msup").count() == 1  # $x^2$ of the prompt
    assert detail.locator(".visits math mfrac").count() >= 2  # its label
    assert "Answers in step 3" in detail.inner_text()
    page.locator("#answers summary").nth(3).click()
    page.locator("#answers .said").wait_for()
    assert page.locator("#answers .said").inner_text() == r"wrong, \frac{1}{2}0"
    page.locator(".clusters button").nth(2).click()
    assert page.locator("#answers details:visible").count() == 1
    detail.locator("tbody button").last.click()  # the oldest visit
    page.wait_for_function("document.querySelector('h4').textContent === 'Answers in step 1'")
    page.reload()
    page.wait_for_selector("#answers details")
    assert page.locator("#detail h3").inner_text() == "q2"
    assert page.locator("#detail h4").inner_text() == "Answers in step 1"


def test_curves_say_their_values_at_a_step(small: str, visit: Open) -> None:
    page = visit(small)
    figure = page.locator(".figure", has_text="Votes and their labels")
    reading = figure.locator(".reading")
    assert reading.inner_text() == "first, majority ratio 70.0 % · second, majority ratio 80.0 %"
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert reading.inner_text() == "first, majority ratio 60.0 % · second, majority ratio 70.0 %"
    figure.locator("svg").hover(position={"x": 60, "y": 100})
    assert "first, majority ratio 50.0 %" in reading.inner_text()
    figure.locator("summary").click()
    figure.locator("tbody tr").first.wait_for()  # written when the browser says that it is open
    rows = figure.locator("tbody tr").all_inner_texts()
    assert rows == ["1\t50.0 %\t60.0 %", "2\t60.0 %\t70.0 %", "3\t70.0 %\t80.0 %"]
    with page.expect_download() as saved:
        figure.get_by_role("button", name="Save as PNG").click()
    assert Path(saved.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path, visit: Open) -> None:
    page = visit(written(tmp_path, hostile_run(tmp_path / "run")))
    assert page.locator("#list button").count() == len(HOSTILE)
    for i in range(len(HOSTILE)):
        page.locator("#list button").nth(i).click()
        page.wait_for_selector("#answers details")
        page.locator("#answers summary").first.click()
        page.locator("#answers .said").first.wait_for()
    assert page.evaluate("window.broken") is None
    assert page.locator("main img, main iframe, main script").count() == 0
    assert page.locator("#detail [href], #detail [style*=url]").count() == 0
    page.locator("#search").fill("lone")
    page.locator("#list button").click()
    page.wait_for_selector("#answers details")
    assert "lone U+D800 and U+DFFF, whole \U0001f600" in page.locator("#detail .said").inner_text()
    page.locator("#search").fill("price")
    page.locator("#list button").click()
    page.wait_for_selector("#detail .said math mfrac")
    assert "price $5 and $6, formula" in page.locator("#detail .said").inner_text()


def test_the_keyboard_reaches_everything(small: str, visit: Open) -> None:
    page = visit(small)
    seen: list[str] = []
    while True:
        page.keyboard.press("Tab")
        name, outlined = page.evaluate(
            """(e => [e === document.body ? "" : e.id || e.name || e.className || e.textContent,
            getComputedStyle(e).outlineStyle !== "none"])(document.activeElement)"""
        )
        if not name:  # behind the last one
            break
        seen.append(name)
        assert outlined, name
    assert seen[0] == "skip"
    assert seen[1:4] == ["Curves", "Questions", "Settings"]
    assert set(seen) >= {"reload", "step", "run", "search", "sort", "wrong", "when"}
    assert len(seen) > 25
    page.locator("#list button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#answers details")
    page.wait_for_function("document.activeElement.id === 'detail'")
    page.locator("nav a", has_text="Settings").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'settings'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(small: str, visit: Open, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    page = visit(small, color_scheme=scheme)
    page.locator("#list button").first.click()
    page.wait_for_selector("#answers details")
    page.locator("#answers summary").first.click()
    page.locator("#answers .said").first.wait_for()
    page.locator(".figure summary").first.click()
    page.locator(".figure tbody tr").first.wait_for()
    for details in page.locator("#settings details:not([open]) summary").all():
        details.click()
    found = axe.Axe().run(page).response["violations"]
    told = [f"{v['id']}: {[node['html'][:90] for node in v['nodes']]}" for v in found]
    assert "\n".join(told) == ""
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(16, 20, 24)"}[scheme]


def test_a_phone_scrolls_one_way_and_print_hides_controls(small: str, visit: Open) -> None:
    page = visit(small, viewport={"width": 360, "height": 740})
    page.locator("#list button").first.click()
    page.wait_for_selector("#answers details")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.emulate_media(media="print")
    assert not page.locator(".filters").is_visible()
    assert page.locator(".figure").first.is_visible()


def test_a_running_page_reloads_where_it_was(small: str, visit: Open) -> None:
    page = visit(small)
    page.evaluate("setInterval = (then) => { window.then = then }; startReloading()")
    page.evaluate("scrollTo(0, 400)")
    with page.expect_navigation():
        page.evaluate("window.then()")
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("Math.round(scrollY)") == 400
    page.get_by_label("Reload this page").uncheck()
    page.wait_for_function("location.hash.includes('reload=off')")


def test_a_page_that_nobody_refreshes_says_so(small: str, visit: Open, tmp_path: Path) -> None:
    """Its run was killed: nobody is there to write it anew."""
    page = visit(small)
    live = page.locator("#live > span:visible:not(.dot)")
    assert live.inner_text().startswith("Running when this was written, 2")
    silent_s = page.evaluate("data.silent_s")
    assert silent_s == 60 + 3 * 5 + 300  # report.every_s, the step of 2 + 3 s, and some room
    for past, said in ((-5, "Running when"), (5, "Last written 2"), (-5, "Running when")):
        page.evaluate(f"data.written_s = Date.now() / 1000 - {silent_s + past}")
        page.evaluate("sayWhetherRefreshed()")
        assert live.inner_text().startswith(said)
    text = Path(page.url.removeprefix("file://").partition("#")[0]).read_text()
    old = re.sub(r'"written_s": [0-9.]+', '"written_s": 1000.5', text)
    (tmp_path / "old.html").write_text(old)
    page = visit((tmp_path / "old.html").as_uri())  # as it is opened the next day
    assert "no longer refreshed: it has probably ended" in page.locator("#live").inner_text()


def test_a_page_of_1000_steps_opens(tmp_path: Path, visit: Open) -> None:
    url = written(tmp_path, long_run(tmp_path / "run", questions=4))
    begun = time.monotonic()
    page = visit(url)
    print(f"opened in {time.monotonic() - begun:.2f} s")  # bench/report_page.py measures it
    assert page.locator("#list button").count() == 20
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#list button").count() == 40
    figure = page.locator(".figure", has_text="Policy entropy")
    figure.locator("summary").click()
    figure.locator("tbody tr").first.wait_for()
    assert figure.locator("tbody tr").count() == 1000
