"""The HTML page in a real browser: mouse and keyboard, layout, contrast, and no network requests."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from domainbed.reporting import plots
from domainbed.reporting.cells import RANK
from domainbed.reporting.formats.base import anchor
from domainbed.reporting.formats.page import as_html
from domainbed.reporting.layout import ReportOptions, Table
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import Report, make_report
from tests.conftest import make_record, write_sweep

try:
    from selenium import webdriver
    from selenium.webdriver import Chrome
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.remote.webelement import WebElement
    from selenium.webdriver.support.wait import WebDriverWait
except ModuleNotFoundError as error:
    UNAVAILABLE = str(error)
else:
    UNAVAILABLE = ", ".join(f"no {name}" for name in ("chromium", "chromedriver") if not shutil.which(name))

IS_REQUIRED = os.environ.get("DOMAINBED_TEST_BROWSER") == "1"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(UNAVAILABLE) and not IS_REQUIRED, reason=f"these tests require a browser: {UNAVAILABLE}"),
]

HOSTILE = 'Mine "><img src=x onerror=alert(1)>'

ARGUMENTS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    assert not UNAVAILABLE, UNAVAILABLE
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in [*ARGUMENTS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.get("about:blank")
    driver.get_log("performance")  # discard the browser's own requests
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Return the report of a sweep with gaps, and its page in another folder."""
    folder = tmp_path_factory.mktemp("a sweep, 100 % #1")
    rng = random.Random(0)
    records = []
    for dataset, n in (("ColoredMNIST", 3), ("DomainNet", 6)):
        for algorithm in ("ERM", "CORAL", "IRM", "Mixup", HOSTILE):
            for env, trial in ((e, t) for e in range(n) for t in range(2)):
                if (dataset, algorithm, env) not in (("ColoredMNIST", "IRM", 1), ("DomainNet", "ERM", 0)):
                    accuracies = tuple(rng.uniform(0.05, 1) for _ in range(n))
                    records.append(make_record(dataset, algorithm, (env,), trial, 0, 300, accuracies, accuracies))
    report = make_report(
        load_sweep(str(write_sweep(folder, records))),
        ReportOptions(compare="published", versus=("CORAL", "Mixup"), pictures=True),
    )
    file = tmp_path_factory.mktemp("pages") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            plots,
            "draw_plots",
            lambda _, selection, *__: [plots.Plot(selection, "Bars", Figure((5.5, 3)), pd.DataFrame())],
        )
        file.write_text(as_html(report, file.parent))
    return report, file


@pytest.fixture
def opened(browser: "Chrome", written: tuple[Report, Path]) -> "Iterator[Callable[[str], Chrome]]":
    """Open the page at a fragment; afterwards, check that it logged nothing and made no network request."""

    def open_at(fragment: str = "") -> "Chrome":
        browser.get("about:blank")
        browser.get(written[1].as_uri() + fragment)
        return browser

    yield open_at
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert written[1].as_uri() in {url.partition("#")[0] for url in requested}
    assert {urlsplit(url).scheme for url in requested} <= {"file", "data", "about"}


def table_of(driver: "Chrome", table: Table) -> "WebElement":
    section = driver.find_element(By.ID, anchor(table.selection, table.name))
    return section.find_element(By.CSS_SELECTOR, "table.sortable")


def visible_methods(driver: "Chrome") -> list[str]:
    return [e.get_attribute("id") for e in driver.find_elements(By.CSS_SELECTOR, "section.method") if e.is_displayed()]


def column_texts(table: "WebElement") -> list[list[str]]:
    """Return the first line of each cell, by column, from top to bottom."""
    script = "return [...arguments[0].tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.innerText))"
    rows = table.parent.execute_script(script, table)
    return [[text.split("\n")[0].strip() for text in column] for column in zip(*rows, strict=True)]


