"""The HTML page of small sweeps: valid, self-contained, and equal to the report."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes
from xml.etree.ElementTree import Element, TreeBuilder

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from domainbed.reporting import plots
from domainbed.reporting.cells import AVERAGE, AVERAGES, RANK
from domainbed.reporting.formats.base import PACKAGE, anchor
from domainbed.reporting.formats.page import as_html
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import Report, make_report
from tests.conftest import make_record, write_sweep

RENAME = ("Fishr=Fishr (ours)", "ColoredMNIST=C-MNIST", "-90%=anti", "Avg=Mean")
VOID = {"meta", "link", "img", "input", "br"}


@pytest.fixture(autouse=True)
def few_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """With --pictures, draw only two small plots: one that depends on the selection method, and one that does not."""
    if "slow" in request.keywords:
        return

    def draw_plots(sweep, selection, datasets, algorithms, warn, titles, *_) -> Iterator[plots.Plot]:
        for stem, caption in ((f"bars-{selection}", f"Bars of <{selection}>"), ("all", "Of all runs")):
            yield plots.Plot(stem, caption, Figure(figsize=(1, 1)), pd.DataFrame())
        warn("no other plots")

    monkeypatch.setattr(plots, "draw_plots", draw_plots)


class StrictParser(HTMLParser):
    """A parser that builds a tree; elements must be nested correctly and must not repeat an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.tree, self.open = TreeBuilder(), []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute: {attrs}"
        self.tree.start(tag, {name: value or "" for name, value in attrs})
        self.open.append(tag)
        if tag in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"
        self.tree.end(tag)

    def handle_data(self, data):
        if self.open:
            self.tree.data(data)


D3 = (resources.files(PACKAGE) / "vendor" / "d3.min.js").read_text()


def parsed(html: str, has_script: bool = True) -> Element:
    """Return the tree of a page, after checking that it is valid and self-contained.

    Its content security policy must allow its own scripts, and nothing else.
    """
    assert html.startswith("<!DOCTYPE html>\n")
    parser = StrictParser()
    parser.feed(html)
    parser.close()
    assert not parser.open
    root = parser.tree.close()
    ids = [e.get("id") for e in root.iter() if "id" in e.attrib]
    assert len(set(ids)) == len(ids)
    for element in root.iter():
        assert not {name for name in element.attrib if name.startswith("on")}
        assert not element.get("src", "data:").removeprefix("data:").startswith("http")
        assert element.get("src", "data:").startswith("data:")
        href = element.get("href", "")
        assert element.tag == "a" or href in ("", "data:,")
        assert "//" not in href.partition("#")[0], href
        assert not href.startswith("#") or href[1:] in ids, href
        if element.tag == "th":
            assert element.get("scope") in ("col", "row", "rowgroup")
        if element.tag == "table":
            assert text_of(element.find("caption"))
    assert not re.search(r"url\(|@import|https?:", html.replace(D3, ""))
    assert [e.tag for e in root.iter() if e.tag in ("style", "link")] == ["link", "style"]
    scripts = [e for e in root.iter("script") if e.get("type") != "text/plain"]
    assert bool(scripts) == has_script
    digests = [base64.b64encode(hashlib.sha256((e.text or "").encode()).digest()).decode() for e in scripts]
    (policy,) = (e.get("content", "") for e in root.iter("meta") if "http-equiv" in e.attrib)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    assert re.fullmatch(
        rf"default-src 'none'; img-src data:; style-src 'sha256-[^ ]+'; script-src {re.escape(allowed)}", policy
    )
    return root


def text_of(element: Element | None) -> str:
    assert element is not None
    return " ".join("".join(element.itertext()).split())


def elements_of_class(element: Element, name: str) -> list[Element]:
    return [e for e in element.iter() if name in e.get("class", "").split()]


def by_id(root: Element, *names: str) -> Element:
    (found,) = (e for e in root.iter() if e.get("id") == anchor(*names))
    return found


def report_of(folder: Path, **options) -> Report:
    return make_report(load_sweep(str(folder)), ReportOptions(**options))


