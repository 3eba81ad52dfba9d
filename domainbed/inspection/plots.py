"""The plot of the sizes of image files."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure

from domainbed.inspection.contents import DatasetContents, EnvironmentContents
from domainbed.reporting.plots.style import (
    DPI,
    add_legend,
    label_text,
    legend_line,
    make_panels,
    make_style,
    print_style,
    write_figure,
)

CAPTION = (
    "Sizes of image files: the share of each environment's images whose width (left) or height (right) is at most "
    "the given number of pixels."
)


def draw_sizes(contents: DatasetContents) -> bytes | None:
    """Return a plot of the sizes of image files, a PNG file; None if all have the same size, or there are none."""
    environments = [environment for environment in contents.environments if environment.headers]
    sizes = {(header.width, header.height) for environment in environments for header in environment.headers}
    if len(sizes) < 2:
        return None
    file = BytesIO()
    write_figure(_plot_sizes(environments, f"Sizes of image files, {contents.name}"), file, "png", DPI, CAPTION)
    return file.getvalue()


@print_style
def _plot_sizes(environments: Sequence[EnvironmentContents], title: str) -> Figure:
    figure, axes = make_panels(2, title, 1.9, "Pixels", share="y")
    for ax, side in zip(axes, ("width", "height"), strict=True):
        for i, environment in enumerate(environments):
            style = make_style(i)
            values = np.array([getattr(header, side) for header in environment.headers])
            ax.ecdf(values, color=style.color, linestyle=style.line, linewidth=1.2)
        ax.set_title(side.capitalize())
    axes[0].set_ylabel("Share of images")
    add_legend(figure, [(label_text(e.name), legend_line(make_style(i))) for i, e in enumerate(environments)])
    return figure
