"""Colors, markers, sizes, panels and legends of the plots, and the functions that write them."""

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeAlias, TypeVar

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from domainbed.files import atomic_write

P = ParamSpec("P")
T = TypeVar("T")
LineStyle: TypeAlias = tuple[float, tuple[float, ...]]  # offset; lengths of dashes and gaps, none for a solid line

FIGURE_WIDTH = 5.5  # inches: the text width of a one-column page; scaled down to a two-column page, text is 4.5 points
FONT_SIZE = 9  # points
TITLE_LENGTH = 66  # characters that fit the width of a figure
DPI = 150  # of PNG files
FORMATS = ("png", "pdf")  # written by default

# The Okabe-Ito palette, which is safe for color-blind readers, pale colors last; black is reserved for emphasis.
# The numbers of colors, markers and line styles are pairwise coprime, so pairs repeat late.
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


@dataclass(frozen=True)
class Look:
    """The sizes of a figure for one purpose.

    Attributes:
        width: width of a figure, in inches.
        font_size: size of most text, in points.
        line_width: width of lines, in points.
        columns: largest number of panels in a row.
        dpi: default resolution of PNG files.
    """

    width: float
    font_size: float
    line_width: float
    columns: int
    dpi: int


LOOKS = {
    "paper": Look(FIGURE_WIDTH, FONT_SIZE, 0.9, 3, DPI),
    # The text width of a slide in LaTeX. Enlarged to the width of a slide of 13.3 inches, text has 28 points.
    "slides": Look(4.5, 10, 1.4, 2, 300),
}
_look: ContextVar[Look] = ContextVar("look", default=LOOKS["paper"])


def current_look() -> Look:
    """Return the sizes that plots have."""
    return _look.get()


@contextmanager
def use_look(name: str) -> Iterator[None]:
    """Draw plots with the sizes of one of LOOKS."""
    token = _look.set(LOOKS[name])
    try:
        yield
    finally:
        _look.reset(token)


def print_style(draw: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that it draws in the style of the package."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        with style.context(["default", _settings(current_look())]):
            return draw(*args, **kwargs)

    return styled


def _settings(look: Look) -> dict[str, Any]:
    """Return matplotlib's settings.

    They are based on its defaults, so the user's matplotlibrc has no effect. Many publishers require font type 42
    (TrueType).
    """
    return {
        "font.size": look.font_size,
        "axes.titlesize": look.font_size,
        "axes.labelsize": look.font_size,
        "figure.titlesize": look.font_size + 1,
        "figure.labelsize": look.font_size,
        "legend.fontsize": look.font_size - 1,
        "legend.title_fontsize": look.font_size - 1,
        "legend.frameon": False,
        "xtick.labelsize": look.font_size - 1,
        "ytick.labelsize": look.font_size - 1,
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.linewidth": 0.4,
        "grid.color": "0.88",
        "hatch.linewidth": 0.5,
        "lines.linewidth": look.line_width,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.03,
        "figure.constrained_layout.w_pad": 0.03,
        "pdf.fonttype": 42,
        "svg.hashsalt": "domainbed",  # equal data give equal bytes
    }


@dataclass(frozen=True)
class Style:
    """The look of one category. Each attribute alone distinguishes it from the others, even in grayscale."""

    color: str
    marker: str
    line: LineStyle
    hatch: str


def make_style(i: int) -> Style:
    """Return the style of the i-th category, counted from 0; any number of categories is supported."""
    return Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)], HATCHES[i % len(HATCHES)])


def label_text(name: object, max_length: int = 24) -> str:
    """Return a name as a matplotlib label: shortened in the middle, and with dollar signs escaped."""
    name = " ".join(str(name).split())
    if len(name) > max_length:
        name = f"{name[: max_length // 2]}…{name[-((max_length - 1) // 2) :]}"
    return name.replace("$", r"\$")