def sweep_with_gaps(folder: Path) -> Path:
    """Write a sweep with unfinished runs, a cell without runs, and missing trials."""
    records, unfinished = [], []
    for dataset in ("ColoredDigits", "ColoredMNIST"):
        for i, algorithm in enumerate(("ERM", "Fishr")):
            for env, trial in ((e, t) for e in range(3) for t in range(2)):
                inside = (0.3 + trial / 100, 0.5 + i / 20 + env / 10, 0.8 - i / 30)
                record = make_record(dataset, algorithm, (env,), trial, 1, 300, inside, inside)
                record["hparams"] |= {"lr": 1e-3 + trial / 7, "words": ["a", trial], "resnet18": False}
                if (dataset, algorithm, env) == ("ColoredMNIST", "Fishr", 1):
                    continue
                if (algorithm, env, trial) == ("ERM", 2, 1):
                    continue
                (unfinished if (algorithm, env) == ("Fishr", 2) else records).append(record)
    write_sweep(folder, records)
    return write_sweep(folder, unfinished, done=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interval": "bootstrap", "decimals": 3},
        {"compare": "published", "versus": ("Fishr", "ERM")},
        {"compare": "published", "relative_to": "ERM", "rename": RENAME},
    ],
)
def test_every_cell_equals_the_report(tmp_path: Path, options: dict):
    report = report_of(sweep_with_gaps(tmp_path), **options)
    root = parsed(as_html(report, tmp_path))
    compared = marked = 0
    for section in report.sections:
        for table in section.tables:
            printed = by_id(root, section.selection, table.name).find(".//table")
            assert printed is not None
            headers = [text_of(th) for th in printed.findall("thead/tr/th")]
            assert headers == ["Algorithm", *table.headers]
            rows = printed.findall("tbody/tr")
            for row, (algorithm, cells) in zip(rows, table.rows.items(), strict=True):
                header, *printed_cells = row
                assert (header.text or "").strip() == table.titles(algorithm)
                for td, cell in zip(printed_cells, cells, strict=True):
                    (result,) = elements_of_class(td, "result")
                    assert text_of(result) == table.format_result(cell, "±") + cell.mark
                    assert [e.tag for e in result if e.tag in "bu"] == [["b"], ["u"]][cell.place - 1] * (cell.place > 0)
                    assert ("data-value" in td.attrib) != cell.is_missing
                    marked += cell.is_missing + bool(cell.mark)
                    if below := td.findall("small"):
                        assert [text_of(e) for e in below] == [
                            table.format_published(cell, "±"),
                            table.format_difference(cell),
                        ]
                        compared += cell.reference is not None
            shown = text_of(by_id(root, section.selection, table.name))
            assert table.protocol in shown
            for note in table.notes:
                for part in note.split(" ("):
                    assert part.removesuffix(")") in shown
    assert marked > 10
    assert (compared > 10) == ("compare" in options)
    if "rename" in options:
        assert "Fishr (ours) on C-MNIST" in text_of(root)
        assert "Fishr (ours), anti" in text_of(root)
        named = [text_of(e) for e in root.iter() if e.tag in ("th", "h3", "h4", "caption", "label")]
        assert not re.search(r"Fishr(?! \(ours)|ColoredMNIST|-90%", "; ".join(named))
    assert ("Paired comparison" in text_of(root)) == ("versus" in options)
    empty = by_id(root, "leave-one-domain-out")
    assert "No table: this method requires the runs with each pair" in text_of(empty)
    assert not list(empty.iter("table"))


def test_each_result_links_to_its_runs(tmp_path: Path):
    sweep, folder = sweep_with_gaps(tmp_path / "a sweep, 100 % #1?"), tmp_path / "my" / "pages"
    folder.mkdir(parents=True)
    report = report_of(sweep)
    root = parsed(as_html(report, folder))
    parents = {child: parent for parent in root.iter() for child in parent}
    for section in report.sections:
        for table in section.tables:
            for td in by_id(root, section.selection, table.name).findall(".//table")[0].findall("tbody/tr/td"):
                row = list(parents[td])
                column, algorithm = table.columns[row.index(td) - 1], text_of(row[0])
                (cell,) = (c for c in table.rows[algorithm] if c.column == column)
                link = td.find("a")
                assert (link is None) == (column == RANK)
                if link is None:
                    continue
                target = by_id(root, *(unquote(name) for name in link.get("href", "")[1:].split("/")))
                assert link.get("title") == cell.counts
                if table.name == AVERAGES:
                    datasets = list(report.environments) if column == AVERAGE else [column]
                    if column == AVERAGE:
                        targets = [a.get("href") for a in target.iter("a")]
                        assert targets == ["#" + anchor(section.selection, d, algorithm) for d in datasets]
                    continue
                assert cell.counts in text_of(target)
                shared = text_of(by_id(root, section.selection, table.name, algorithm).find("p"))
                best = section.best
                best = best[(best["dataset"] == table.name) & (best["algorithm"] == algorithm)]
                if column != AVERAGE:
                    best = best[best["test_env"] == table.columns.index(column)]
                links = [a for a in target.iter("a") if a.get("href", "").endswith("/")]
                folders = [Path(os.path.normpath(folder / unquote(a.get("href", "")))) for a in links]
                assert folders == [sweep / f for f in best["folder"]]
                assert all((f / "results.jsonl").is_file() for f in folders)
                for a, run in zip(links, best.itertuples(), strict=True):
                    texts = [text_of(e) for e in parents[parents[a]]]
                    assert texts[0] == str(run.trial_seed)
                    assert texts[1:4] == [f"{100 * run.val_acc:.1f}", f"{100 * run.test_acc:.1f}", "300"]
                    assert texts[4] == ("incomplete" if (algorithm, run.test_env) == ("Fishr", 2) else "done")
                    assert texts[6] == "1"
                    assert f"{1e-3 + run.trial_seed / 7:.4g}" in texts or "lr" in shared
                assert links or cell.is_missing


