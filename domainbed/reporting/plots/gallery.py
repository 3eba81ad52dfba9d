"""All plots of a sweep."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from domainbed.files import atomic_write
from domainbed.model_selection import resolve_method
from domainbed.reporting.frames import to_csv
from domainbed.reporting.load import Sweep
from domainbed.reporting.plot_kinds import all_kinds
from domainbed.reporting.plots.style import DPI, FORMATS, save_figure
from domainbed.reporting.plots.sweep_plots import SweepPlots
from domainbed.reporting.titles import Titles


class Plot(NamedTuple):
    """A plot of a sweep.

    Attributes:
        stem: the stem of its file name, unique among the plots of a call.
        caption: what it shows, as sentences.
        figure: the figure.
        data: the data that it shows, one row per bar, point or rank, with the printed names.
    """

    stem: str
    caption: str
    figure: Figure
    data: pd.DataFrame


def draw_plots(
    sweep: Sweep,
    selection: str,
    datasets: Sequence[str],
    algorithms: Sequence[str],
    warn: Callable[[str], object] = print,
    titles: Titles | None = None,
    baseline: str = "ERM",
    kinds: Collection[str] = (),
) -> Iterator[Plot]:
    """Plot these datasets and algorithms, one figure at a time.

    Args:
        selection: the selection method, or the name of its class in DomainBed.
        warn: called with a message for each plot that cannot be drawn.
        titles: the printed names of algorithms, datasets and environments.
        baseline: the algorithm whose line the kind "line" draws, if the sweep has it.
        kinds: the kinds of plots (`plot_kinds.all_kinds`); empty for all.

    Raises:
        UsageError: the selection method is unknown.
    """
    stems: set[str] = set()
    plots = SweepPlots(
        *(sweep, resolve_method(selection), datasets, algorithms, warn, titles or Titles()),
        *(baseline, kinds or all_kinds()),
    )
    for names, caption, figure, data in plots.draw_all():
        yield Plot(unique_stem(file_stem(names), stems), caption, figure, data)
        del figure  # before the next one is drawn


def save_plot(plot: Plot, folder: Path, dpi: int = DPI, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a plot in some formats, and its data as CSV, each file atomically. Return the paths, the CSV file last."""
    paths = save_figure(plot.figure, folder, plot.stem, plot.caption, dpi, formats)
    paths.append(folder / f"{plot.stem}.csv")
    with atomic_write(paths[-1]) as file:
        file.write(to_csv(plot.data).encode())
    return paths


def unique_stem(stem: str, used: set[str]) -> str:
    """Return the stem, numbered if it is used, and add it to `used`. Case does not distinguish files everywhere."""
    unique, n = stem, 1
    while unique.lower() in used:  # the names differ only in what file names do not preserve
        n += 1
        unique = f"{stem}-{n}"
    used.add(unique.lower())
    return unique


def file_stem(names: Sequence[str]) -> str:
    """Join names to a file stem of limited length that consists of letters, digits, +, - and _."""
    return "-".join(re.sub(r"[^\w+-]+", "_", name)[:30] for name in names)