def test_clicking_a_header_sorts_and_reverses(opened: "Callable[[str], Chrome]", written):
    driver = opened("")
    for table in written[0].sections[0].tables:
        shown = table_of(driver, table)
        buttons = shown.find_elements(By.CSS_SELECTOR, "thead button")
        for i, (button, name) in enumerate(zip(buttons, ["Algorithm", *table.columns], strict=True)):
            before = column_texts(shown)
            button.click()
            first, algorithms = column_texts(shown)[i], column_texts(shown)[0]
            order = button.find_element(By.XPATH, "..").get_attribute("aria-sort")
            button.click()
            second = column_texts(shown)[i]
            reverse = button.find_element(By.XPATH, "..").get_attribute("aria-sort")
            assert len(shown.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1
            assert sorted(first) == sorted(second) == sorted(before[i])
            if i == 0:
                assert first == sorted(first, key=str.lower) == second[::-1]
                continue
            is_descending = name != RANK
            assert [order, reverse] == ["ascending", "descending"][:: -1 if is_descending else 1]
            means = {a: cells[i - 1].mean for a, cells in table.rows.items() if not cells[i - 1].is_missing}
            expected = sorted(means, key=means.__getitem__, reverse=is_descending)
            n = len(means)
            if len(set(means.values())) == n:  # ranks may be equal
                assert algorithms[:n] == expected
            numbers = [float(text.split()[0].rstrip("*~")) for text in first[:n]]
            assert numbers == sorted(numbers, reverse=is_descending)
            assert [float(text.split()[0].rstrip("*~")) for text in second[:n]] == numbers[::-1]
            assert first[n:] == second[n:] == ["X"] * (5 - n)
    assert column_texts(table_of(driver, written[0].sections[0].tables[0]))[2][-1] == "X"


def test_headers_sort_by_keyboard(opened: "Callable[[str], Chrome]", written):
    driver = opened("")
    table = written[0].sections[0].tables[0]
    shown = table_of(driver, table)
    button = shown.find_elements(By.CSS_SELECTOR, "thead button")[-1]
    driver.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    by_enter = column_texts(shown)[0]
    button.send_keys(Keys.SPACE)
    means = {a: cells[-1].mean for a, cells in table.rows.items() if not cells[-1].is_missing}
    assert by_enter[:4] == sorted(means, key=means.__getitem__, reverse=True)
    assert column_texts(shown)[0] == [*by_enter[3::-1], "IRM"]


def test_missing_runs_are_sortable(opened: "Callable[[str], Chrome]"):
    driver = opened("#/missing")
    table = driver.find_element(By.ID, "/missing").find_element(By.TAG_NAME, "table")
    assert column_texts(table)[:3] == [["ColoredMNIST", "DomainNet"], ["IRM", "ERM"], ["+80%", "clip"]]
    table.find_elements(By.TAG_NAME, "button")[1].click()
    assert column_texts(table)[1] == ["ERM", "IRM"]


def test_switch_shows_one_method_and_url_keeps_it(opened: "Callable[[str], Chrome]"):
    driver = opened("")
    assert visible_methods(driver) == ["training-domain"]
    driver.find_element(By.CSS_SELECTOR, "input[value='test-domain']").click()
    assert visible_methods(driver) == ["test-domain"]
    assert driver.current_url.endswith("#test-domain")
    driver.refresh()
    assert visible_methods(driver) == ["test-domain"]
    driver = opened("#leave-one-domain-out")
    assert visible_methods(driver) == ["leave-one-domain-out"]
    assert "No table: this method requires" in driver.find_element(By.ID, "leave-one-domain-out").text


def test_switch_by_keyboard(opened: "Callable[[str], Chrome]"):
    driver = opened("")
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    chosen = driver.switch_to.active_element
    assert (chosen.get_attribute("type"), chosen.get_attribute("value")) == ("radio", "training-domain")
    chosen.send_keys(Keys.ARROW_DOWN)
    assert visible_methods(driver) == ["leave-one-domain-out"]
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert visible_methods(driver) == ["test-domain"]


def test_clicking_a_result_shows_its_runs_with_links(opened: "Callable[[str], Chrome]", written):
    report, _ = written
    driver = opened("#test-domain")
    section = report.sections[2]
    for names in (("DomainNet", HOSTILE, "sketch"), ("DomainNet", HOSTILE), ("ColoredMNIST", "IRM", "+80%")):
        target = driver.find_element(By.ID, anchor(section.selection, *names))
        assert not target.is_displayed() or names == ("DomainNet", HOSTILE)
        table = next(t for t in section.tables if t.name == names[0])
        href = "#" + anchor(section.selection, *names)
        link = table_of(driver, table).find_element(By.CSS_SELECTOR, f"a[href='{href}']")
        assert link.text == (table.format_result(cell := cell_of(table, *names[1:]), "±") + cell.mark)
        link.click()
        WebDriverWait(driver, 5).until(lambda _, target=target: target.is_displayed() and is_in_view(driver, target))
        assert cell.counts in target.text
        best = section.best
        best = best[(best["dataset"] == names[0]) & (best["algorithm"] == names[1])]
        if len(names) == 3:
            best = best[best["test_env"] == list(report.environments[names[0]]).index(names[2])]
        folders = [a.get_attribute("href") for a in target.find_elements(By.CSS_SELECTOR, "td a")]
        paths = [Path(unquote(urlsplit(folder).path)) for folder in folders]
        assert paths == [report.sweep.folder / f for f in best["folder"]]
        assert all((path / "results.jsonl").is_file() for path in paths)
    assert "no run to select from" in target.text
    assert len(paths) == 0


def cell_of(table: Table, algorithm: str, column: str = "Avg"):
    return next(cell for cell in table.rows[algorithm] if cell.column == column)


def is_in_view(driver: "Chrome", element: "WebElement") -> bool:
    return driver.execute_script(
        "const box = arguments[0].getBoundingClientRect(); return box.top >= 0 && box.top < innerHeight", element
    )


def test_url_of_a_cell_opens_its_method_and_runs(opened: "Callable[[str], Chrome]"):
    driver = opened("#" + anchor("test-domain", "ColoredMNIST", "CORAL", "-90%"))
    assert visible_methods(driver) == ["test-domain"]
    target = driver.find_element(By.ID, anchor("test-domain", "ColoredMNIST", "CORAL", "-90%"))
    assert target.is_displayed()
    assert is_in_view(driver, target)
    other = driver.find_element(By.ID, anchor("test-domain", "DomainNet", "CORAL", "real"))
    assert not other.is_displayed()


def test_second_click_reopens_closed_runs(opened: "Callable[[str], Chrome]", written):
    driver = opened("")
    link = table_of(driver, written[0].sections[0].tables[0]).find_element(By.CSS_SELECTOR, "a")
    runs = driver.find_element(By.CSS_SELECTOR, "details.runs")
    for _ in range(2):
        link.click()
        assert runs.get_attribute("open")
        runs.find_element(By.TAG_NAME, "summary").click()
        assert not runs.get_attribute("open")


def test_job_folder_opens(opened: "Callable[[str], Chrome]", written):
    driver = opened("#" + anchor("training-domain", "ColoredMNIST", "CORAL", "-90%"))
    target = driver.find_element(By.ID, anchor("training-domain", "ColoredMNIST", "CORAL", "-90%"))
    target.find_element(By.CSS_SELECTOR, "td a").click()
    assert "results.jsonl" in driver.find_element(By.TAG_NAME, "body").text
    driver.get_log("browser")  # the browser's own listing of the folder requests an icon


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_page_fits_window_width(opened: "Callable[[str], Chrome]", width: int):
    driver = opened("")
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        driver.execute_script("for (const details of document.querySelectorAll('details')) details.open = true")
        for method in driver.find_elements(By.CSS_SELECTOR, ".switch input"):
            driver.execute_script("arguments[0].click()", method)
            widths = "return [document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
            assert max(driver.execute_script(widths)) == width
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_works_without_javascript(opened: "Callable[[str], Chrome]", browser: "Chrome"):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver = opened("")
        assert len(visible_methods(driver)) == 3
        assert not driver.find_element(By.CLASS_NAME, "switch").is_displayed()
        assert not any(e.is_displayed() for e in driver.find_elements(By.TAG_NAME, "button"))
        assert not driver.find_element(By.ID, "/explore").is_displayed()
        assert all(e.is_displayed() for e in driver.find_elements(By.CSS_SELECTOR, "table.sortable"))
        driver.find_element(By.CSS_SELECTOR, "details.runs summary").click()
        assert driver.find_element(By.CSS_SELECTOR, "section.row").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_print_shows_all_methods_without_switch(opened: "Callable[[str], Chrome]"):
    driver = opened("")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert len(visible_methods(driver)) == 3
        assert not driver.find_element(By.CLASS_NAME, "switch").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_text_contrast_in_light_and_dark_mode(opened: "Callable[[str], Chrome]"):
    """WCAG level AA requires 4.5:1 for all text."""
    driver = opened("")
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        paper = luminance(driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
        assert (paper > 0.5) == (scheme == "light")
        for element in ("h1", ".generated", ".error", "summary", "caption"):
            ink = luminance(driver.find_element(By.CSS_SELECTOR, element).value_of_css_property("color"))
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_plots_are_dark_in_dark_mode(opened: "Callable[[str], Chrome]"):
    driver = opened("")
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        picture = driver.find_element(By.CSS_SELECTOR, ".gallery img")
        driver.execute_script("arguments[0].scrollIntoView(); return arguments[0].decode()", picture)
        with Image.open(BytesIO(picture.screenshot_as_png)) as image:
            brightness = np.asarray(image.convert("L")).mean()
        assert brightness > 240 if scheme == "light" else brightness < 40
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_shadow_shows_that_a_table_has_more_columns(opened: "Callable[[str], Chrome]"):
    driver = opened("")
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        region = driver.find_element(By.CSS_SELECTOR, ".scroll")
        darkest = []
        for left in (0, 10_000):
            driver.execute_script("arguments[0].scrollIntoView(); arguments[0].scrollLeft = arguments[1]", region, left)
            with Image.open(BytesIO(region.screenshot_as_png)) as image:
                pixels = np.asarray(image.convert("L"))
            darkest.append(np.median(pixels[:, -2]))  # a column of pixels at the right edge; most contain no text
        assert darkest[0] < 200
        assert darkest[1] > 245
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(color: str) -> float:
    parts = [int(n) / 255 for n in re.findall(r"\d+", color)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