def set_title(figure: Figure, title: str) -> None:
    """Set the title of a figure, on up to two lines."""
    look = current_look()
    length = int(TITLE_LENGTH * look.width / FIGURE_WIDTH * (FONT_SIZE + 1) / (look.font_size + 1))
    figure.suptitle("\n".join(textwrap.wrap(label_text(title, 2 * length - 10), length)))


def make_panels(
    n: int, title: str, height: float, xlabel: str = "", share: str = "", columns: int = 0
) -> tuple[Figure, list[Axes]]:
    """Return a figure with n panels and its axes.

    Args:
        height: height of a row of three panels, in inches.
        xlabel: label below the lowest panel of each column.
        share: axes that all panels have in common: "x", "y" or "xy".
        columns: the number of panels per row, at most 3; by default two or three, if they fit.
    """
    look = current_look()
    columns = min(columns or (2 if n in (2, 4) else min(n, 3)), look.columns)
    rows = math.ceil(n / columns)
    if columns < 3:
        height *= 1.25
    figure = Figure(figsize=(look.width, rows * height + 0.4))
    set_title(figure, title)
    grid = figure.subplots(rows, columns, sharex="x" in share, sharey="y" in share, squeeze=False).ravel()
    for ax in grid[n:]:
        ax.remove()
    for ax in grid[max(0, n - columns) : n]:  # the lowest panel of each column
        ax.xaxis.set_tick_params(labelbottom=True)
        ax.set_xlabel(xlabel)
    return figure, list(grid[:n])


def set_step_ticks(ax: Axes) -> None:
    """Set a few integer ticks on an axis of training steps."""
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def annotate_empty(ax: Axes, reason: str) -> None:
    """Write the reason for an empty panel into it."""
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="0.35")


def legend_line(style: Style) -> Line2D:
    """Return the legend entry of a line."""
    return Line2D([], [], color=style.color, linestyle=style.line, linewidth=1.2)


def legend_point(style: Style) -> Line2D:
    """Return the legend entry of a point."""
    return Line2D(
        [],
        [],
        color=style.color,
        marker=style.marker,
        linestyle="",
        markersize=5,
        markeredgecolor="0.2",
        markeredgewidth=0.3,
    )


def add_legend(figure: Figure, entries: Sequence[tuple[str, Artist]], title: str | None = None) -> None:
    """Add a legend of (label, artist) entries below the panels, with as many columns as fit."""
    look = current_look()
    longest = max(len(label) for label, _ in entries)
    column = (0.55 * longest + 4.2) * (look.font_size - 1)  # points: text, artist, and the space between columns
    columns = max(1, min(len(entries), int(look.width * 72 / column)))
    rows = math.ceil(len(entries) / columns)
    figure.set_figheight(figure.get_figheight() + 1.5 * (rows + (title is not None)) * look.font_size / 72)
    figure.legend(
        [artist for _, artist in entries],
        [label for label, _ in entries],
        loc="outside lower center",
        ncols=math.ceil(len(entries) / rows),  # rows of equal length
        title=title,
        handlelength=2.4,
        columnspacing=1.2,
        borderpad=0.1,
    )


@print_style
def write_figure(figure: Figure, file: BinaryIO, format: str, dpi: int, caption: str = "") -> None:
    """Write a figure to a file as "png", "pdf" or "svg", with its caption in the metadata.

    Equal data give equal bytes.
    """
    if (layout_engine := figure.get_layout_engine()) is not None:  # computed once, not for each format
        layout_engine.execute(figure)
        figure.set_layout_engine("none")
    metadata: dict[str, str | None] = {"Title": caption}
    if format in ("pdf", "svg"):
        metadata |= {"CreationDate" if format == "pdf" else "Date": None}
    figure.savefig(file, format=format, dpi=dpi, metadata=metadata)


def save_figure(
    figure: Figure, folder: Path, stem: str, caption: str, dpi: int = DPI, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write a figure in some formats, each file atomically, and return the paths."""
    paths = [folder / f"{stem}.{format}" for format in formats]
    for format, path in zip(formats, paths, strict=True):
        with atomic_write(path) as file:
            write_figure(figure, file, format, dpi, caption)
    return paths
