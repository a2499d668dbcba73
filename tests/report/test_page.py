"""The page in a real browser, at a desk and on a phone, by day and by night, offline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from steadynorm.records import Evidence
from steadynorm.report import page as drawn_page

from ..support.study import EVIL, evil_evidence, one_claim, three_claims

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LINES = ".scatterlayer .lines path"
CURVES = ".scatterlayer .trace:has(.lines path)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    from playwright.sync_api import sync_playwright

    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each evidence, alone in its folder."""
    folder = tmp_path_factory.mktemp("pages")
    found = {"one": one_claim(), "three": three_claims(), "evil": evil_evidence()}
    return {name: _written(folder / f"{name}.html", evidence) for name, evidence in found.items()}


def _written(path: Path, evidence: Evidence) -> Path:
    path.write_bytes(drawn_page.render(evidence))
    return path


def opened(browser: Browser, path: Path, *, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """The page, opened without a network; it must log nothing and ask for nothing."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
        offline=True,
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda asked: complaints.append(asked.url) if path.name not in asked.url else None)
    page.goto(path.as_uri())
    yield page
    assert complaints == []
    context.close()


@pytest.fixture(params=[(1280, "light"), (360, "dark")], ids=str)
def page(browser: Browser, request: pytest.FixtureRequest, pages: dict[str, Path]) -> Iterator[Page]:
    """Three claims, in both looks."""
    width, scheme = request.param
    yield from opened(browser, pages["three"], width=width, scheme=scheme)


@pytest.fixture
def desk(browser: Browser, pages: dict[str, Path]) -> Iterator[Page]:
    yield from opened(browser, pages["three"])


def plots(page: Page, figure: str) -> list[Locator]:
    """A figure's plots, scrolled to and drawn."""
    found = page.locator(f"#figure-{figure} .plot").all()
    for plot in found:
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for(state="attached")
    return found


def test_every_figure_is_drawn_when_it_is_reached(page: Page) -> None:
    """The lines and bars of each panel; those far below are not drawn before."""
    assert page.locator(".plot").count() == 11
    assert page.locator("#figure-learning-rate-2 .main-svg").count() == 0
    for claim in ("cnn", "learning-rate"):
        assert [plot.locator(CURVES).count() for plot in plots(page, f"{claim}-1")] == [2, 2]
        assert [plot.locator(CURVES).count() for plot in plots(page, f"{claim}-2")] == [2, 1]
    norms = plots(page, "norms-1")
    assert [plot.locator(CURVES).count() for plot in norms] == [8, 0, 0]
    assert [plot.locator(".bars .point path").count() for plot in norms] == [0, 4, 3]


def test_bands_stop_where_the_loss_is_not_finite(desk: Page) -> None:
    """The loss with BN is left out at step 200, so its range is a stroke at step 100, and a band from step 300 on."""
    loss = plots(desk, "cnn-1")[1]
    found = loss.evaluate("plot => plot.data.filter(trace => trace.fill).map(trace => trace.x)")
    assert found == [[100, 200, 300, 400, 400, 300, 200, 100, 100, None], [300, 400, 400, 300, 300, None]]
    strokes = loss.evaluate("plot => plot.data[3].error_y.array.map(length => Math.round(1000 * length))")
    assert strokes == [100, 0, 0, 0]
    assert loss.evaluate("plot => plot.layout.yaxis.type") == "log"


def test_page_fits_its_width(page: Page) -> None:
    for figure in ("cnn-1", "norms-1"):
        for plot in plots(page, figure):
            box = plot.bounding_box()
            assert box is not None
            assert page.viewport_size is not None
            assert box["x"] + box["width"] <= page.viewport_size["width"]
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_ledger_says_what_was_found(desk: Page) -> None:
    rows = [" ".join(text.split()) for text in desk.locator("#ledger tbody tr").all_inner_texts()]
    assert len(rows) == 3
    assert "supported +18 points 95% interval +5.5 to +30.5 test accuracy, with BN − without" in rows[0]
    assert "contradicted −0.4 points 95% interval −0.6 to −0.2" in rows[1]
    assert "undecided 6 missing 4× no interval" in rows[2]
    assert desk.locator("#ledger .forest").evaluate_all("all => all.map(drawn => drawn.className.baseVal)") == [
        *("forest for", "forest against", "forest open")
    ]


def test_ledger_is_filtered_by_verdict_and_text(page: Page) -> None:
    rows = page.locator("#ledger tbody tr:visible th a")
    page.locator("input[data-verdict='supported']").uncheck()
    assert rows.all_inner_texts() == ["norms", "learning-rate"]
    page.locator("#search").fill("WU & HE")
    assert rows.all_inner_texts() == ["norms"]
    assert page.locator("#shown").inner_text() == "1 of 3 claims"
    page.locator("#search").fill("")
    page.locator("input[data-verdict='supported']").check()
    assert rows.count() == 3
    assert page.locator("#shown").inner_text() == ""


def test_links_lead_to_sections_and_back(page: Page) -> None:
    page.locator("#ledger a", has_text="norms").click()
    section = page.locator("#claim-norms")
    page.wait_for_function("Math.abs(document.getElementById('claim-norms').getBoundingClientRect().top) < 100")
    assert section.locator("h2").inner_text() == "Does norms learn faster and better?"
    section.locator(".up").click()
    page.wait_for_function("document.getElementById('ledger').getBoundingClientRect().top >= 0")


def test_a_series_can_be_hidden_and_shown(page: Page) -> None:
    """In all panels of its figure, and in no other."""
    accuracy, loss = plots(page, "cnn-1")
    box = page.locator("#figure-cnn-1 [data-series='without BN']")
    box.uncheck()
    assert (accuracy.locator(CURVES).count(), loss.locator(CURVES).count()) == (1, 1)
    assert plots(page, "cnn-2")[0].locator(CURVES).count() == 2
    box.check()
    assert (accuracy.locator(CURVES).count(), loss.locator(CURVES).count()) == (2, 2)


def test_colours_follow_the_scheme(page: Page) -> None:
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    line = plots(page, "cnn-1")[0].locator(LINES).first
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    stroke = line.evaluate("path => getComputedStyle(path).stroke")
    assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert stroke == ("rgb(255, 154, 77)" if dark else "rgb(213, 94, 0)")
    page.emulate_media(color_scheme="light" if dark else "dark")
    page.wait_for_function(
        f"(old) => getComputedStyle(document.querySelector('#figure-cnn-1 {LINES}')).stroke !== old", arg=stroke
    )


def test_hovering_shows_the_value(page: Page) -> None:
    plot = plots(page, "cnn-1")[0]
    box = plot.bounding_box()
    assert box is not None
    label = plot.locator(".hoverlayer")
    for step in range(50):
        page.mouse.move(box["x"] + box["width"] / 2 + step % 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
        if label.text_content():
            break
    assert label.text_content() in (
        "200without BN : 0.6 (0.5 to 0.7)with BN : 0.85 (0.8 to 0.9)",
        "300without BN : 0.7 (0.6 to 0.8)with BN : 0.9",
    )


def test_the_numbers_behind_a_figure_are_in_tables(desk: Page) -> None:
    details = desk.locator("#figure-cnn-2 details")
    assert details.locator("table").count() == 0
    details.locator("summary").click()
    details.locator("table").nth(1).wait_for()
    tables = [
        [" ".join(row.split()) for row in table.locator("tr").all_inner_texts()]
        for table in details.locator("table").all()
    ]
    assert tables[0][0] == "learning rate without BN with BN"
    assert tables[0][1:3] == ["0 – –", "0.001 0.6 0.5 to 0.7 0.5"]
    assert tables[0][5] == "1 – 0.85 0.8 to 0.9"
    assert tables[1][2] == "ghost 4 0.5 0.4 to 0.6"
    assert "2 points at 0 or below cannot be drawn" in desk.locator("#figure-cnn-2").inner_text()


def test_one_claim_is_a_page_of_its_own(browser: Browser, pages: dict[str, Path]) -> None:
    for page in opened(browser, pages["one"]):
        assert page.title() == page.locator("h1").inner_text() == "Does cnn learn faster and better?"
        assert page.locator("#ledger, #search, .up").count() == 0
        text = page.locator("main").inner_text()
        for said in ("harder data", "3 finished, 1 diverged, over 2 seeds", "steadynorm study cnn --preset quick"):
            assert said in text
        assert page.locator(".effects tbody tr").count() == 3
        assert page.locator(".means tbody tr").count() == 2


def test_an_unfinished_claim_says_so(desk: Page) -> None:
    assert "2 finished, 6 missing, over 1 seed" in desk.locator("#claim-learning-rate").inner_text()
    assert desk.get_by_text("This study is not finished").count() == 1


def test_printing_draws_everything_by_day(browser: Browser, pages: dict[str, Path]) -> None:
    """And gives the screen back as it was."""
    for page in opened(browser, pages["three"], scheme="dark"):
        assert page.locator(".plot .main-svg").count() < 3 * 11
        dark = page.locator(LINES).first.evaluate("path => getComputedStyle(path).stroke")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        assert page.locator(".plot .main-svg").count() == 3 * 11
        assert page.locator(LINES).first.evaluate("path => getComputedStyle(path).stroke") == "rgb(213, 94, 0)"
        assert page.locator("input:visible, details:visible, .modebar:visible").count() == 0
        page.set_viewport_size({"width": 690, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 690
        page.emulate_media(media="screen")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator(LINES).first.evaluate("path => getComputedStyle(path).stroke") == dark


def test_nothing_in_the_evidence_is_run(browser: Browser, pages: dict[str, Path]) -> None:
    """Nor is it read as a tag or a formula by what draws."""
    for page in opened(browser, pages["evil"], width=360):
        for claim in page.locator("section.claim[id^=claim-]").all():
            for plot in claim.locator(".plot").all():
                plot.scroll_into_view_if_needed()
                plot.locator(".main-svg").first.wait_for(state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("h1").inner_text() == EVIL
        assert f"{EVIL} $x^$ again" in (page.locator(".plot").first.locator(".xaxislayer-above").text_content() or "")
        assert page.locator("script").count() == 3
