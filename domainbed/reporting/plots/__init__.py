"""Plots of a sweep, for print. Nothing is shown on a display, and only this package imports matplotlib."""

from domainbed.reporting.plots.gallery import all_figures
from domainbed.reporting.plots.style import save_figure, write_figure

__all__ = ["all_figures", "save_figure", "write_figure"]
