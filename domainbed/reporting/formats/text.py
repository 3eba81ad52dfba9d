"""A report as plain text, in DomainBed's style (`mean +/- standard error`), and as Markdown."""

from collections.abc import Sequence

from tabulate import tabulate

from domainbed.reporting.cells import Cell
from domainbed.reporting.findings import Findings
from domainbed.reporting.layout import Table
from domainbed.reporting.report import Report
from domainbed.reporting.text_tables import NO_POWER, comparison_table, power_table, report_findings, section_findings


def as_text(report: Report) -> str:
    """Return the report for a terminal."""
    blocks = [report.progress]
    for section in report.sections:
        blocks.append(f"==== Model selection: {section.selection} ====")
        blocks += [section.why_empty] if section.why_empty else []
        for table in section.tables:
            rows = _rows(table, "+/-", indent="  ")
            blocks.append("\n".join([table.title, _tabulate(["Algorithm", *table.headers], rows), *table.notes]))
        if section.versus:
            title, headers, rows, note = comparison_table(section, report)
            blocks.append("\n".join([title, _tabulate(headers, rows), note]))
        if section.power:
            title, headers, rows, note = power_table(section, report)
            blocks.append("\n".join([title, _tabulate(headers, rows), note]))
        elif report.options.power and section.tables:
            blocks.append(NO_POWER)
        blocks += map(_findings_text, section_findings(section, report).values())
    blocks += map(_findings_text, report_findings(report).values())
    blocks += ["\n".join(report.notes)] if report.notes else []
    blocks += ["\n".join(["Warnings:", *report.sweep.problems])] if report.sweep.problems else []
    return "\n\n".join(blocks) + "\n"


def as_markdown(report: Report) -> str:
    """Return the report as GitHub-flavored Markdown."""
    blocks = [report.progress]
    for section in report.sections:
        blocks.append(f"## Model selection: {section.selection}")
        blocks += [section.why_empty] if section.why_empty else []
        for table in section.tables:
            rows = [[_escape(text) for text in row] for row in _rows(table, "±", indent="")]
            headers = ["Algorithm", *map(_escape, table.headers)]
            blocks += [f"### {_escape(table.title)}", _tabulate(headers, rows, "github")]
            blocks += [_bullets(table.notes)] if table.notes else []
        if section.versus:
            title, headers, rows, note = comparison_table(section, report)
            rows = [[_escape(text) for text in row] for row in rows]
            blocks += [f"### {_escape(title)}", _tabulate([*map(_escape, headers)], rows, "github"), _escape(note)]
        if section.power:
            title, headers, rows, note = power_table(section, report)
            rows = [[_escape(text) for text in row] for row in rows]
            blocks += [f"### {title}", _tabulate(headers, rows, "github"), note]
        elif report.options.power and section.tables:
            blocks.append(NO_POWER)
        for findings in section_findings(section, report).values():
            blocks += _findings_markdown(findings)
    for findings in report_findings(report).values():
        blocks += _findings_markdown(findings, "##")
    blocks += [_bullets(report.notes)] if report.notes else []
    blocks += ["Warnings:", _bullets(report.sweep.problems)] if report.sweep.problems else []
    return "\n\n".join(blocks) + "\n"


def _findings_text(findings: Findings) -> str:
    table = [_tabulate(findings.headers, findings.rows)] if findings.rows else []
    return "\n".join([findings.title, *table, *findings.sentences, *filter(None, [findings.note])])


def _findings_markdown(findings: Findings, heading: str = "###") -> list[str]:
    rows = [[_escape(text) for text in row] for row in findings.rows]
    table = [_tabulate([*map(_escape, findings.headers)], rows, "github")] if rows else []
    note = [_escape(findings.note)] if findings.note else []
    return [f"{heading} {_escape(findings.title)}", *table, _bullets(findings.sentences), *note]


def _rows(table: Table, plus_minus: str, indent: str) -> list[list[str]]:
    """Return the rows of a table as text; published results and differences follow the algorithms that have them."""

    def result(cell: Cell) -> str:
        return table.format_result(cell, plus_minus) + cell.mark

    rows = []
    for algorithm, cells in table.rows.items():
        rows.append([table.titles(algorithm), *map(result, cells)])
        if table.is_compared(cells):
            rows.append([f"{indent}published", *(table.format_published(cell, plus_minus) for cell in cells)])
            rows.append([f"{indent}difference", *map(table.format_difference, cells)])
    return rows


def _tabulate(headers: Sequence[str], rows: list[list[str]], tablefmt: str = "simple") -> str:
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(
        rows, headers, tablefmt, colalign=alignment, disable_numparse=True, preserve_whitespace=tablefmt == "simple"
    )


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    """Escape Markdown's special characters."""
    for character in "\\*_~|<":
        text = text.replace(character, f"\\{character}")
    return text
