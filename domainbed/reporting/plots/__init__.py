"""Pictures of a sweep, for print. Nothing is shown on a display; matplotlib is imported only with this package."""

from domainbed.reporting.plots.gallery import all_figures
from domainbed.reporting.plots.style import write, write_files

__all__ = ["all_figures", "write", "write_files"]