def test_differing_hyperparameters_have_columns(tmp_path: Path):
    root = parsed(as_html(report_of(sweep_with_gaps(tmp_path)), tmp_path))
    row = by_id(root, "training-domain", "ColoredDigits", "Fishr")
    assert "Shared by all selected runs: batch_size 64, resnet18 False." in text_of(row.find("p"))
    assert [text_of(th) for th in row.findall(".//thead/tr/th")][7:] == ["lr", "words"]
    (_, first, second, *_) = row.findall(".//tbody/tr")
    assert [text_of(e) for e in first][7:] == ["0.001", '["a", 0]']
    assert [text_of(e) for e in second][7:] == ["0.1439", '["a", 1]']


HOSTILE = [
    "</script><script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "{{ 7 * 7 }} %41 &amp; 数 ü",
    "a b#c/d",
]


def test_names_are_escaped(tmp_path: Path):
    folder = tmp_path / "<b>sweep</b> & 'co' %41 #1"
    for i, (dataset, algorithm, env) in enumerate((d, a, e) for d in HOSTILE for a in HOSTILE for e in range(3)):
        record = make_record(dataset, algorithm, (env,), 0, 0, 0, (i / 99, 0.5, 0.2), (0.5, 0.5, 0.5))
        record["environments"] = HOSTILE[:3]
        record["hparams"] |= {HOSTILE[0]: HOSTILE[1]}
        job = folder / f"job {i} javascript:alert(1) <&'\"%41#?"
        job.mkdir(parents=True)
        (job / "results.jsonl").write_text(json.dumps(record) + "\n")
    html = as_html(report_of(folder), tmp_path)
    root = parsed(html)
    assert "<script>alert" not in html
    assert text_of(root.find(".//h1")) == folder.name
    for dataset in HOSTILE:
        for algorithm in HOSTILE:
            assert text_of(by_id(root, "test-domain", dataset, algorithm).find("h4")).startswith(algorithm)
            for env in HOSTILE[:3]:
                (link,) = (
                    a.get("href", "")
                    for a in by_id(root, "test-domain", dataset, algorithm, env).iter("a")
                    if not a.get("href", "").startswith("#")
                )
                assert (tmp_path / unquote(link) / "results.jsonl").is_file()
    assert f"{HOSTILE[0]} {HOSTILE[1]}" in text_of(root)


