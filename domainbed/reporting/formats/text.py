"""The tables as text, in DomainBed's form (`mean +/- error`), and as markdown."""

from collections.abc import Sequence

from tabulate import tabulate

from domainbed.reporting.layout import Cell, Table
from domainbed.reporting.report import Report, versus_rows


def text(report: Report) -> str:
    """For people who read a terminal."""
    sections = [report.progress]
    for section in report.sections:
        sections.append(f"==== Model selection: {section.selection} ====")
        sections += [section.why_empty] if section.why_empty else []
        for table in section.tables:
            rows = _rows(table, "+/-", indent="  ")
            sections.append("\n".join([table.name, _tabulated(["Algorithm", *table.columns], rows), *table.notes]))
        if section.versus is not None:
            title, headers, rows, note = versus_rows(report, section)
            sections.append("\n".join([title, _tabulated(headers, rows), note]))
    sections += ["\n".join(lines) for lines in (report.notes, _problems(report)) if lines]
    return "\n\n".join(sections) + "\n"


def markdown(report: Report) -> str:
    """For a page of GitHub's kind."""
    sections = [report.progress]
    for section in report.sections:
        sections.append(f"## Model selection: {section.selection}")
        sections += [section.why_empty] if section.why_empty else []
        for table in section.tables:
            rows = [[_escaped(word) for word in row] for row in _rows(table, "±", indent="")]
            headers = ["Algorithm", *map(_escaped, table.columns)]
            sections += [f"### {_escaped(table.name)}", _tabulated(headers, rows, "github"), *_listed(table.notes)]
        if section.versus is not None:
            title, headers, rows, note = versus_rows(report, section)
            sections += [f"### {_escaped(title)}", _tabulated(headers, rows, "github"), note]
    sections += ["\n".join(_listed(lines)) for lines in (report.notes, _problems(report)) if lines]
    return "\n\n".join(sections) + "\n"


def _rows(table: Table, plus_minus: str, indent: str) -> list[list[str]]:
    """The table's rows as texts; beneath each algorithm, where it is compared, the published row and the difference."""

    def number(cell: Cell) -> str:
        return table.number(cell, plus_minus) + cell.mark

    rows = []
    for algorithm, cells in table.rows.items():
        rows.append([algorithm, *map(number, cells)])
        if table.is_compared(cells):
            rows.append([f"{indent}published", *(table.published(cell, plus_minus) for cell in cells)])
            rows.append([f"{indent}difference", *map(table.difference, cells)])
    return rows


def _tabulated(headers: Sequence[str], rows: list[list[str]], tablefmt: str = "simple") -> str:
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(
        rows, headers, tablefmt, colalign=alignment, disable_numparse=True, preserve_whitespace=tablefmt == "simple"
    )


def _problems(report: Report) -> list[str]:
    problems = report.sweep.problems
    return ["Left out, or odd:", *problems] if problems else []


def _listed(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"* {_escaped(line)}" for line in lines)] if lines else []


def _escaped(text: str) -> str:
    """Markdown's own signs, as they are."""
    for sign in "\\*_~|<":
        text = text.replace(sign, f"\\{sign}")
    return text
