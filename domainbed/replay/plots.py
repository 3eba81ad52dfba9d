"""Plot of cost against fidelity."""

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from domainbed.replay.replays import CHANGED
from domainbed.reporting.plots.style import add_legend, label_text, legend_point, make_panels, make_style, print_style

PANELS = {
    "cell": ("Change of cells (points)", 1.0),
    "swapped": ("Pairs in another order (%)", 100.0),
    CHANGED: ("Changed differences", 1.0),
}


@print_style
def plot_fidelity(summary: pd.DataFrame, title: str = "") -> Figure:
    """Plot the change of the answers against the cost of each policy, with intervals (`replays.summarize`)."""
    figure, axes = make_panels(len(PANELS), title, 1.9, "Cost (%)")
    entries: list[tuple[str, Artist]] = []
    for i, row in summary.iterrows():
        style = make_style(int(i))  # type: ignore[call-overload]
        for ax, (name, (_, scale)) in zip(axes, PANELS.items(), strict=True):
            mean, low, high = (scale * row[column] for column in (name, f"{name}_low", f"{name}_high"))
            ax.errorbar(
                [100 * row["cost"]],
                [mean],
                [[max(0.0, mean - low)], [max(0.0, high - mean)]],
                color=style.color,
                marker=style.marker,
                markersize=5,
                elinewidth=0.6,
            )
        entries.append((label_text(row["policy"]), legend_point(style)))
    for ax, (label, _) in zip(axes, PANELS.values(), strict=True):
        ax.set_title(label)
        ax.set_xlim(0, 104)
        ax.set_ylim(bottom=0)
    add_legend(figure, entries, "mean and 95% interval over random orders and draws; the complete sweep is at 100, 0")
    return figure
