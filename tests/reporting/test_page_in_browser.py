"""The page in a real browser: what a click and a key do, how it fits, and that nothing leaves the machine."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from matplotlib.figure import Figure

from domainbed.model_selection import SELECTION_METHODS
from domainbed.reporting import plots
from domainbed.reporting.cells import RANK
from domainbed.reporting.formats.page import anchor, page
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
    MISSING = str(error)
else:
    MISSING = ", ".join(f"no {name}" for name in ("chromium", "chromedriver") if not shutil.which(name))

IS_NEEDED = os.environ.get("DOMAINBED_TEST_BROWSER") == "1"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING) and not IS_NEEDED, reason=f"these tests want a browser: {MISSING}"),
]

MINE = 'Mine "><img src=x onerror=alert(1)>'

ARGUMENTS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    assert not MISSING, MISSING
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in [*ARGUMENTS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.get("about:blank")
    driver.get_log("performance")  # the browser's own first page
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A sweep with holes, and its page, which lies elsewhere."""
    folder = tmp_path_factory.mktemp("a sweep, 100 % #1")
    draw = random.Random(0)
    records = []
    for dataset, n in (("ColoredMNIST", 3), ("DomainNet", 6)):
        for algorithm in ("ERM", "CORAL", "IRM", "Mixup", MINE):
            for env, trial in ((e, t) for e in range(n) for t in range(2)):
                if (dataset, algorithm, env) not in (("ColoredMNIST", "IRM", 1), ("DomainNet", "ERM", 0)):
                    accuracies = tuple(draw.uniform(0.05, 1) for _ in range(n))
                    records.append(make_record(dataset, algorithm, (env,), trial, 0, 300, accuracies, accuracies))
    report = make_report(
        load_sweep(str(write_sweep(folder, records))),
        ReportOptions(list(SELECTION_METHODS), compare_published=True, versus=("CORAL", "Mixup")),
    )
    file = tmp_path_factory.mktemp("pages") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "all_figures", lambda _, selection, *__, **___: [(selection, "Bars", Figure((5.5, 3)))])
        file.write_text(page(report, file.parent))
    return report, file


@pytest.fixture
def opened(browser: "Chrome", written: tuple[Report, Path]) -> "Iterator[Callable[[str], Chrome]]":
    """Open the page at a fragment. At the end, it must have said nothing on the console, and asked nobody."""

    def open_at(fragment: str = "") -> "Chrome":
        browser.get("about:blank")
        browser.get(written[1].as_uri() + fragment)
        return browser

    yield open_at
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert written[1].as_uri() in {url.partition("#")[0] for url in asked}
    assert {urlsplit(url).scheme for url in asked} <= {"file", "data", "about"}


def table_of(driver: "Chrome", table: Table) -> "WebElement":
    section = driver.find_element(By.ID, anchor(table.selection, table.name))
    return section.find_element(By.CSS_SELECTOR, "table.sortable")


def shown_methods(driver: "Chrome") -> list[str]:
    return [e.get_attribute("id") for e in driver.find_elements(By.CSS_SELECTOR, "section.method") if e.is_displayed()]


def columns_as_shown(table: "WebElement") -> list[list[str]]:
    """The texts of each column, first lines alone, from top to bottom."""
    script = "return [...arguments[0].tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.innerText))"
    rows = table.parent.execute_script(script, table)
    return [[text.split("\n")[0].strip() for text in column] for column in zip(*rows, strict=True)]


def test_a_click_on_a_header_sorts_and_a_second_reverses(opened: "Callable[[str], Chrome]", written):
    driver = opened("")
    for table in written[0].sections[0].tables:
        shown = table_of(driver, table)
        buttons = shown.find_elements(By.CSS_SELECTOR, "thead button")
        for i, (button, name) in enumerate(zip(buttons, ["Algorithm", *table.columns], strict=True)):
            before = columns_as_shown(shown)
            button.click()
            first, algorithms = columns_as_shown(shown)[i], columns_as_shown(shown)[0]
            order = button.find_element(By.XPATH, "..").get_attribute("aria-sort")
            button.click()
            second = columns_as_shown(shown)[i]
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
            figures = [float(text.split()[0].rstrip("*~")) for text in first[:n]]
            assert figures == sorted(figures, reverse=is_descending)
            assert [float(text.split()[0].rstrip("*~")) for text in second[:n]] == figures[::-1]
            assert first[n:] == second[n:] == ["X"] * (5 - n)
    assert columns_as_shown(table_of(driver, written[0].sections[0].tables[0]))[2][-1] == "X"


