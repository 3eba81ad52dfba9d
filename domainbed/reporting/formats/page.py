"""A report as one self-contained HTML page: sortable tables, the runs behind each result, missing runs, and plots."""

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from PIL import Image

from domainbed.reporting.cells import AVERAGE, AVERAGES, RANK, RELATIVE, SUMMARIES, Cell
from domainbed.reporting.formats.base import PACKAGE, Picture, data_url, render_page
from domainbed.reporting.formats.explorer import explorer_data
from domainbed.reporting.layout import Table, format_number
from domainbed.reporting.plot_kinds import all_kinds
from domainbed.reporting.plots.style import COLORS
from domainbed.reporting.report import Report, Section
from domainbed.reporting.text_tables import comparison_table, report_findings, section_findings
from domainbed.sweep.status import FINISHED, JobState
from domainbed.terminal import ProgressBar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The page shows plots of 5.5 inches about 450 pixels wide, on screens with up to two device pixels each. The reduced
# palette makes the files a quarter of the size, with no visible difference.
DPI = 150
PALETTE_SIZE = 128

D3 = "vendor/d3.min.js"
# In this order: each uses the ones before it.
EXPLORER_SCRIPTS = (
    "decode",
    "runs",
    "axes",
    "colors",
    "marks",
    "panel",
    "views",
    "parallel",
    "details",
    "controls",
    "navigator",
    "links",
    "explorer",
)


class SelectedRun(NamedTuple):
    """A selected run, as text for the page.

    Attributes:
        hparams: the values of `SelectedRuns.varying`.
        link: the relative address of the job's folder.
    """

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
class SelectedRuns:
    """The runs behind a row of a dataset's table.

    Attributes:
        cells: the row's cells of environments, and that of their average.
        varying: the names of the hyperparameters that differ between the runs.
        shared: the other hyperparameters.
        by_environment: the runs by test environment, one per trial.
    """

    cells: list[Cell]
    varying: list[str]
    shared: dict[str, str]
    by_environment: dict[str, list[SelectedRun]]


def as_html(report: Report, folder: Path) -> str:
    """Return the page. It links to the jobs relative to `folder`, the folder that it will be written to."""
    missing = _missing_cells(report)
    explorer = explorer_data(report, folder)
    kinds = all_kinds() if report.options.pictures else ["ranks"] if report.options.significance else []
    pictures, common_pictures, not_drawn = _draw(report, kinds) if kinds else ({}, [], [])
    values = {
        "report": report,
        "runs": {section.selection: _selected_runs(report, section, folder) for section in report.sections},
        "missing": missing,
        "states": [state for state in reversed(JobState) if any(cell.runs[state] for cell in missing)],
        "n_pruned": int((report.sweep.runs["state"] == JobState.PRUNED).sum()),
        "is_all_done": bool(report.sweep.runs["state"].isin(FINISHED).all()),
        "explorer": explorer,
        "palette": COLORS,
        "pictures": pictures,
        "common_pictures": common_pictures,
        "not_drawn": not_drawn,
        "title": report.titles,
        "comparison_table": comparison_table,
        "section_findings": section_findings,
        "report_findings": report_findings,
        "AVERAGES": AVERAGES,
        "AVERAGE": AVERAGE,
        "SUMMARIES": SUMMARIES,
        "RELATIVE": RELATIVE,
        "RANK": RANK,
    }
    path = os.path.abspath(report.sweep.folder)
    styles, scripts = ["page.css"], ["page.js"]
    if explorer:
        styles.append("explorer.css")
        scripts = [D3, "page.js", *(f"explorer/{name}.js" for name in EXPLORER_SCRIPTS)]
    return render_page(PACKAGE, "page.html", Path(path).name, path, report.progress, values, styles, scripts)


def _selected_runs(report: Report, section: Section, folder: Path) -> dict[str, dict[str, SelectedRuns]]:
    """Return the runs behind a section's tables, by dataset and algorithm."""
    states = dict(zip(report.sweep.runs["folder"], report.sweep.runs["state"], strict=True))
    return {
        table.name: {
            algorithm: _row_runs(report, section, table, algorithm, states, folder) for algorithm in table.rows
        }
        for table in section.tables
        if table.name != AVERAGES
    }


