"""The report as one page that needs nothing else: tables that sort, each figure's runs, what is missing, plots."""

import base64
import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from tqdm import tqdm

from domainbed import __version__
from domainbed.reporting.cells import AVERAGE, RANK
from domainbed.reporting.layout import AVERAGES, Cell, Table, printed
from domainbed.reporting.report import Report, Section, versus_rows
from domainbed.sweep.status import JobState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of the plots, whose 5.5 inches are shown some 450 pixels wide, on screens that may have twice as many. So few colours
# make them a fourth of the size, and one does not see it.
DPI = 150
COLORS = 128


class Run(NamedTuple):
    """A run that was chosen for a cell, as the page prints it; `link` leads from the page to the job's folder."""

    trial_seed: int
    hparams_seed: int
    step: int
    validation: str
    test: str
    hparams: list[str]
    state: str
    folder: str
    link: str


@dataclass(frozen=True)
class Runs:
    """The runs behind one algorithm's row of one dataset's table.

    Attributes:
        cells: the row's; their counts are told, too.
        varied: the names of the hyperparameters that differ between these runs; each run has their values.
        same: the others.
        of: the runs of each environment, a run a trial.
    """

    cells: list[Cell]
    varied: list[str]
    same: dict[str, str]
    of: dict[str, list[Run]]


class Picture(NamedTuple):
    """A plot: its caption, the image as an address that holds all of it, and its size in pixels."""

    caption: str
    address: str
    width: int
    height: int


def page(report: Report, folder: Path) -> str:
    """The report as HTML; `folder` is where the page will lie, from which it links to the jobs."""
    environment = Environment(
        loader=PackageLoader("domainbed.reporting.formats", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["anchor"] = anchor
    missing = _missing(report)
    pictures, common_pictures, not_drawn = _pictures(report)
    style, script = _file("page.css"), _file("page.js")
    html = environment.get_template("page.html").render(
        report=report,
        name=Path(os.path.abspath(report.sweep.folder)).name,
        path=os.path.abspath(report.sweep.folder),
        made=datetime.now().astimezone(),
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        runs={section.selection: _all_runs(report, section, folder) for section in report.sections},
        missing=missing,
        states=[s.value for s in reversed(JobState) if any(cell.states[s.value] for *_, cell in missing)],
        is_all_done=bool((report.sweep.runs["state"] == JobState.DONE).all()),
        pictures=pictures,
        common_pictures=common_pictures,
        not_drawn=not_drawn,
        versus_rows=versus_rows,
        AVERAGES=AVERAGES,
        AVERAGE=AVERAGE,
        RANK=RANK,
    )
    # A folder's name need not be UTF-8, which a page is; its links are right all the same.
    return html.encode(errors="replace").decode()


def anchor(*names: str) -> str:
    """The id of what has these names, one within another: the same names have the same id, others have others.

    It holds nothing that means something in HTML or in an address, and is both an id and a link's fragment.
    """
    return "/".join(quote(os.fsencode(name), safe="") for name in names)


def _file(name: str) -> str:
    return (resources.files("domainbed.reporting.formats") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """By which the page's policy knows its own style and script, and lets no others in."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _all_runs(report: Report, section: Section, folder: Path) -> dict[str, dict[str, Runs]]:
    """For each dataset and algorithm of a section what is behind its figures."""
    states = dict(zip(report.sweep.runs["folder"], report.sweep.runs["state"], strict=True))
    tables = [table for table in section.tables if table.name != AVERAGES]
    return {
        table.name: {algorithm: _runs(report, section, table, algorithm, states, folder) for algorithm in table.rows}
        for table in tables
    }


def _runs(
    report: Report, section: Section, table: Table, algorithm: str, states: dict[str, JobState], folder: Path
) -> Runs:
    best = section.best[(section.best["dataset"] == table.name) & (section.best["algorithm"] == algorithm)]
    hparams = report.sweep.hparams(best["folder"]).map(_value).to_dict("records")
    names = [str(name) for name in hparams[0]] if hparams else []
    varied = [name for name in names if len({of_run[name] for of_run in hparams}) > 1]
    environments = report.names[table.name]
    runs: dict[str, list[Run]] = {environment: [] for environment in environments}
    for row, of_run in zip(best.to_dict("records"), hparams, strict=True):
        path = os.path.relpath(report.sweep.folder / row["folder"], folder)
        run = Run(
            row["trial_seed"],
            row["hparams_seed"],
            row["step"],
            printed(100 * row["val_acc"], report.wanted.decimals),
            printed(100 * row["test_acc"], report.wanted.decimals),
            [of_run[name] for name in varied],
            states[row["folder"]].value,
            row["folder"],
            quote(os.fsencode(path)) + "/",
        )
        runs[environments[row["test_env"]]].append(run)
    return Runs(table.rows[algorithm], varied, {name: hparams[0][name] for name in names if name not in varied}, runs)


def _value(value: Any) -> str:
    """A hyperparameter's value in short; NaN stands for one that this run does not have, but another has."""
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.4g}" if value % 1 and abs(value) < 10_000 else f"{value:.0f}"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _missing(report: Report) -> list[tuple[str, str, Cell]]:
    """The cells whose runs are not all done: the selection and the dataset of the table that it stands in, the cell.

    Of a cell that several selections have, the one that needs the most runs.
    """
    cells: dict[tuple[str, str, str], tuple[str, str, Cell]] = {}
    for section in report.sections:
        for table in section.tables:
            for cell in table.cells if table.name != AVERAGES else ():
                key = (table.name, cell.algorithm, cell.column)
                if cell.column != AVERAGE and (key not in cells or cell.asked > cells[key][2].asked):
                    cells[key] = section.selection, table.name, cell
    return [found for found in cells.values() if found[2].done < found[2].asked]


def _pictures(report: Report) -> tuple[dict[str, list[Picture]], list[Picture], list[str]]:
    """The plots of each selection, those that all selections share, and what could not be drawn."""
    from domainbed.reporting import plots  # brings matplotlib, which the other formats do without

    def picture(caption: str, figure: "Figure") -> Picture:
        file, smaller = BytesIO(), BytesIO()
        plots.write(figure, file, "png", DPI)
        with Image.open(file) as image:
            image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(smaller, "png", optimize=True)
        address = f"data:image/png;base64,{base64.b64encode(smaller.getvalue()).decode()}"
        return Picture(caption, address, *image.size)

    drawn: dict[tuple[str, str], Picture] = {}  # by stem and caption, which together are of one plot alone
    names: dict[str, list[tuple[str, str]]] = {}
    not_drawn: list[str] = []
    for section in report.sections:
        names[section.selection] = []
        if section.why_empty:
            continue
        figures = plots.all_figures(
            report.sweep, section.selection, list(report.names), report.algorithms, tell=not_drawn.append
        )
        for stem, caption, figure in tqdm(figures, f"plots, {section.selection}", unit=" plots", disable=None):
            names[section.selection].append((stem, caption))
            if (stem, caption) not in drawn:
                drawn[stem, caption] = picture(caption, figure)
    counts = Counter(name for of_section in names.values() for name in of_section)
    common = [drawn[name] for name, n in counts.items() if n > 1]
    own = {selection: [drawn[name] for name in those if counts[name] == 1] for selection, those in names.items()}
    return own, common, list(dict.fromkeys(not_drawn))