def test_headers_sort_by_keyboard(opened: "Callable[[str], Chrome]", written):
    driver = opened("")
    table = written[0].sections[0].tables[0]
    shown = table_of(driver, table)
    button = shown.find_elements(By.CSS_SELECTOR, "thead button")[-1]
    driver.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    by_enter = columns_as_shown(shown)[0]
    button.send_keys(Keys.SPACE)
    means = {a: cells[-1].mean for a, cells in table.rows.items() if not cells[-1].is_missing}
    assert by_enter[:4] == sorted(means, key=means.__getitem__, reverse=True)
    assert columns_as_shown(shown)[0] == [*by_enter[3::-1], "IRM"]


def test_what_is_missing_sorts_by_count(opened: "Callable[[str], Chrome]"):
    driver = opened("#/missing")
    table = driver.find_element(By.ID, "/missing").find_element(By.TAG_NAME, "table")
    assert columns_as_shown(table)[:3] == [["ColoredMNIST", "DomainNet"], ["IRM", "ERM"], ["+80%", "clip"]]
    table.find_elements(By.TAG_NAME, "button")[1].click()
    assert columns_as_shown(table)[1] == ["ERM", "IRM"]


def test_the_switch_shows_one_method_and_the_address_keeps_it(opened: "Callable[[str], Chrome]"):
    driver = opened("")
    assert shown_methods(driver) == ["training-domain"]
    driver.find_element(By.CSS_SELECTOR, "input[value='test-domain']").click()
    assert shown_methods(driver) == ["test-domain"]
    assert driver.current_url.endswith("#test-domain")
    driver.refresh()
    assert shown_methods(driver) == ["test-domain"]
    driver = opened("#leave-one-domain-out")
    assert shown_methods(driver) == ["leave-one-domain-out"]
    assert "No table: it needs" in driver.find_element(By.ID, "leave-one-domain-out").text


def test_the_switch_by_keyboard(opened: "Callable[[str], Chrome]"):
    driver = opened("")
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    chosen = driver.switch_to.active_element
    assert (chosen.get_attribute("type"), chosen.get_attribute("value")) == ("radio", "training-domain")
    chosen.send_keys(Keys.ARROW_DOWN)
    assert shown_methods(driver) == ["leave-one-domain-out"]
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert shown_methods(driver) == ["test-domain"]


def test_a_click_on_a_figure_shows_its_runs_and_leads_to_their_folders(opened: "Callable[[str], Chrome]", written):
    report, _ = written
    driver = opened("#test-domain")
    section = report.sections[2]
    for names in (("DomainNet", MINE, "sketch"), ("DomainNet", MINE), ("ColoredMNIST", "IRM", "+80%")):
        target = driver.find_element(By.ID, anchor(section.selection, *names))
        assert not target.is_displayed() or names == ("DomainNet", MINE)
        table = next(t for t in section.tables if t.name == names[0])
        href = "#" + anchor(section.selection, *names)
        link = table_of(driver, table).find_element(By.CSS_SELECTOR, f"a[href='{href}']")
        assert link.text == (table.number(cell := cell_of(table, *names[1:]), "±") + cell.mark)
        link.click()
        WebDriverWait(driver, 5).until(lambda _, target=target: target.is_displayed() and is_in_view(driver, target))
        assert cell.counts in target.text
        best = section.best
        best = best[(best["dataset"] == names[0]) & (best["algorithm"] == names[1])]
        if len(names) == 3:
            best = best[best["test_env"] == list(report.names[names[0]]).index(names[2])]
        folders = [a.get_attribute("href") for a in target.find_elements(By.CSS_SELECTOR, "td a")]
        paths = [Path(unquote(urlsplit(folder).path)) for folder in folders]
        assert paths == [report.sweep.folder / f for f in best["folder"]]
        assert all((path / "results.jsonl").is_file() for path in paths)
    assert "no run to choose from" in target.text
    assert len(paths) == 0