def _row_runs(
    report: Report, section: Section, table: Table, algorithm: str, states: dict[str, JobState], folder: Path
) -> SelectedRuns:
    best = section.best[(section.best["dataset"] == table.name) & (section.best["algorithm"] == algorithm)]
    hparams = report.sweep.load_hparams(best["folder"]).map(_format_hparam).to_dict("records")
    names = [str(name) for name in hparams[0]] if hparams else []
    varying = [name for name in names if len({values[name] for values in hparams}) > 1]
    environments = report.environments[table.name]
    runs: dict[str, list[SelectedRun]] = {environment: [] for environment in environments}
    for row, values in zip(best.to_dict("records"), hparams, strict=True):
        path = os.path.relpath(report.sweep.folder / row["folder"], folder)
        run = SelectedRun(
            row["trial_seed"],
            row["hparams_seed"],
            row["step"],
            validation=format_number(100 * row["val_acc"], report.options.decimals),
            test=format_number(100 * row["test_acc"], report.options.decimals),
            hparams=[values[name] for name in varying],
            state=states[row["folder"]].value,
            folder=row["folder"],
            link=quote(os.fsencode(path)) + "/",
        )
        runs[environments[row["test_env"]]].append(run)
    shared = {name: hparams[0][name] for name in names if name not in varying}
    cells = [cell for cell in table.rows[algorithm] if cell.column != RELATIVE]
    return SelectedRuns(cells, varying, shared, runs)


def _format_hparam(value: Any) -> str:
    """Return a hyperparameter's value as short text; NaN stands for one that only other runs have."""
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.4g}" if (value % 1 and abs(value) < 10_000) or abs(value) >= 1e15 else f"{value:.0f}"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _missing_cells(report: Report) -> list[Cell]:
    """Return the cells with unfinished or pruned runs, each from the method that requires the most runs for it."""
    cells: dict[tuple[str, str, str], Cell] = {}
    for table in (table for section in report.sections for table in section.tables if table.name != AVERAGES):
        for cell in table.cells:
            key = (cell.table, cell.algorithm, cell.column)
            if cell.column not in SUMMARIES and (key not in cells or cell.runs_requested > cells[key].runs_requested):
                cells[key] = cell
    return [cell for cell in cells.values() if cell.runs_done < cell.runs_requested]


def _draw(report: Report, kinds: Collection[str]) -> tuple[dict[str, list[Picture]], list[Picture], list[str]]:
    """Draw these kinds of plots.

    Returns:
        The plots of each selection method, the plots that several share, and what could not be drawn.
    """
    from domainbed.reporting import plots  # imports matplotlib, which the other formats do not need

    def picture(caption: str, figure: "Figure") -> Picture:
        file, reduced = BytesIO(), BytesIO()
        plots.write_figure(figure, file, "png", DPI)
        with Image.open(file) as image:
            image.convert("RGB").quantize(PALETTE_SIZE, dither=Image.Dither.NONE).save(reduced, "png", optimize=True)
        return Picture(caption, data_url(reduced.getvalue(), "png"), *image.size)

    drawn: dict[tuple[str, str], Picture] = {}  # by stem and caption, which together identify a plot
    keys: dict[str, list[tuple[str, str]]] = {section.selection: [] for section in report.sections}
    not_drawn: list[str] = []
    for selection in (section.selection for section in report.sections if not section.why_empty):
        section_plots = plots.draw_plots(
            *(report.sweep, selection, list(report.environments), report.algorithms, not_drawn.append, report.titles),
            *(report.options.baseline, kinds),
        )
        for stem, caption, figure, _ in ProgressBar(section_plots, f"plots, {selection}", unit=" plots"):
            keys[selection].append((stem, caption))
            if (stem, caption) not in drawn:
                drawn[stem, caption] = picture(caption, figure)
    counts = Counter(itertools.chain.from_iterable(keys.values()))
    common = [drawn[key] for key, n in counts.items() if n > 1]
    own = {selection: [drawn[key] for key in plotted if counts[key] == 1] for selection, plotted in keys.items()}
    return own, common, list(dict.fromkeys(not_drawn))
