"""How a table's cells are told: figures, marks, the best and the second, and the notes beneath."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from domainbed.model_selection import WITH_PAIRS
from domainbed.reporting.cells import AVERAGE, RANK
from domainbed.reporting.published import PublishedResult, published, published_average
from domainbed.sweep.status import JobState

AVERAGES = "Averages"
MISSING = "X"
FEWER = "*"
UNFINISHED = "~"


@dataclass(frozen=True)
class ReportOptions:
    """What a report shall hold.

    Attributes:
        selections: the selection methods.
        datasets, algorithms: those that are wanted, in this order; None for all, in the published tables' order.
        decimals: of the printed figures.
        bootstrap: 95 % stratified bootstrap intervals in place of the standard error.
        compare_published: the published figures beside ours.
        versus: two algorithms to compare, the first against the second.
    """

    selections: Sequence[str] = ()
    datasets: Sequence[str] | None = None
    algorithms: Sequence[str] | None = None
    decimals: int = 1
    bootstrap: bool = False
    compare_published: bool = False
    versus: Sequence[str] | None = None


class Cell(NamedTuple):
    """One cell: accuracies in percent (a rank's mean is a place), and what they rest on; see `tables.summarise`.

    `place` is 1 for the best of its column as it is printed, 2 for the second, else 0; `reference` is what was
    published.
    """

    algorithm: str
    column: str
    mean: float
    error: float
    low: float
    high: float
    trials: int
    of_trials: int
    unfinished: int
    useless: int
    asked: int
    done: int
    states: dict[str, int]
    place: int
    reference: PublishedResult | None

    @property
    def is_missing(self) -> bool:
        return bool(np.isnan(self.mean))

    @property
    def is_partial(self) -> bool:
        """Whether runs or trials that were asked for are not done, or of no use to the method."""
        return self.done < self.asked or self.trials < self.of_trials or self.useless > 0

    @property
    def mark(self) -> str:
        """What stands behind the figure; the notes under the table tell its meaning."""
        if self.is_missing:
            return ""
        return (FEWER if self.is_partial else "") + (UNFINISHED if self.unfinished else "")

    @property
    def difference(self) -> float:
        """Ours minus the published accuracy; NaN where either is missing."""
        return self.mean - self.reference.accuracy if self.reference else np.nan

    @property
    def counts(self) -> str:
        """What it rests on: "1 of 2 trials, 3 of 4 runs done (1 failed)"."""
        if not self.asked:
            return "not asked for"
        others = ", ".join(f"{n} {state}" for state, n in self.states.items() if n and state != JobState.DONE.value)
        return (
            f"{self.trials} of {self.of_trials} trials, {self.done} of {self.asked} runs done"
            + (f" ({others})" if others else "")
            + (f", {self.useless} of which the method can't choose from" if self.useless else "")
        )


@dataclass(frozen=True)
class Table:
    """A row an algorithm, a column an environment of the dataset `name`, or (for AVERAGES) a dataset."""

    selection: str
    name: str
    columns: list[str]
    rows: dict[str, list[Cell]]
    wanted: ReportOptions

    def number(self, cell: Cell, plus_minus: str = "+/-") -> str:
        """A cell as text: "70.5 +/- 0.4", or "70.5 [69.1, 71.9]"; MISSING where there is none. Without its mark."""
        if cell.is_missing:
            return MISSING
        if not np.isnan(cell.low):
            return f"{self._rounded(cell.mean)} [{self._rounded(cell.low)}, {self._rounded(cell.high)}]"
        return self._with_error(cell.mean, cell.error, plus_minus)

    def published(self, cell: Cell, plus_minus: str = "+/-") -> str:
        """What was published for a cell, as text; "-" where nothing was."""
        if cell.reference is None:
            return "-"
        return self._with_error(cell.reference.accuracy, cell.reference.error, plus_minus)

    def difference(self, cell: Cell) -> str:
        """Ours minus published, signed; "-" where either is missing."""
        return "-" if np.isnan(cell.difference) else printed(cell.difference, self.wanted.decimals, "+")

    def is_compared(self, cells: Sequence[Cell]) -> bool:
        """Whether a row of cells has published figures to stand beside, which are wanted."""
        return self.wanted.compare_published and any(cell.reference for cell in cells)

    def _with_error(self, mean: float, error: float, plus_minus: str) -> str:
        text = self._rounded(mean)
        return text if np.isnan(error) else f"{text} {plus_minus} {self._rounded(error)}"

    def _rounded(self, figure: float) -> str:
        return printed(figure, self.wanted.decimals)

    @property
    def cells(self) -> Iterator[Cell]:
        return (cell for row in self.rows.values() for cell in row)

    @cached_property
    def notes(self) -> list[str]:
        """What the marks and columns mean, and which runs are missing, a line each."""
        notes = []
        kind = "dataset" if self.name == AVERAGES else "environment"
        own = [cell for cell in self.cells if cell.column not in (AVERAGE, RANK)]
        if any(cell.is_missing for cell in self.cells):
            which = _told(cell for cell in own if cell.is_missing)
            needs = " (this method needs every pair of test environments, too)" if self.selection in WITH_PAIRS else ""
            notes.append(f"{MISSING}: no run to choose from{needs}, or an average over such a cell{which}")
        if any(FEWER in cell.mark for cell in self.cells):
            which = _told(cell for cell in own if FEWER in cell.mark)
            notes.append(f"{FEWER}: not everything that was asked for is done, or of use{which}")
        if any(UNFINISHED in cell.mark for cell in self.cells):
            notes.append(f"{UNFINISHED}: from runs that are not finished; what they have recorded so far counts")
        if any(cell.trials == 1 and not np.isnan(cell.error) for cell in self.cells):
            notes.append("A single trial has no spread: its error of 0 says nothing.")
        if RANK in self.columns:
            ranked = sum(not row[-1].is_missing for row in self.rows.values())
            notes.append(
                f"{RANK}: mean place over datasets (1 is the best) among algorithms that have them all ({ranked})"
            )
        if self.wanted.bootstrap:
            notes.append(
                "[low, high]: 95 % stratified bootstrap interval over trials, too narrow where these are few; "
                f"none without every {kind}"
            )
        if self.wanted.compare_published:
            sources = dict.fromkeys(cell.reference.source for cell in self.cells if cell.reference)
            notes.append(f"published: {'; '.join(sources)}" if sources else "published: nothing for this table")
        return notes


def printed(figure: float, decimals: int, sign: str = "") -> str:
    """A figure with so many decimals, and no minus before a zero; `sign` "+" for one before what is positive, too."""
    text = f"{figure:{sign}.{decimals}f}"
    return text if float(text) else f"{0:{sign}.{decimals}f}"


def make_table(
    wanted: ReportOptions, selection: str, name: str, cells: pd.DataFrame, names: Mapping[str, Sequence[str]]
) -> Table:
    """One table.

    Args:
        name: the dataset, or AVERAGES.
        cells: those of the dataset in `tables.summarise`, or of `tables.averages`.
        names: the report's datasets, and their environments' names.
    """
    order = [*names, AVERAGE, RANK] if name == AVERAGES else [*names[name], AVERAGE]
    rows: dict[str, list[Cell]] = {}
    for algorithm, of_algorithm in cells.groupby("algorithm", sort=False):
        by_column = of_algorithm.set_index("dataset" if name == AVERAGES else "environment").to_dict("index")
        rows[str(algorithm)] = [
            _cell(by_column[column] | {"column": column}, selection, name, list(names)) for column in order
        ]
    for i, column in enumerate(order):
        places = _places([row[i] for row in rows.values()], wanted.decimals, column == RANK)
        for row, place in zip(rows.values(), places, strict=True):
            row[i] = row[i]._replace(place=place)
    return Table(selection, name, order, rows, wanted)


def _cell(cell: Mapping[Hashable, Any], selection: str, table: str, datasets: list[str]) -> Cell:
    column, algorithm = cell["column"], cell["algorithm"]
    if column == RANK:
        reference = None
    elif table != AVERAGES:
        reference = published(selection, table, column, algorithm)
    elif column == AVERAGE:
        reference = published_average(selection, datasets, algorithm)
    else:
        reference = published(selection, column, AVERAGE, algorithm)
    states = {state.value: int(cell[state.name.lower()]) for state in JobState}
    figures = {name: cell[name] for name in Cell._fields if name in cell}
    return Cell(**figures, states=states, place=0, reference=reference)


def _places(cells: Sequence[Cell], decimals: int, lowest_is_best: bool) -> list[int]:
    """Of a column's cells: 1 for the best, 2 for the second, else 0. What is printed alike is equal."""
    figures = [None if cell.is_missing else float(printed(cell.mean, decimals)) for cell in cells]
    levels = sorted({figure for figure in figures if figure is not None}, reverse=not lowest_is_best)
    if len(levels) < 2:
        return [0] * len(cells)
    return [levels.index(figure) + 1 if figure in levels[:2] else 0 for figure in figures]


def _told(cells: Iterable[Cell]) -> str:
    """Which cells these are, and what each rests on."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for cell in cells:
        alike[cell.algorithm, cell.counts].append(cell.column)
    told = "; ".join(f"{algorithm} {', '.join(columns)}: {counts}" for (algorithm, counts), columns in alike.items())
    return f" ({told})" if told else ""
