"""The tables as LaTeX, with booktabs: the best of each column in bold, the second underlined."""

from collections.abc import Sequence

import pandas as pd

from domainbed.errors import one_line
from domainbed.reporting.layout import AVERAGES, FEWER, UNFINISHED, Cell, Table
from domainbed.reporting.report import Report, versus_rows

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
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def document(report: Report) -> str:
    """A document that compiles as it is."""
    return DOCUMENT.format(tables=fragment(report))


def fragment(report: Report) -> str:
    r"""The tables alone, each in a `table` of its own with a caption and a label, for \input."""
    lines = [r"% Needs \usepackage{booktabs,graphicx}."]
    lines += [f"% {one_line(line)}" for line in (report.progress, *report.notes, *report.sweep.problems)]
    for section in report.sections:
        lines += ["", f"% Model selection: {section.selection}", *([f"% {w}"] if (w := section.why_empty) else [])]
        lines += [_table(table) for table in section.tables]
        if section.versus is not None:
            title, headers, rows, note = versus_rows(report, section)
            frame = pd.DataFrame([[escaped(text) for text in row] for row in rows], columns=[*map(escaped, headers)])
            lines.append(
                _float(frame, f"{title}, {section.selection} selection", f"{section.selection}-versus", [note])
            )
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX sets it, in one line; a letter that its fonts may lack is left to the user."""
    return "".join(SPECIAL.get(letter, letter) for letter in one_line(text))


def _table(table: Table) -> str:
    rows = []
    for algorithm, cells in table.rows.items():
        # A name that begins with [ or * would be taken for an argument of the line's end before it.
        name = "{}" * algorithm.startswith(("[", "*")) + escaped(algorithm)
        rows.append([name, *(_number(table, cell) for cell in cells)])
        if table.is_compared(cells):
            rows.append([r"\quad published", *(table.published(cell, r"$\pm$") for cell in cells)])
            rows.append([r"\quad difference", *(_signed(table.difference(cell)) for cell in cells)])
    frame = pd.DataFrame(rows, columns=["Algorithm", *map(escaped, table.columns)])
    what = "Averages over datasets" if table.name == AVERAGES else table.name
    caption = f"{what}: accuracy in percent, {table.selection} selection"
    return _float(frame, caption, f"{table.selection}-{table.name}", table.notes)


def _number(table: Table, cell: Cell) -> str:
    text = table.number(cell, r"$\pm$")
    if cell.place:
        text = {1: r"\textbf{%s}", 2: r"\underline{%s}"}[cell.place] % text
    for mark, sign in ((FEWER, "*"), (UNFINISHED, r"\sim")):
        text += f"$^{{{sign}}}$" if mark in cell.mark else ""
    return text


def _signed(difference: str) -> str:
    """A minus that is one, not a hyphen."""
    return f"${difference}$" if difference[1:] else difference


def _float(frame: pd.DataFrame, caption: str, label: str, notes: Sequence[str]) -> str:
    """A table with its caption and notes, made smaller where it is too wide for the page."""
    tabular = frame.style.hide(axis="index").to_latex(hrules=True, column_format="l" + "r" * (frame.shape[1] - 1))
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{escaped(caption)}}}",
            rf"\label{{tab:{''.join(letter if letter.isalnum() else '-' for letter in label)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            tabular.strip() + "}",
            *(rf"\par\smallskip{{\footnotesize {escaped(note)}\par}}" for note in notes),
            r"\end{table}",
        ]
    )
