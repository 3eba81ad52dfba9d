"""The tables as LaTeX, with booktabs, and the BibTeX entries that they cite."""

import re
from collections.abc import Iterator, Sequence

import pandas as pd

from domainbed.errors import one_line
from domainbed.model_selection import CLASS_NAMES
from domainbed.reporting.cells import AVERAGES, PARTIAL_MARK, PRUNED_MARK, UNFINISHED_MARK, Cell
from domainbed.reporting.findings import Findings
from domainbed.reporting.layout import SINGLE_TRIAL, Table
from domainbed.reporting.references import find_entries, find_keys
from domainbed.reporting.report import Report
from domainbed.reporting.text_tables import comparison_table, report_findings, section_findings

DOCUMENT = r"""{bibliography}\documentclass{{article}}
\usepackage[utf8]{{inputenc}}
\usepackage{{booktabs}}
\usepackage{{graphicx}}
\usepackage[margin=2cm]{{geometry}}
\begin{{document}}
{tables}{print_bibliography}
\end{{document}}
"""
BIBLIOGRAPHY = r"""\begin{{filecontents*}}[overwrite]{{domainbed.bib}}
{entries}
\end{{filecontents*}}
"""
PRINT_BIBLIOGRAPHY = r"""
\bibliographystyle{plain}
\bibliography{domainbed}"""
MINUS = re.compile(r"(?<![\w.])-(?=\d)")  # before a number

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "²": "$^2$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_latex(report: Report) -> str:
    """Return a complete document. If it cites papers, compiling it writes domainbed.bib, for BibTeX."""
    parts = {"bibliography": "", "print_bibliography": ""}
    if report.options.cite:
        parts = {
            "bibliography": BIBLIOGRAPHY.format(entries=find_entries(_cited_keys(report))),
            "print_bibliography": PRINT_BIBLIOGRAPHY,
        }
    return DOCUMENT.format(tables=as_latex_fragment(report), **parts)


def as_bibtex(report: Report) -> str:
    """Return the entries of the papers that the tables cite with `--cite`."""
    return find_entries(_cited_keys(report)) + "\n"


def as_latex_fragment(report: Report) -> str:
    r"""Return the tables alone, for \input: each in a `table` environment with a caption and a label."""
    lines = [r"% Requires \usepackage{booktabs,graphicx}."]
    lines += [f"% {one_line(line)}" for line in (report.progress, *report.notes, *report.sweep.problems)]
    if report.options.cite:
        names = [*report.algorithms, *report.environments]
        lines += [f"% No known reference: {one_line(name)}" for name in names if not find_keys(name)]
    for section in report.sections:
        lines += ["", f"% Model selection: {section.selection}"]
        lines += [f"% {section.why_empty}"] if section.why_empty else []
        lines += [_table(table) for table in section.tables]
        if section.versus:
            title, headers, rows, note = comparison_table(section, report)
            frame = pd.DataFrame([_row(row) for row in rows], columns=[*map(escape, headers)])
            caption = escape(f"{title}, {section.selection} selection")
            lines.append(_float(frame, caption, f"{section.selection}-versus", [note]))
        for label, findings in section_findings(section, report).items():
            lines += _findings(findings, f"{section.selection}-{label}", f", {section.selection} selection")
    for label, findings in report_findings(report).items():
        lines += _findings(findings, label)
    return "\n".join(lines) + "\n"


def _findings(findings: Findings, label: str, suffix: str = "") -> list[str]:
    """Return a table with its sentences below it, or the sentences as comments if it has no rows."""
    if not findings.rows:
        return [f"% {one_line(sentence)}" for sentence in findings.sentences]
    rows = [_row(row) for row in findings.rows]
    frame = pd.DataFrame(rows, columns=[*map(escape, findings.headers)])
    return [_float(frame, escape(findings.title + suffix), label, [*findings.sentences, findings.note])]


