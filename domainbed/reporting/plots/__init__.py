"""Plots of a sweep, written to files. Only this package and `plots.py` of optional packages import matplotlib."""

from domainbed.reporting.plots.gallery import Plot, draw_plots, save_plot
from domainbed.reporting.plots.style import save_figure, write_figure

__all__ = ["Plot", "draw_plots", "save_figure", "save_plot", "write_figure"]
