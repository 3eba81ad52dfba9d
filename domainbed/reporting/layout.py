"""Tables of cells as text: options of a report, rounded numbers, best and second best cells, and notes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from domainbed.algorithms import GROUPS
from domainbed.errors import UsageError
from domainbed.model_selection import CLASS_NAMES, SELECTION_METHODS, WITH_PAIRS, resolve_method
from domainbed.options import check_options, option
from domainbed.reporting.cells import (
    AVERAGE,
    AVERAGES,
    PARTIAL_MARK,
    PRUNED_MARK,
    RANK,
    RELATIVE,
    SUMMARIES,
    UNFINISHED_MARK,
    Cell,
)
from domainbed.reporting.titles import Titles

MISSING_MARK = "X"
SINGLE_TRIAL = "n = 1"
MARKS = {  # their meanings
    PARTIAL_MARK: f"{PARTIAL_MARK}: some of the requested runs are not done or not usable",
    UNFINISHED_MARK: f"{UNFINISHED_MARK}: includes unfinished runs, with their records so far",
    PRUNED_MARK: f"{PRUNED_MARK}: some of the requested runs were pruned, and cannot be selected",
}


@dataclass(frozen=True)
class ReportOptions:
    """The content of a report. An empty `selection`, `datasets` or `algorithms` means all.

    Raises:
        UsageError: a value is not allowed.
    """

    selection: tuple[str, ...] = option(
        (),
        help=f"selection methods: {', '.join(SELECTION_METHODS)}, DomainBed's names ({', '.join(CLASS_NAMES)}), or "
        "your own (default: all)",
        metavar="METHOD",
    )
    datasets: tuple[str, ...] = option((), help="datasets to show, in this order (default: all)", metavar="NAME")
    algorithms: tuple[str, ...] = option(
        (),
        help=f"algorithms to show, in this order, or groups of them: {', '.join(GROUPS)} (default: all)",
        metavar="NAME",
    )
    decimals: int = option(1, help="number of decimals of accuracies in percent", metavar="N", at_least=0, at_most=9)
    interval: str = option(
        "standard-error",
        help="standard-error: as in published tables; bootstrap: 95% stratified bootstrap intervals over trials",
        choices=("standard-error", "bootstrap"),
    )
    compare: str | None = option(
        None,
        help="show the published results of DomainBed, Fishr and Fish next to yours",
        choices=("published",),
    )
    versus: tuple[str, ...] = option(
        (),
        help="two algorithms to compare: paired difference and probability of improvement, with 95% intervals",
        metavar="ALGORITHM",
    )
    relative_to: str | None = option(
        None,
        help="show how much the averages of the other algorithms differ from those of this one, in a column next to "
        "them",
        metavar="ALGORITHM",
    )
    power: bool = option(
        False,
        help="show the smallest difference between two algorithms that is detected with probability 0.8, by number of "
        "trials and draws, from the variance of this sweep (text, Markdown and JSON)",
    )
    significance: bool = option(
        False,
        help="test whether algorithms differ from --baseline, corrected for their number, and whether mean ranks "
        "differ, in plain sentences (--format csv: these comparisons instead of the cells)",
    )
    on_the_line: bool = option(
        False,
        help="show how out-of-domain accuracy follows in-domain accuracy over all runs, and which algorithms are above "
        "the line of --baseline (--format csv: these lines instead of the cells)",
    )
    baseline: str = option(
        "ERM",
        help="the algorithm that --significance and --on_the_line compare all others with",
        metavar="ALGORITHM",
    )
    rename: tuple[str, ...] = option(
        (),
        help="other names to print for algorithms, datasets, environments (if several datasets have one of this name: "
        "DATASET/ENVIRONMENT) and the columns Avg and Rank, such as 'Fishr=Fishr (ours)'; other options take the old "
        "names",
        metavar="OLD=NEW",
    )
    cite: bool = option(
        False,
        help="LaTeX: cite the papers of algorithms, datasets and model selection; --format bibtex prints their entries",
    )
    pictures: bool = option(
        False,
        help="HTML: also draw all plots as pictures, for readers without JavaScript and for print; takes minutes for a "
        "large sweep",
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name in set(self.selection) - {"all"}:
            resolve_method(name)
        if self.versus and not len(self.versus) == len(set(self.versus)) == 2:
            raise UsageError(f"--versus requires two different algorithms, not {' '.join(self.versus)}")

    @property
    def selections(self) -> list[str]:
        """The names of the requested selection methods, each once."""
        if not self.selection or "all" in self.selection:
            return list(SELECTION_METHODS)
        return list(dict.fromkeys(map(resolve_method, self.selection)))


@dataclass(frozen=True)
class Table:
    """A table of one selection method: one row per algorithm, one column per environment of the dataset `name`.

    The table called AVERAGES has one column per dataset. `name`, `columns` and the keys of `rows` are names in the
    records; `title`, `headers` and `titles` give the printed ones.

    Attributes:
        titles: the printed names of algorithms.
        protocol: the numbers of requested trials and hyperparameter draws, as text.
    """

    selection: str
    name: str
    columns: list[str]
    rows: dict[str, list[Cell]]
    options: ReportOptions
    titles: Titles
    protocol: str

    @property
    def title(self) -> str:
        return self.titles(self.name)

    @property
    def headers(self) -> list[str]:
        """The printed names of the columns."""
        return [self.format_column(column) for column in self.columns]

    def format_column(self, column: str) -> str:
        """Return the printed name of a column."""
        if column == RELATIVE:
            return f"{RELATIVE} {self.titles(str(self.options.relative_to))}"
        return self.titles(column) if self.name == AVERAGES else self.titles.environment(self.name, column)

    def format_result(self, cell: Cell, plus_minus: str = "+/-") -> str:
        """Return a cell as text, without its mark: "70.5 +/- 0.4" or "70.5 [69.1, 71.9]"; "X" if missing.

        A single trial has no error: "70.5 (n = 1)". A difference has a sign: "+1.3".
        """
        if cell.is_missing:
            return MISSING_MARK
        if cell.column == RELATIVE:
            is_reference = cell.algorithm == self.options.relative_to
            return "-" if is_reference else format_number(cell.mean, self.options.decimals, "+")
        if _is_single_trial(cell):
            return f"{self._rounded(cell.mean)} ({SINGLE_TRIAL})"
        if not np.isnan(cell.low):
            return f"{self._rounded(cell.mean)} [{self._rounded(cell.low)}, {self._rounded(cell.high)}]"
        if cell.column == RANK:
            return format_number(cell.mean, _rank_decimals(self.options.decimals))
        return self._with_error(cell.mean, cell.standard_error, plus_minus)

    def format_published(self, cell: Cell, plus_minus: str = "+/-") -> str:
        """Return the published result of a cell as text; "-" if there is none."""
        if cell.reference is None:
            return "-"
        return self._with_error(cell.reference.accuracy, cell.reference.standard_error, plus_minus)

    def format_difference(self, cell: Cell) -> str:
        """Return the mean minus the published accuracy as text, with its sign; "-" if either is missing."""
        return "-" if np.isnan(cell.difference) else format_number(cell.difference, self.options.decimals, "+")

    def is_compared(self, cells: Iterable[Cell]) -> bool:
        """Return whether to show published results next to these cells."""
        return bool(self.options.compare) and any(cell.reference for cell in cells)

    def _with_error(self, mean: float, standard_error: float, plus_minus: str) -> str:
        text = self._rounded(mean)
        return text if np.isnan(standard_error) else f"{text} {plus_minus} {self._rounded(standard_error)}"

    def _rounded(self, number: float) -> str:
        return format_number(number, self.options.decimals)

    @property
    def cells(self) -> Iterator[Cell]:
        return (cell for row in self.rows.values() for cell in row)

    @cached_property
    def notes(self) -> list[str]:
        """The notes below the table, one per line: the meaning of marks and columns, and what is missing."""
        notes = []
        own = [cell for cell in self.cells if cell.column not in SUMMARIES]
        if any(cell.is_missing for cell in self.cells):
            needs = "; this method requires every pair of test environments" if self.selection in WITH_PAIRS else ""
            counts = self._list_counts(cell for cell in own if cell.is_missing)
            notes.append(
                f"{MISSING_MARK}: no run to select from, or an average that includes such a cell{needs}{counts}"
            )
        for mark, meaning in MARKS.items():
            if any(mark in cell.mark for cell in self.cells):
                marked = [cell for cell in own if mark in cell.mark and mark != UNFINISHED_MARK]
                notes.append(meaning + self._list_counts(marked))
        if any(map(_is_single_trial, self.cells)):
            uncertainty = "interval" if self.options.interval == "bootstrap" else "standard error"
            notes.append(f"{SINGLE_TRIAL}: a single trial, which has no {uncertainty}")
        if RELATIVE in self.columns:
            notes.append(
                f"{self.format_column(RELATIVE)}: {self.format_column(AVERAGE)} minus that of "
                f"{self.titles(str(self.options.relative_to))}, in percentage points, computed before rounding"
            )
        if RANK in self.columns:
            ranked = sum(not row[-1].is_missing for row in self.rows.values())
            notes.append(
                f"{self.titles(RANK)}: mean rank over datasets (1 is best) among the algorithms that have every "
                f"dataset ({ranked})"
            )
        if self.options.interval == "bootstrap":
            column = "dataset" if self.name == AVERAGES else "environment"
            notes.append(
                "[low, high]: 95% stratified bootstrap interval over trials, too narrow with few trials; averages have "
                f"one only if every {column} has results"
            )
        if self.options.compare:
            sources = dict.fromkeys(cell.reference.source for cell in self.cells if cell.reference)
            notes.append(f"published: {'; '.join(sources) or 'no results for this table'}")
        return notes

    def _list_counts(self, cells: Iterable[Cell]) -> str:
        """Return the counts of these cells in parentheses, merging equal ones; "" for no cells."""
        columns: dict[tuple[str, str], list[str]] = defaultdict(list)
        for cell in cells:
            columns[self.titles(cell.algorithm), cell.counts].append(self.format_column(cell.column))
        algorithms: dict[tuple[str, str], list[str]] = defaultdict(list)
        for (algorithm, counts), names in columns.items():
            algorithms[", ".join(names), counts].append(algorithm)
        texts = []
        for (joined, counts), names in algorithms.items():
            is_every = len(names) == len(self.rows) > 2
            texts.append(f"{'all algorithms' if is_every else ', '.join(names)} on {joined}: {counts}")
        return f" ({'; '.join(texts)})" if texts else ""


def make_table(cells: Sequence[Cell], options: ReportOptions, titles: Titles, protocol: str) -> Table:
    """Return the table of these cells, which are all cells of one table, row by row."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.algorithm, []).append(cell)
    columns = list(zip(*rows.values(), strict=True))
    for i, column in enumerate(columns):
        for cell, place in zip(column, _places(column, options.decimals), strict=True):
            rows[cell.algorithm][i] = replace(cell, place=place)
    names = [column[0].column for column in columns]
    return Table(cells[0].selection, cells[0].table, names, rows, options, titles, protocol)


