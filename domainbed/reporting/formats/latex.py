"""The tables as LaTeX, with booktabs: the best of each column in bold, the second best underlined."""

from collections.abc import Sequence

import pandas as pd

from domainbed.errors import one_line
from domainbed.reporting.cells import AVERAGES, PARTIAL_MARK, UNFINISHED_MARK, Cell
from domainbed.reporting.layout import Table
from domainbed.reporting.report import Report, comparison_table

DOCUMENT = r"""\documentclass{{article}}
\usepackage[utf8]{{inputenc}}
\usepackage{{booktabs}}
\usepackage{{graphicx}}
\usepackage[margin=2cm]{{geometry}}
\begin{{document}}
{tables}
\end{{document}}
"""

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_latex(report: Report) -> str:
    """Return a complete document."""
    return DOCUMENT.format(tables=as_latex_fragment(report))


def as_latex_fragment(report: Report) -> str:
    r"""Return the tables alone, for \input: each in a `table` environment with a caption and a label."""
    lines = [r"% Requires \usepackage{booktabs,graphicx}."]
    lines += [f"% {one_line(line)}" for line in (report.progress, *report.notes, *report.sweep.problems)]
    for section in report.sections:
        lines += ["", f"% Model selection: {section.selection}"]
        lines += [f"% {section.why_empty}"] if section.why_empty else []
        lines += [_table(table) for table in section.tables]
        if section.versus:
            title, headers, rows, note = comparison_table(section, report.options)
            frame = pd.DataFrame([[escape(text) for text in row] for row in rows], columns=[*map(escape, headers)])
            caption = f"{title}, {section.selection} selection"
            lines.append(_float(frame, caption, f"{section.selection}-versus", [note]))
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Escape text for LaTeX, on one line. The fonts may still lack a character."""
    return "".join(SPECIAL.get(character, character) for character in one_line(text))


def _table(table: Table) -> str:
    rows = []
    for algorithm, cells in table.rows.items():
        # The \\ of the previous row would take a leading [ or * as its argument.
        name = "{}" * algorithm.startswith(("[", "*")) + escape(algorithm)
        rows.append([name, *(_result(table, cell) for cell in cells)])
        if table.is_compared(cells):
            rows.append([r"\quad published", *(table.format_published(cell, r"$\pm$") for cell in cells)])
            rows.append([r"\quad difference", *(_math(table.format_difference(cell)) for cell in cells)])
    frame = pd.DataFrame(rows, columns=["Algorithm", *map(escape, table.columns)])
    title = "Averages over datasets" if table.name == AVERAGES else table.name
    caption = f"{title}: accuracy in percent, {table.selection} selection"
    return _float(frame, caption, f"{table.selection}-{table.name}", table.notes)


def _result(table: Table, cell: Cell) -> str:
    text = table.format_result(cell, r"$\pm$")
    if cell.place:
        text = {1: r"\textbf{%s}", 2: r"\underline{%s}"}[cell.place] % text
    for mark, symbol in ((PARTIAL_MARK, "*"), (UNFINISHED_MARK, r"\sim")):
        text += f"$^{{{symbol}}}$" if mark in cell.mark else ""
    return text


def _math(difference: str) -> str:
    """Return a signed number in math mode, which sets a minus sign rather than a hyphen; "-" stays as it is."""
    return f"${difference}$" if difference[1:] else difference


def _float(frame: pd.DataFrame, caption: str, label: str, notes: Sequence[str]) -> str:
    """Return a table with its caption and notes, scaled down if it is wider than the page."""
    tabular = frame.style.hide(axis="index").to_latex(hrules=True, column_format="l" + "r" * (frame.shape[1] - 1))
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{''.join(letter if letter.isalnum() else '-' for letter in label)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            tabular.strip() + "}",
            *(rf"\par\smallskip{{\footnotesize {escape(note)}\par}}" for note in notes),
            r"\end{table}",
        ]
    )
