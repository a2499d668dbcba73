"""The picture and the page, looked at: pixels of the one, the other in a real browser."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from steadynorm import records, report
from steadynorm.errors import RecordError
from steadynorm.records import Records
from steadynorm.report.curves import COLOURS

from ..support.study import a_run, full_records, some_records

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def written(directory: Path, kept: Records) -> Path:
    records.write(directory, kept)
    page, picture = report.write(directory)
    assert (page.name, picture.name) == ("report.html", "curves.png")
    return page


def test_picture_shows_both_curves(tmp_path: Path) -> None:
    from matplotlib.image import imread

    written(tmp_path, full_records())
    pixels = (imread(tmp_path / "curves.png")[..., :3] * 255).round().astype(int)
    for colour in COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - rgb).max(-1) <= 2).sum() > 500


def test_nothing_in_a_record_is_run(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    kept = some_records([a_run(evil, 0, [0.5, 0.6], [1.0, 0.5])], variants=[evil, "with BN"], data_title=evil, epochs=2)
    kept = dataclasses.replace(kept, command=evil, environment={evil: evil})
    text = written(tmp_path, kept).read_text()
    assert evil not in text
    assert text.count("&lt;script&gt;alert(1)") >= 5


def test_no_records_is_an_error_that_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no records\.json"):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_page(tmp_path: Path) -> None:
    records.write(tmp_path, full_records())
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RecordError, match="cannot write to"):
        report.write(tmp_path)


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
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("report"), full_records())


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=str)
def page(browser: Browser, request: pytest.FixtureRequest, page_file: Path) -> Iterator[Page]:
    """The page of full records, opened without a network; it must log nothing and ask for nothing."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda asked: complaints.append(asked.url) if "report.html" not in asked.url else None)
    opened.goto(page_file.as_uri())
    opened.wait_for_selector(".scatterlayer .lines path")
    yield opened
    assert complaints == []
    context.close()


def test_page_draws_four_charts_with_both_networks(page: Page) -> None:
    assert page.locator(".plot").count() == 4
    for plot in page.locator(".plot").all():
        assert plot.locator(".scatterlayer .lines path").count() == 2
    assert page.locator("#verdict").inner_text().startswith("Test accuracy is 93.00% with BN")
    assert page.locator("#measures-table tbody tr").count() == 5


def test_page_fits_its_width(page: Page) -> None:
    assert page.viewport_size is not None
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    for plot in page.locator(".plot").all():
        box = plot.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= page.viewport_size["width"]


def test_a_network_can_be_hidden_and_shown(page: Page) -> None:
    box, lines = page.locator("[data-series='0']"), page.locator(".plot").first.locator(".scatterlayer .lines path")
    box.uncheck()
    assert lines.count() == 1
    box.check()
    assert lines.count() == 2


def test_colours_follow_the_scheme(page: Page) -> None:
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    stroke = page.locator(".scatterlayer .lines path").first.evaluate("path => getComputedStyle(path).stroke")
    assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert stroke == ("rgb(255, 154, 77)" if dark else "rgb(213, 94, 0)")
    page.emulate_media(color_scheme="light" if dark else "dark")
    page.wait_for_function(
        "(old) => getComputedStyle(document.querySelector('.scatterlayer .lines path')).stroke !== old", arg=stroke
    )


def test_hovering_shows_the_value(page: Page) -> None:
    plot = page.locator(".plot").nth(1)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    label = page.locator(".hoverlayer").nth(1)
    for step in range(50):
        page.mouse.move(box["x"] + box["width"] / 2 + step % 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
        if label.text_content():
            break
    assert label.text_content() in (
        "2without BN : 0.5500 (0.5000 to 0.6000)with BN : 0.9000 (0.9000 to 0.9000)",
        "3without BN : 0.7000 (0.7000 to 0.7000)with BN : 0.8750 (0.8500 to 0.9000)",
    )
