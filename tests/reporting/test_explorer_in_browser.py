"""The explorer of the HTML page in a real browser: filters, pointer, keyboard, brushes, print, phone, dark mode."""

import base64
import random
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from domainbed.reporting.formats.base import anchor
from domainbed.reporting.formats.page import as_html
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import Report, make_report
from tests.conftest import make_record, write_sweep
from tests.reporting.test_page_in_browser import HOSTILE, UNAVAILABLE, browser, luminance, pytestmark  # noqa: F401

if not UNAVAILABLE:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

ALGORITHMS = ("ERM", "Fishr", HOSTILE)
VIEWS = ("overview", "scatter", "hparams", "parallel", "curves")


# Random clicks, choices, keys and moves of the pointer, from a seed.
RANDOM_ACTIONS = """
let seed = arguments[0];
const random = (n) => Math.floor(n * ((seed = (seed * 1103515245 + 12345) % 2 ** 31) / 2 ** 31));
const pick = (items) => items[random(items.length)];
const all = (selector) => [...document.querySelectorAll(`.explorer ${selector}`)];
const keys = "ArrowUp ArrowDown ArrowLeft ArrowRight Home End PageUp PageDown Escape Enter".split(" ");
const press = (target) => target.dispatchEvent(new KeyboardEvent("keydown", { bubbles: true, key: pick(keys) }));
for (let i = 0; i < arguments[1]; i++) {
  pick([...all("[name=view]"), ...all(".checks input, .legend button")]).click();
  const select = pick(all("select"));
  select.selectedIndex = random(select.options.length);
  select.dispatchEvent(new Event("change", { bubbles: true }));
  for (const target of all(".plot, .limit").filter(() => random(2))) {
    target.focus();
    d3.range(4).forEach(() => press(target));
    const { left, top, width, height } = target.getBoundingClientRect();
    const place = { clientX: left + random(width), clientY: top + random(height) };
    target.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, ...place }));
    document.querySelector("dialog").close();
  }
}
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Return the report of a sweep with random accuracies and hyperparameters, and its page."""
    folder = tmp_path_factory.mktemp("sweep")
    rng = random.Random(0)
    records = []
    for dataset, n in (("ColoredMNIST", 3), ("PACS", 4)):
        for algorithm in ALGORITHMS:
            for env, trial, draw in ((e, t, d) for e in range(n) for t in range(2) for d in range(5)):
                hparams = {
                    "lr": 10 ** rng.uniform(-5, -2),
                    "batch_size": rng.randrange(8, 64),
                    HOSTILE: f"{HOSTILE} {draw}",
                }
                for step in (0, 100, 200):
                    splits = [tuple(rng.uniform(0.05, 0.95) for _ in range(n)) for _ in range(2)]
                    record = make_record(dataset, algorithm, (env,), trial, draw, step, *splits)
                    record |= {"hparams": hparams, "loss": 10 ** rng.uniform(-3, 2)}
                    # On PACS, one algorithm has no loss, and another one none at the step between.
                    if dataset == "PACS" and (algorithm == HOSTILE or (algorithm, step) == ("ERM", 100)):
                        del record["loss"]
                    records.append(record)
    report = make_report(load_sweep(str(write_sweep(folder, records))), ReportOptions())
    file = tmp_path_factory.mktemp("pages") / "page.html"
    file.write_text(as_html(report, file.parent))
    return report, file


@pytest.fixture
def page(browser: "Chrome", written: tuple[Report, Path]) -> "Iterator[Chrome]":  # noqa: F811
    """Open the page at its explorer; afterwards, check that nothing was logged."""
    browser.get_log("browser")
    browser.get("about:blank")
    browser.get(written[1].as_uri() + "#/explore")
    ready = "return performance.getEntriesByName('explorer-ready').length"
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(ready))
    yield browser
    assert browser.get_log("browser") == []


def find(driver: "Chrome", selector: str) -> "WebElement":
    return driver.find_element(By.CSS_SELECTOR, f".explorer {selector}")


def text(driver: "Chrome", selector: str) -> str:
    return driver.execute_script("return arguments[0].textContent", find(driver, selector))


def choose(driver: "Chrome", name: str, option: str) -> None:
    find(driver, f"[name={name}]").find_element(By.XPATH, f"option[.='{option}']").click()


def show(driver: "Chrome", view: str) -> None:
    driver.execute_script("arguments[0].click()", find(driver, f"[name=view][value={view}]"))


def press(driver: "Chrome", *keys: str) -> None:
    for key in keys:
        ActionChains(driver).send_keys(key).perform()


def notes(driver: "Chrome") -> list[str]:
    return [e.text for e in driver.find_elements(By.CSS_SELECTOR, ".explorer figcaption")]


