"""Critical-difference diagram: mean ranks of the algorithms, and which of them do not differ."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from domainbed.reporting.plots.style import FONT_SIZE, Style, current_look, label_text, print_style, set_title

ROW = 0.19  # inches between two labels of FONT_SIZE
GROUP_ROW = 0.1  # inches between two bars of groups
LEADER: dict[str, Any] = {"color": "0.25", "linewidth": 0.7, "zorder": 1}  # from the axis to a label


@print_style
def plot_ranks(
    ranks: Mapping[str, float],
    critical_difference: float,
    groups: Sequence[Sequence[str]],
    algorithms: Mapping[str, Style],
    title: str = "",
) -> Figure:
    """Plot mean ranks on an axis, best on the left, after Demšar (2006), Figure 1.

    Thick bars join the algorithms of a group. The bar above the axis is as long as the critical difference, or as the
    axis if that is shorter.

    Args:
        ranks: the mean rank of each algorithm.
        critical_difference: the difference between two mean ranks from which on they differ.
        groups: groups of algorithms that are not separated.
        algorithms: the style of each algorithm.
    """
    look = current_look()
    row_height = ROW * look.font_size / FONT_SIZE
    names = sorted(ranks, key=lambda name: ranks[name])
    n_left = (len(names) + 1) // 2
    bottom = GROUP_ROW * (len(groups) + 1) + row_height * n_left + 0.05  # inches below the axis
    height = bottom + 0.55
    figure = Figure(figsize=(look.width, height + 0.3))
    set_title(figure, title)
    ax = figure.subplots()
    left, right = 1.0, float(max(2, len(names)))
    margin = 0.42 * (right - left)  # for the labels
    ax.set_xlim(left - margin, right + margin)
    ax.set_ylim(-bottom, height - bottom)
    ax.axis("off")
    _draw_axis(ax, left, right, critical_difference)
    for i, group in enumerate(groups):
        y = -GROUP_ROW * (i + 1)
        ends = [f([ranks[name] for name in group]) for f in (min, max)]
        pad = 0.006 * (right - left)
        ax.plot([ends[0] - pad, ends[1] + pad], [y, y], color="0.1", linewidth=3, solid_capstyle="butt", gid="group")
    for i, name in enumerate(names):
        is_left = i < n_left
        row = i if is_left else len(names) - 1 - i
        y = -GROUP_ROW * (len(groups) + 1) - row_height * (row + 0.5)
        edge = left - 0.04 * margin if is_left else right + 0.04 * margin
        ax.plot([ranks[name], ranks[name], edge], [0, y, y], gid="rank", **LEADER)
        style = algorithms[name]
        ax.plot(ranks[name], 0, marker=style.marker, color=style.color, markeredgecolor="0.2", markersize=5, zorder=3)
        text = f"{label_text(name)}  {ranks[name]:.2f}" if is_left else f"{ranks[name]:.2f}  {label_text(name)}"
        ax.text(edge + (-1 if is_left else 1) * 0.03 * margin, y, text, va="center", ha="right" if is_left else "left")
    return figure


def _draw_axis(ax: Axes, left: float, right: float, critical_difference: float) -> None:
    """Draw the axis of ranks, with its ticks, and the critical difference above it."""
    ax.plot([left, right], [0, 0], color="0.1", linewidth=0.9)
    step = max(1, round((right - left) / 8))
    for tick in np.arange(left, right + 0.5, step):
        ax.plot([tick, tick], [0, 0.05], color="0.1", linewidth=0.9)
        ax.text(tick, 0.07, f"{tick:g}", ha="center", va="bottom")
    end = min(right, left + critical_difference)
    ax.plot([left, end], [0.34, 0.34], color="0.1", linewidth=1.2, marker="|", markersize=6, gid="critical difference")
    note = f"critical difference {critical_difference:.2f}"
    ax.text((left + end) / 2, 0.38, note, ha="center", va="bottom")