def _row(texts: Sequence[str]) -> list[str]:
    """Return the cells of a row, escaped."""
    first, *others = texts
    return [_first(first), *map(escape, others)]


def _first(text: str) -> str:
    r"""Return the first cell of a row, escaped. The \\ before it would take a leading [ or * as its argument."""
    return "{}" * text.startswith(("[", "*")) + escape(text)


def escape(text: str) -> str:
    """Escape text for LaTeX, on one line, with minus signs before numbers. The fonts may still lack a character."""
    parts = MINUS.split(one_line(text))
    return "$-$".join("".join(SPECIAL.get(character, character) for character in part) for part in parts)


def _cited_keys(report: Report) -> Iterator[str]:
    """Yield the citation keys of the report's algorithms, datasets and model selection."""
    for name in (*report.algorithms, *report.environments, "DomainBed"):
        yield from find_keys(name)


def _cite(name: str, is_cited: bool) -> str:
    """Return the citation of a name, to append to it; "" if it has none."""
    keys = find_keys(name) if is_cited else []
    return rf"~\cite{{{','.join(keys)}}}" if keys else ""


def _table(table: Table) -> str:
    rows = []
    for algorithm, cells in table.rows.items():
        title = table.titles(algorithm)
        name = _first(title) + _cite(algorithm, table.options.cite)
        rows.append([name, *(_result(table, cell) for cell in cells)])
        if table.is_compared(cells):
            rows.append([r"\quad published", *(table.format_published(cell, r"$\pm$") for cell in cells)])
            rows.append([r"\quad difference", *(escape(table.format_difference(cell)) for cell in cells)])
    frame = pd.DataFrame(rows, columns=["Algorithm", *map(escape, table.headers)])
    return _float(frame, _caption(table), f"{table.selection}-{table.name}", table.notes)


def _caption(table: Table) -> str:
    """Return the caption: what the numbers are, over how many trials and draws, and what bold and underlined mean."""
    is_cited = table.options.cite
    title = "Averages over datasets" if table.name == AVERAGES else escape(table.title) + _cite(table.name, is_cited)
    method = escape(table.selection) + " selection"
    if table.selection in CLASS_NAMES.values():
        method += _cite("DomainBed", is_cited)
    spread = r"95\% bootstrap interval" if table.options.interval == "bootstrap" else "standard error"
    sign = "and" if table.options.interval == "bootstrap" else r"$\pm$"
    sentences = [f"{title}: test accuracy in percent, {method}", f"Mean {sign} {spread} over {table.protocol}"]
    if any(cell.place for cell in table.cells):
        sentences.append(r"\textbf{Bold}: best of each column; \underline{underlined}: second best")
    return ". ".join(sentences) + "."


def _result(table: Table, cell: Cell) -> str:
    text = escape(table.format_result(cell)).replace("+/-", r"$\pm$").replace(SINGLE_TRIAL, f"${SINGLE_TRIAL}$")
    if cell.place:
        text = {1: r"\textbf{%s}", 2: r"\underline{%s}"}[cell.place] % text
    for mark, symbol in ((PARTIAL_MARK, "*"), (UNFINISHED_MARK, r"\sim"), (PRUNED_MARK, r"\wedge")):
        text += f"$^{{{symbol}}}$" if mark in cell.mark else ""
    return text


def _float(frame: pd.DataFrame, caption: str, label: str, notes: Sequence[str]) -> str:
    """Return a table with its caption (LaTeX) and notes (text), scaled down if it is wider than the page."""
    tabular = frame.style.hide(axis="index").to_latex(hrules=True, column_format="l" + "r" * (frame.shape[1] - 1))
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{''.join(letter if letter.isalnum() else '-' for letter in label)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            tabular.strip() + "}",
            *(rf"\par\smallskip{{\footnotesize {escape(note)}\par}}" for note in notes),
            r"\end{table}",
        ]
    )
