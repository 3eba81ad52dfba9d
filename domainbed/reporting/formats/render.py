"""The formats of a report, by name. Their modules import pandas, so each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed.errors import UsageError, suggest

if TYPE_CHECKING:
    from domainbed.reporting.report import Report

_FUNCTIONS = {  # module and function
    "text": ("text", "as_text"),
    "markdown": ("text", "as_markdown"),
    "latex": ("latex", "as_latex"),
    "latex-fragment": ("latex", "as_latex_fragment"),
    "bibtex": ("latex", "as_bibtex"),
    "csv": ("data", "as_csv"),
    "json": ("data", "as_json"),
}
FORMATS = (*_FUNCTIONS, "html")


def check_format(name: str) -> None:
    """Raise UsageError if there is no format of this name."""
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}; {suggest(name, FORMATS)}")


def render(report: Report, name: str, folder: Path) -> str:
    """Return a report in a format.

    Args:
        report: the report.
        name: one of FORMATS.
        folder: the folder that the text will be written to, from which a page links to the jobs.

    Raises:
        UsageError: there is no format of this name.
    """
    check_format(name)
    if name == "html":
        from domainbed.reporting.formats.page import as_html

        return as_html(report, folder)
    module, function = _FUNCTIONS[name]
    return getattr(import_module(f"domainbed.reporting.formats.{module}"), function)(report)