def test_filters_change_the_points(page: "Chrome"):
    assert text(page, ".summary") == "90 runs on ColoredMNIST, each at the step selected by training-domain."
    assert [note.partition(" runs")[0] for note in notes(page)] == [f"test: {e} 30" for e in ("+90%", "+80%", "-90%")]
    pixels = find(page, "canvas").screenshot_as_png
    page.execute_script("arguments[0].focus()", find(page, ".algorithms .chip:nth-child(2) .only"))
    press(page, Keys.ENTER)
    assert text(page, ".summary").startswith("30 runs ")
    assert page.switch_to.active_element == find(page, ".algorithms .chip:nth-child(2) .only"), "focus stays"
    assert find(page, "canvas").screenshot_as_png != pixels
    find(page, ".environments .chip:nth-child(2) input").click()
    assert text(page, ".summary").startswith("20 runs ")
    assert len(notes(page)) == 2
    assert page.switch_to.active_element == find(page, ".environments .chip:nth-child(2) input"), "focus stays"
    choose(page, "which", "best of each trial")
    assert text(page, ".summary").startswith("4 runs ")
    choose(page, "selection", "test-domain")
    assert text(page, ".summary").endswith("at the step selected by test-domain.")
    shown = [e for e in page.find_elements(By.CSS_SELECTOR, "section.method") if e.is_displayed()]
    assert [e.get_attribute("id") for e in shown] == ["test-domain"], "the tables follow"
    choose(page, "dataset", "PACS")
    assert text(page, ".summary").startswith("24 runs on PACS"), "all algorithms and environments"
    show(page, "scatter")
    choose(page, "quantity", "loss")
    assert "↑ loss" in text(page, ".panel svg")
    assert HOSTILE in text(page, ".algorithms")


def test_runs_and_records_without_a_value_are_not_hidden(page: "Chrome"):
    choose(page, "dataset", "PACS")
    show(page, "scatter")
    assert text(page, ".summary") == "120 runs on PACS, each at the step selected by training-domain."
    choose(page, "quantity", "loss")
    found = re.fullmatch(r"120 runs on PACS, .* Of these, (\d+) have no loss\.", text(page, ".summary"))
    assert found, (text(page, ".summary"), notes(page))
    missing = int(found[1])
    assert 40 <= missing < 80, "one algorithm, and runs of another with step 100 selected"
    counts = [re.search(r"(\d+) runs, (\d+) without a value", note) for note in notes(page)]
    assert [int(count[1]) + int(count[2]) for count in counts] == [30] * 4
    assert sum(int(count[2]) for count in counts) == missing
    page.execute_script(
        "window.gaps = 0; const set = CanvasRenderingContext2D.prototype.setLineDash;"
        "CanvasRenderingContext2D.prototype.setLineDash = function (dash) {"
        "  window.gaps += String(dash) === '1,4'; set.call(this, dash); }"
    )
    show(page, "curves")
    gaps = page.execute_script("return window.gaps")
    assert gaps
    assert gaps % 8 == 0, "one in the best run of ERM in each trial, per drawing"
    choose(page, "quantity", "Test accuracy")
    assert page.execute_script("return window.gaps") == gaps


