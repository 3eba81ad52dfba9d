"""How pictures look: colours, markers, sizes, panels and legends, and how they are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from domainbed.files import atomic_write

LineStyle: TypeAlias = tuple[float, tuple[float, ...]]  # offset; lengths of dashes and gaps, none for a solid line

WIDTH = (
    5.5  # inches: the text's width on a page of one column; halved, into a column of two, the letters are 4.5 points
)
FONT = 9  # points
DPI = 150  # of PNGs
FORMATS = ("png", "pdf")

# Okabe and Ito's colours, which the colour-blind can tell apart, the pale ones last; black is kept for what stands out.
# How many there are of these, of markers and of line styles have no common divisor, so that pairs repeat late.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[LineStyle, ...] = (
    (0, ()),
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (2.5, 1)),
    (0, (6, 1.5, 1, 1.5, 1, 1.5)),
)
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oooo")

# Over matplotlib's own defaults, so that nobody's matplotlibrc changes a picture. Type 42 are TrueType letters, which
# publishers ask for.
on_paper = style.context(
    [
        "default",
        {
            "font.size": FONT,
            "axes.titlesize": FONT,
            "axes.labelsize": FONT,
            "figure.titlesize": FONT + 1,
            "figure.labelsize": FONT,
            "legend.fontsize": FONT - 1,
            "legend.title_fontsize": FONT - 1,
            "legend.frameon": False,
            "xtick.labelsize": FONT - 1,
            "ytick.labelsize": FONT - 1,
            "axes.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.linewidth": 0.4,
            "grid.color": "0.88",
            "hatch.linewidth": 0.5,
            "lines.linewidth": 0.9,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.03,
            "figure.constrained_layout.w_pad": 0.03,
            "pdf.fonttype": 42,
        },
    ]
)


@dataclass(frozen=True)
class Style:
    """What tells one category from the others, each by itself, on a grey print too."""

    color: str
    marker: str
    line: LineStyle
    hatch: str


def make_style(i: int) -> Style:
    """The look of the i-th category, from 0; there are looks for any number of them."""
    return Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)], HATCHES[i % len(HATCHES)])


def text(name: object, most: int = 24) -> str:
    """A name as matplotlib should print it: its middle cut to leave so many characters, a $ a $ and no formula."""
    name = " ".join(str(name).split())
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[-((most - 1) // 2) :]}"
    return name.replace("$", r"\$")


def panels(n: int, title: str, height: float, xlabel: str = "", share: str = "") -> tuple[Figure, list[Axes]]:
    """A figure of n panels, two or three a row.

    Args:
        height: of a row of three panels, in inches.
        xlabel: stands below the lowest panel of each column.
        share: the axes that all panels have in common: "x", "y" or "xy".
    """
    columns = 2 if n in (2, 4) else min(n, 3)
    rows = math.ceil(n / columns)
    if columns < 3:
        height *= 1.25
    figure = Figure(figsize=(WIDTH, rows * height + 0.4))
    figure.suptitle(text(title, 60))
    grid = figure.subplots(rows, columns, sharex="x" in share, sharey="y" in share, squeeze=False).ravel()
    for ax in grid[n:]:
        ax.remove()
    for ax in grid[max(0, n - columns) : n]:  # those below which there is none
        ax.xaxis.set_tick_params(labelbottom=True)
        ax.set_xlabel(xlabel)
    return figure, list(grid[:n])


def steps_axis(ax: Axes) -> None:
    """Few ticks, at whole numbers, on an axis of training steps."""
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def note(ax: Axes, words: str) -> None:
    """Say in a panel why it is empty."""
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color="0.35")


def line_of(make_style: Style) -> Line2D:
    """A legend's sample of a line."""
    return Line2D([], [], color=make_style.color, linestyle=make_style.line, linewidth=1.2)


def point_of(make_style: Style) -> Line2D:
    """A legend's sample of a point."""
    return Line2D(
        [],
        [],
        color=make_style.color,
        marker=make_style.marker,
        linestyle="",
        markersize=5,
        markeredgecolor="0.2",
        markeredgewidth=0.3,
    )


def legend(figure: Figure, samples: Sequence[tuple[str, Artist]], title: str | None = None) -> None:
    """A legend below the panels, where it covers no data, in as many columns as there is room for."""
    longest = max(len(label) for label, _ in samples)
    column = (0.55 * longest + 4.2) * (FONT - 1)  # points: letters, the sample and the space between columns
    columns = max(1, min(len(samples), int(WIDTH * 72 / column)))
    rows = math.ceil(len(samples) / columns) + (title is not None)
    figure.set_figheight(figure.get_figheight() + 1.5 * rows * FONT / 72)
    figure.legend(
        [artist for _, artist in samples],
        [label for label, _ in samples],
        loc="outside lower center",
        ncols=math.ceil(len(samples) / math.ceil(len(samples) / columns)),  # rows of the same length
        title=title,
        handlelength=2.4,
        columnspacing=1.2,
        borderpad=0.1,
    )


def fix_layout(figure: Figure) -> None:
    """Lay the figure out once for all formats it is written in, not once for each."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


@on_paper
def write(figure: Figure, file: BinaryIO, kind: str, dpi: int, caption: str = "") -> None:
    """Write a figure; the same data give the same bytes.

    Args:
        kind: "png" or "pdf".
        dpi: dots an inch of what is not vectors.
        caption: is kept in the file.
    """
    fix_layout(figure)
    metadata: dict[str, str | None] = {"Title": caption}
    if kind == "pdf":
        metadata |= {"CreationDate": None}
    figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)


def write_files(figure: Figure, folder: Path, stem: str, caption: str, dpi: int = DPI) -> list[Path]:
    """Write a figure as PNG and PDF, each whole or not at all. Returns the files."""
    paths = [folder / f"{stem}.{kind}" for kind in FORMATS]
    for kind, path in zip(FORMATS, paths, strict=True):
        with atomic_write(path) as file:
            write(figure, file, kind, dpi, caption)
    return paths
