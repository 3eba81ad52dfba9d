"""The formats of a report, by name. Their modules import pandas, so each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed.errors import UsageError, suggest
from domainbed.reporting.layout import ReportOptions

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


def check_format(name: str, options: ReportOptions) -> None:
    """Raise UsageError if there is no format of this name, or if it has no place for what the options request."""
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}; {suggest(name, FORMATS)}")
    if options.versus and name == "csv":
        raise UsageError("--format csv does not support --versus; use --format json")
    if options.power and name not in ("text", "markdown", "json"):
        raise UsageError(f"--format {name} does not support --power; use --format text, markdown or json")
    if options.significance and options.on_the_line and name == "csv":
        raise UsageError("--format csv contains one table: use either --significance or --on_the_line")
    if options.cite and name not in ("latex", "latex-fragment"):
        raise UsageError(f"--format {name} does not support --cite; use --format latex or latex-fragment")
    if options.pictures and name != "html":
        raise UsageError(f"--format {name} does not support --pictures; use --format html, or the command plot")


def render(report: Report, name: str, folder: Path) -> str:
    """Return a report in a format.

    Args:
        report: the report.
        name: one of FORMATS.
        folder: the folder that the text will be written to, from which a page links to the jobs.

    What the format has no place for is left out; see `check_format`.
    """
    if name == "html":
        from domainbed.reporting.formats.page import as_html

        return as_html(report, folder)
    module, function = _FUNCTIONS[name]
    return getattr(import_module(f"domainbed.reporting.formats.{module}"), function)(report)