def _places(column: Sequence[Cell], decimals: int) -> list[int]:
    """Return 1 for a column's best cells, 2 for the second best, otherwise 0; cells that print the same are tied.

    Differences from another algorithm have no places: they would repeat those of the averages.
    """
    if column[0].column == RELATIVE:
        return [0] * len(column)
    if column[0].column == RANK:
        decimals = _rank_decimals(decimals)
    numbers = [None if cell.is_missing else float(format_number(cell.mean, decimals)) for cell in column]
    levels = sorted({n for n in numbers if n is not None}, reverse=column[0].column != RANK)
    if len(levels) < 2:
        return [0] * len(column)
    return [levels.index(n) + 1 if n in levels[:2] else 0 for n in numbers]


def _rank_decimals(decimals: int) -> int:
    """Return the number of decimals of mean ranks, which say little as integers."""
    return max(1, decimals)


def format_number(number: float, decimals: int, sign: str = "") -> str:
    """Return a rounded number as text, zero without a minus; with `sign` "+", positive numbers have a plus."""
    text = f"{number:{sign}.{decimals}f}"
    return text if float(text) else f"{0:{sign}.{decimals}f}"


def _is_single_trial(cell: Cell) -> bool:
    """Return whether a cell is the mean over a single trial, whose standard error of 0 says nothing."""
    return cell.trials == 1 and not np.isnan(cell.standard_error)