def test_pointer_and_keyboard_reach_runs(page: "Chrome", written: tuple[Report, Path]):
    """The leftmost point of the first chart is that of the run with the lowest in-domain accuracy."""
    report, _ = written
    selected = report.sweep.select("training-domain")
    runs = selected[(selected["dataset"] == "ColoredMNIST") & (selected["test_env"] == 0)].sort_values("val_acc")
    first, second = (row for _, row in runs.iloc[:2].iterrows())
    show(page, "scatter")
    find(page, "[name=which]").send_keys(Keys.TAB)
    while page.switch_to.active_element != find(page, ".plot"):  # past the legends
        assert page.switch_to.active_element.tag_name in ("input", "button")
        press(page, Keys.TAB)
    press(page, Keys.HOME)
    announced = text(page, ".announcement")
    assert announced.startswith(f"{first['algorithm']}, test environment +90%; Trial {first['trial_seed']}")
    assert f"Test accuracy {100 * first['test_acc']:.2f}; In-domain accuracy {100 * first['val_acc']:.2f}" in announced
    hparams = report.sweep.load_hparams([first["folder"]]).iloc[0]
    assert f"batch_size {hparams['batch_size']}" in announced
    ring = find(page, ".highlight circle").rect
    assert find(page, ".tooltip").is_displayed()
    press(page, Keys.ESCAPE)
    assert not find(page, ".tooltip").is_displayed()

    origin = find(page, ".plot")
    center = origin.rect["x"] + origin.rect["width"] / 2, origin.rect["y"] + origin.rect["height"] / 2
    x, y = ring["x"] + ring["width"] / 2 - center[0], ring["y"] + ring["height"] / 2 - center[1]
    ActionChains(page).move_to_element_with_offset(origin, round(x), round(y)).perform()
    shown = find(page, ".tooltip").text
    assert f"step {first['step']}" in shown
    assert f"batch_size\n{hparams['batch_size']}" in shown
    assert first["folder"][:9] in shown

    page.execute_script("arguments[0].focus()", origin)
    press(page, Keys.HOME, Keys.ARROW_RIGHT, Keys.ENTER)
    dialog = find(page, "dialog")
    assert dialog.find_element(By.TAG_NAME, "h3").text == f"{second['algorithm']}, test environment +90%"
    assert f"circles: the checkpoint at step {second['step']}" in dialog.text
    assert dialog.find_element(By.CSS_SELECTOR, ".path a").text == second["folder"]
    assert len(dialog.find_elements(By.TAG_NAME, "canvas")) >= 2, "accuracies and loss"
    press(page, Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert page.switch_to.active_element == origin
    press(page, Keys.ARROW_LEFT)
    assert text(page, ".announcement") == announced, "the keyboard continues at the run"
    press(page, Keys.PAGE_DOWN, Keys.HOME)
    assert "test environment +80%" in text(page, ".announcement")


def test_brushes_select_runs(page: "Chrome"):
    show(page, "parallel")
    handle = find(page, "[aria-label='Test accuracy (%), lower limit']")
    page.execute_script("arguments[0].focus()", handle)
    press(page, *[Keys.PAGE_UP] * 5)
    by_keyboard = re.match(r"(\d+) of 90 runs within the brushes", text(page, ".summary"))
    assert by_keyboard
    assert 0 < int(by_keyboard[1]) < 90
    assert find(page, "[aria-label='Test accuracy (%), lower limit']").get_attribute("aria-valuenow") == "50"
    page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", find(page, ".plot"))
    axis = page.find_elements(By.CSS_SELECTOR, ".brush .overlay")[3]  # after algorithm, test environment, batch_size
    chain = ActionChains(page).move_to_element_with_offset(axis, 0, -120).click_and_hold().move_by_offset(0, 120)
    chain.release().perform()
    both = re.match(r"(\d+) of 90 runs", text(page, ".summary"))
    assert both
    assert int(both[1]) < int(by_keyboard[1])
    for i in range(len(ALGORITHMS)):
        find(page, f".algorithms .chip:nth-child({i + 1}) input").click()
    assert text(page, ".summary") == "No runs of ColoredMNIST match."
    find(page, ".algorithms .all").click()
    assert text(page, ".summary").startswith(both[0]), "brushes are kept"
    find(page, "button.clear").click()
    assert text(page, ".summary").startswith("90 runs on ColoredMNIST")


def test_random_actions_cause_no_error(page: "Chrome"):
    for seed in range(3):
        page.execute_script(RANDOM_ACTIONS, seed, 30)  # the fixture checks that nothing is logged
    for name in ("algorithms", "environments"):
        button = find(page, f".{name} .all")
        page.execute_script("arguments[0].click()", button)
    choose(page, "which", "all")
    assert re.match(r"\d+ runs on |\d+ of \d+ runs within", text(page, ".summary"))


def test_runs_of_the_tables_have_curves(page: "Chrome", written: tuple[Report, Path]):
    page.execute_script("document.querySelectorAll('section:not([hidden]) > section > details.runs')[1].open = true")
    WebDriverWait(page, 10).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "button.curves"))
    button = page.find_element(By.CSS_SELECTOR, "button.curves")
    folder = button.find_element(By.XPATH, "preceding-sibling::a").get_attribute("title")
    page.execute_script("arguments[0].click()", button)
    dialog = find(page, "dialog")
    assert dialog.find_element(By.TAG_NAME, "h3").text == "ERM, test environment A"
    assert dialog.find_element(By.CSS_SELECTOR, ".path a").text == folder
    assert written[0].sweep.jobs.at[folder, "dataset"] == "PACS"
    press(page, Keys.ESCAPE)
    link = page.find_element(By.XPATH, f"//section[@id='{anchor('training-domain', 'PACS', 'Fishr')}']/h4/a[2]")
    page.execute_script("arguments[0].click()", link)
    assert text(page, ".summary").startswith("40 runs on PACS")


def test_phone_and_print_and_dark_mode(page: "Chrome"):
    """All views fit a phone; a dark page is printed on white paper, and is dark again afterwards."""
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.execute_script(
            "window.color = () => getComputedStyle(document.querySelector('.swatch path')).fill; before = color();"
            "addEventListener('beforeprint', () => { printed = color(); })"
        )
        for view in VIEWS:
            show(page, view)
            widths = "return [document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
            assert max(page.execute_script(widths)) == 390, view
            page.execute_script("arguments[0].scrollIntoView()", find(page, ".plot"))
            with Image.open(BytesIO(find(page, ".plot").screenshot_as_png)) as image:
                assert np.asarray(image.convert("L")).mean() < 70, view
        pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
        assert pdf.startswith(b"%PDF")
        before, printed, after = page.execute_script("return [before, printed, color()]")
        assert luminance(printed) < luminance(before) == luminance(after)
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
