"""The comparisons of a report as text, the same in each output format."""

from typing import NamedTuple

from domainbed.reporting.findings import UNKNOWN, Findings, significance_findings
from domainbed.reporting.layout import MISSING_MARK, format_number
from domainbed.reporting.line_findings import line_findings
from domainbed.reporting.power import POWER, TRIALS
from domainbed.reporting.report import Report, Section
from domainbed.reporting.significance import ALPHA


class TextTable(NamedTuple):
    """A table of a section that has no cells, as text."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    note: str


def comparison_table(section: Section, report: Report) -> TextTable:
    """Return the comparisons of a section of a report, which must have some, as text."""
    options, titles = report.options, report.titles
    first, second = map(titles, options.versus)
    rows = []
    for c in section.versus:
        texts = [MISSING_MARK] * 4
        if c.trials:
            difference, low, high = (format_number(x, options.decimals, "+") for x in (c.difference, c.low, c.high))
            texts = [difference, f"[{low}, {high}]", f"{c.probability:.2f}", f"[{c.p_low:.2f}, {c.p_high:.2f}]"]
            if c.trials == 1:
                texts[1] = texts[3] = UNKNOWN
        rows.append([titles(c.dataset), *texts, str(c.trials)])
    better = f"P({first} > {second})"
    note = (
        f"Difference: {first} minus {second} in percentage points, paired by trial. {better}: probability that a trial "
        f"of {first} beats a trial of {second} on a test environment. Both use the trials in which both algorithms "
        "have results on every test environment. The bootstrap intervals treat the test environments of a trial as "
        "independent and are too narrow with few trials; a single trial has none."
    )
    headers = ["Dataset", "Difference", "Difference, 95%", better, f"{better}, 95%", "Trials"]
    return TextTable(f"{first} vs. {second}", headers, rows, note)


NO_POWER = (
    "No smallest differences (--power): no two algorithms have two trials with results in every test environment."
)


def power_table(section: Section, report: Report) -> TextTable:
    """Return the smallest differences of a section of a report, which must have some, as text."""
    rows: dict[tuple[str, int], list[str]] = {}
    for result in section.power:
        row = rows.setdefault((result.dataset, result.draws), [report.titles(result.dataset), str(result.draws)])
        row.append(format_number(result.difference, report.options.decimals))
    note = (
        "The true difference between the averages of two algorithms, in percentage points, that a two-sided paired "
        f"t-test of level {ALPHA:g} detects with probability {POWER:g}. From the variance of the differences between "
        "all pairs of algorithms over the trials of this sweep, which is itself uncertain if there are few trials. "
        "Fewer draws: the defaults and a random selection of the others. --significance uses a different test, with "
        "more degrees of freedom and a correction for the number of algorithms."
    )
    headers = ["Dataset", "Draws", *(f"{n} trials" for n in TRIALS)]
    return TextTable("Smallest difference that can be shown", headers, [*rows.values()], note)


def section_findings(section: Section, report: Report) -> dict[str, Findings]:
    """Return the tests of a section of a report as text, by the ends of their labels; none if not requested."""
    if section.significance is None:
        return {}
    return significance_findings(section.significance, report.titles, report.options.decimals)


def report_findings(report: Report) -> dict[str, Findings]:
    """Return what a report shows about all runs, as text, by the ends of its labels; none if not requested."""
    if not report.lines:
        return {}
    options = report.options
    return {"line": line_findings(report.lines, report.environments, options.baseline, report.titles, options.decimals)}