def cell_of(table: Table, algorithm: str, column: str = "Avg"):
    return next(cell for cell in table.rows[algorithm] if cell.column == column)


def is_in_view(driver: "Chrome", element: "WebElement") -> bool:
    return driver.execute_script(
        "const box = arguments[0].getBoundingClientRect(); return box.top >= 0 && box.top < innerHeight", element
    )


def test_a_link_to_a_cell_opens_its_method_and_its_runs(opened: "Callable[[str], Chrome]"):
    driver = opened("#" + anchor("test-domain", "ColoredMNIST", "CORAL", "-90%"))
    assert shown_methods(driver) == ["test-domain"]
    target = driver.find_element(By.ID, anchor("test-domain", "ColoredMNIST", "CORAL", "-90%"))
    assert target.is_displayed()
    assert is_in_view(driver, target)
    other = driver.find_element(By.ID, anchor("test-domain", "DomainNet", "CORAL", "real"))
    assert not other.is_displayed()


def test_a_second_click_unfolds_again(opened: "Callable[[str], Chrome]", written):
    driver = opened("")
    link = table_of(driver, written[0].sections[0].tables[0]).find_element(By.CSS_SELECTOR, "a")
    runs = driver.find_element(By.CSS_SELECTOR, "details.runs")
    for _ in range(2):
        link.click()
        assert runs.get_attribute("open")
        runs.find_element(By.TAG_NAME, "summary").click()
        assert not runs.get_attribute("open")


def test_a_jobs_folder_opens(opened: "Callable[[str], Chrome]", written):
    driver = opened("#" + anchor("training-domain", "ColoredMNIST", "CORAL", "-90%"))
    target = driver.find_element(By.ID, anchor("training-domain", "ColoredMNIST", "CORAL", "-90%"))
    target.find_element(By.CSS_SELECTOR, "td a").click()
    assert "results.jsonl" in driver.find_element(By.TAG_NAME, "body").text
    driver.get_log("browser")  # the listing is the browser's own page, and wants an icon


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_nothing_is_wider_than_the_window(opened: "Callable[[str], Chrome]", width: int):
    driver = opened("")
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        driver.execute_script("for (const folded of document.querySelectorAll('details')) folded.open = true")
        for method in driver.find_elements(By.CSS_SELECTOR, ".switch input"):
            driver.execute_script("arguments[0].click()", method)
            widths = "return [document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
            assert max(driver.execute_script(widths)) == width
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_javascript_everything_is_there(opened: "Callable[[str], Chrome]", browser: "Chrome"):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver = opened("")
        assert len(shown_methods(driver)) == 3
        assert not driver.find_element(By.CLASS_NAME, "switch").is_displayed()
        assert not driver.find_elements(By.TAG_NAME, "button")
        assert all(e.is_displayed() for e in driver.find_elements(By.CSS_SELECTOR, "table.sortable"))
        driver.find_element(By.CSS_SELECTOR, "details.runs summary").click()
        assert driver.find_element(By.CSS_SELECTOR, "section.row").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_print_has_all_methods_and_no_switch(opened: "Callable[[str], Chrome]"):
    driver = opened("")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert len(shown_methods(driver)) == 3
        assert not driver.find_element(By.CLASS_NAME, "switch").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_ink_and_paper_have_contrast_by_day_and_by_night(opened: "Callable[[str], Chrome]"):
    """WCAG's AA: 4.5 to 1 for all text."""
    driver = opened("")
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        paper = luminance(driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
        assert (paper > 0.5) == (scheme == "light")
        for element in ("h1", ".made", ".error", "summary", "caption"):
            ink = luminance(driver.find_element(By.CSS_SELECTOR, element).value_of_css_property("color"))
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(color: str) -> float:
    parts = [int(n) / 255 for n in re.findall(r"\d+", color)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