def test_folder_name_that_is_not_utf8(tmp_path: Path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sweep\xff"))
    html = as_html(report_of(write_sweep(folder, [make_record(test_envs=(e,)) for e in range(3)])), tmp_path)
    links = {a.get("href", "") for a in parsed(html).iter("a") if a.get("href", "").startswith("sweep")}
    assert len(links) == 3
    assert all(os.path.isdir(os.fsencode(tmp_path) + b"/" + unquote_to_bytes(link)) for link in links)
    html.encode()


def test_missing_runs(tmp_path: Path):
    report = report_of(sweep_with_gaps(tmp_path))
    (section,) = (e for e in parsed(as_html(report, tmp_path)).iter("section") if e.get("id") == "/missing")
    headers, *rows = [[text_of(cell) for cell in row] for row in section.iter("tr")]
    assert headers == ["Dataset", "Algorithm", "Environment", "requested", "done", "incomplete", "not launched"]
    assert rows == [
        ["ColoredDigits", "ERM", "-90%", "2", "1", "0", "1"],
        ["ColoredDigits", "Fishr", "-90%", "2", "0", "2", "0"],
        ["ColoredMNIST", "ERM", "-90%", "2", "1", "0", "1"],
        ["ColoredMNIST", "Fishr", "+80%", "2", "0", "0", "2"],
        ["ColoredMNIST", "Fishr", "-90%", "2", "0", "2", "0"],
    ]


def test_missing_pairs_are_listed_by_the_method_that_needs_them(tmp_path: Path):
    sets = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    accuracies = (0.5, 0.6, 0.7)
    records = [make_record("ColoredDigits", a, s, 0, 0, 0, accuracies) for a in ("ERM", "IRM") for s in sets]
    sweep = write_sweep(tmp_path, records[:-1])
    (section,) = (e for e in parsed(as_html(report_of(sweep), tmp_path)).iter("section") if e.get("id") == "/missing")
    _, *rows = section.iter("tr")
    assert [[text_of(cell) for cell in row] for row in rows] == [
        ["ColoredDigits", "IRM", "+80%", "3", "2", "1"],
        ["ColoredDigits", "IRM", "-90%", "3", "2", "1"],
    ]
    assert all(a.get("href", "").startswith("#leave-one-domain-out/ColoredDigits/IRM/") for a in section.iter("a"))


def test_no_missing_runs(tmp_path: Path):
    sweep = write_sweep(tmp_path, [make_record(test_envs=(e,)) for e in range(3)])
    (section,) = (e for e in parsed(as_html(report_of(sweep), tmp_path)).iter("section") if e.get("id") == "/missing")
    assert text_of(section) == "Missing runs No runs are missing."


def test_pairs_alone_give_no_table(tmp_path: Path):
    report = report_of(write_sweep(tmp_path, [make_record(test_envs=(0, 1))]))
    shown = text_of(parsed(as_html(report, tmp_path)))
    assert shown.count("No table: this method requires") == 3
    assert f"No runs are missing from these tables, but the sweep is not finished: {report.progress}." in shown


@pytest.mark.parametrize("n", [3, 30])
def test_long_lists_of_warnings_are_collapsed(tmp_path: Path, n: int):
    write_sweep(tmp_path, [make_record(test_envs=(e,), trial_seed=t) for e in range(3) for t in range(n // 3)])
    for results in tmp_path.glob("*/results.jsonl"):
        results.write_text(results.read_text() + "<torn")
    report = report_of(tmp_path)
    assert len(report.sweep.problems) == n
    root = parsed(as_html(report, tmp_path))
    (notes,) = (e for e in root.iter("section") if e.get("id") == "/notes")
    items = [text_of(e) for e in notes.iter("li")]
    assert set(report.notes + report.sweep.problems) == set(items)
    assert len(notes.findall("details")) == (n > 20)


def test_shared_plots_appear_once(tmp_path: Path):
    root = parsed(as_html(report_of(sweep_with_gaps(tmp_path), pictures=True), tmp_path))
    captions = [img.get("alt") for img in root.iter("img")]
    assert captions == ["Bars of <training-domain>", "Bars of <test-domain>", "Of all runs"]
    assert all(img.get("src", "").startswith("data:image/png;base64,iVBOR") for img in root.iter("img"))
    assert text_of(root).count("no other plots") == 1


def test_pictures_are_drawn_on_request_only(tmp_path: Path):
    root = parsed(as_html(report_of(sweep_with_gaps(tmp_path)), tmp_path))
    assert not list(root.iter("img"))
    assert "no other plots" not in text_of(root)


@pytest.mark.slow
def test_page_contains_real_plots(tmp_path: Path):
    records = [make_record(test_envs=(e,), trial_seed=t, step=s) for e in range(3) for t in range(2) for s in (0, 100)]
    root = parsed(as_html(report_of(write_sweep(tmp_path, records), pictures=True), tmp_path))
    images = list(root.iter("img"))
    assert len(images) > 5
    for img in images:
        content = base64.b64decode(img.get("src", "").removeprefix("data:image/png;base64,"))
        with Image.open(BytesIO(content)) as image:
            assert image.size == (int(img.get("width", "")), int(img.get("height", "")))
    captions = [img.get("alt") for img in images]
    assert all(captions)
    assert len(set(captions)) == len(captions)
