"""A report: all tables of a sweep, with notes and comparisons, independent of the output format."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from domainbed.algorithms import ALGORITHMS, FAMILIES, GROUPS
from domainbed.errors import UsageError, suggest
from domainbed.model_selection import WITH_PAIRS, best_hparams
from domainbed.reporting.cells import (
    AVERAGE,
    AVERAGES,
    Cell,
    algorithms_of,
    average_cells,
    benchmark_scores,
    datasets_of,
    environment_names,
    frozen_backbone,
    make_cells,
    testable,
    testable_names,
    with_differences,
)
from domainbed.reporting.comparisons import Significance, compare_all
from domainbed.reporting.layout import ReportOptions, Table, make_table
from domainbed.reporting.load import Sweep
from domainbed.reporting.notes import (
    algorithm_notes,
    omitted_notes,
    protocol_notes,
    pruned_notes,
    unused_notes,
    warm_up_notes,
)
from domainbed.reporting.on_the_line import LineResult, compare_with_line
from domainbed.reporting.power import SmallestDifference, smallest_differences
from domainbed.reporting.statistics import bootstrap_interval
from domainbed.reporting.titles import Titles, make_titles
from domainbed.reporting.versus import Comparison, compare_two
from domainbed.sweep.status import JobState


@dataclass(frozen=True)
class Section:
    """The tables of one selection method.

    Attributes:
        best: the runs behind the cells: the best run of each trial (`model_selection.best_hparams`).
        why_empty: the reason if there is no table, otherwise "".
        versus: the comparison of two algorithms on each dataset and on average; empty if not requested.
        power: the smallest differences that sweeps of several sizes show; empty if not requested.
        significance: the tests of all algorithms; None if not requested.
    """

    selection: str
    tables: list[Table]
    best: pd.DataFrame
    why_empty: str = ""
    versus: Sequence[Comparison] = ()
    power: Sequence[SmallestDifference] = ()
    significance: Significance | None = None


@dataclass(frozen=True)
class Report:
    """All tables of a sweep.

    Attributes:
        environments: the names of each dataset's environments.
        titles: the printed names of algorithms, datasets and environments.
        notes: notes on the whole report, one per line.
        lines: all runs compared with the line of the baseline; empty if not requested.
    """

    sweep: Sweep
    options: ReportOptions
    environments: Mapping[str, Sequence[str]]
    algorithms: Sequence[str]
    titles: Titles
    sections: list[Section]
    notes: list[str]
    lines: Sequence[LineResult] = ()

    @property
    def progress(self) -> str:
        """The number of runs in each state: "84 runs requested: 80 done, 1 failed, 3 not launched"."""
        counts = Counter(self.sweep.runs["state"])
        states = ", ".join(f"{counts[state]:,} {state.value}" for state in reversed(JobState) if counts[state])
        return f"{len(self.sweep.runs):,} runs requested: {states}"

    @property
    def warnings(self) -> list[str]:
        """What a format without a place for notes leaves out: why tables are empty, notes, and the sweep's problems."""
        reasons = [f"{section.selection}: {section.why_empty}" for section in self.sections if section.why_empty]
        return [*reasons, *self.notes, *self.sweep.problems]


def make_report(sweep: Sweep, options: ReportOptions) -> Report:
    """Return the requested tables of a sweep.

    Raises:
        UsageError: the sweep has no runs of a requested dataset or algorithm.
    """
    datasets = select_datasets(options.datasets, datasets_of(sweep.runs))
    algorithms = select_algorithms(options.algorithms, algorithms_of(sweep.runs))
    compared = {"--versus": options.versus, "--relative_to": filter(None, [options.relative_to])}
    if options.significance or options.on_the_line:
        compared["--baseline"] = (options.baseline,)
    for flag, names in compared.items():
        for name in names:
            check_compared(name, algorithms, algorithms_of(sweep.runs), flag)
    titles = sweep_titles(sweep, options.rename)
    environments = {dataset: testable_names(sweep.jobs, dataset) for dataset in datasets}
    for dataset in (dataset for dataset in datasets if not environments[dataset]):  # it has no records yet
        test_envs = sweep.runs.loc[sweep.runs["dataset"] == dataset, "test_envs"]
        environments[dataset] = [f"env{i}" for i in range(1 + max(map(max, test_envs)))]
    sections = [_make_section(sweep, options, name, environments, algorithms, titles) for name in options.selections]
    notes = []
    if not sweep.has_launch_log:
        notes.append(
            "The launch log of this sweep is missing or unreadable: the requested runs are assumed to be, for each "
            "dataset, all trials and hyperparameter draws that any algorithm has."
        )
    uses_pairs = not any(section.selection in WITH_PAIRS and not section.tables for section in sections)
    notes += [*pruned_notes(sweep, options), *unused_notes(sweep, uses_pairs), *omitted_notes(sweep)]
    notes += warm_up_notes(sweep, datasets, algorithms, titles)
    if options.compare:
        notes += [note for dataset in datasets for note in protocol_notes(sweep, dataset, algorithms, titles(dataset))]
        notes += algorithm_notes(algorithms, titles)
    lines = []
    if options.on_the_line:
        selected = testable(sweep.select("training-domain"), environments)
        lines = compare_with_line(selected, environments, algorithms, options.baseline)
    return Report(sweep, options, environments, algorithms, titles, sections, notes, lines)


def sweep_titles(sweep: Sweep, rename: Collection[str]) -> Titles:
    """Return the printed names of a sweep's algorithms, datasets and environments (`titles.make_titles`).

    A dataset with a frozen backbone is printed as `PACS (frozen resnet50)`.
    """
    environments = {dataset: environment_names(sweep.jobs, dataset) for dataset in datasets_of(sweep.runs)}
    titles = make_titles(rename, algorithms_of(sweep.runs), environments)
    backbones = {dataset: frozen_backbone(sweep.jobs, dataset) for dataset in environments}
    if len(set(backbones.values())) == 1:
        backbones[AVERAGES] = next(iter(backbones.values()))
    labeled = {name: f"{titles(name)} ({backbone})" for name, backbone in backbones.items() if backbone}
    return Titles({**titles.by_name, **labeled})


def select_names(requested: Collection[str] | None, available: list[str], option: str) -> list[str]:
    """Return the requested names, each once; all available names if none are requested.

    Raises:
        UsageError: a requested name is not available; `option` is the flag to report.
    """
    for name in requested or ():
        if name not in available:
            raise UsageError(f"{option} {name}: this sweep has no such runs; {suggest(name, available)}")
    return list(dict.fromkeys(requested)) if requested else available


def check_compared(name: str, selected: Collection[str], available: list[str], option: str) -> None:
    """Check that an algorithm with which others are compared is among those selected.

    Raises:
        UsageError: it is not available, or is not selected; `option` is the flag to report.
    """
    select_names([name], available, option)
    if name not in selected:
        raise UsageError(f"{option} {name}: not among --algorithms; add it there")


def select_datasets(requested: Collection[str] | None, available: list[str]) -> list[str]:
    """Return the requested datasets, as `select_names`; `all` stands for all available ones."""
    names = [name for word in requested or () for name in (available if word == "all" else [word])]
    return select_names(names, available, "--datasets")


def select_algorithms(requested: Collection[str] | None, available: list[str]) -> list[str]:
    """Return the requested algorithms, as `select_names`; a group stands for its available members.

    Raises:
        UsageError: a requested algorithm, or every member of a group, is not available.
    """
    names: list[str] = []
    for name in requested or ():
        is_group = name in GROUPS and name not in (*available, *ALGORITHMS)
        members = available if name == "all" else [member for member in FAMILIES.get(name, ()) if member in available]
        names += members if is_group and members else [name]
    return select_names(names, available, "--algorithms")


def _make_section(
    sweep: Sweep,
    options: ReportOptions,
    selection: str,
    environments: Mapping[str, Sequence[str]],
    algorithms: Sequence[str],
    titles: Titles,
) -> Section:
    selected = testable(sweep.select(selection), environments)
    selected = selected[selected["algorithm"].isin(algorithms)]
    best = best_hparams(selected)
    if best.empty:
        needs = "runs with a single test environment and at least one other environment to train on"
        if selection in WITH_PAIRS:
            needs = "the runs with each pair of test environments (sweep launch --leave_one_out)"
            if (sweep.jobs["eval"] == "selection").any():
                needs += ", and all runs evaluated by --eval leave_one_out instead of selection"
        return Section(selection, [], best, why_empty=f"No table: this method requires {needs}.")
    bootstrap = options.interval == "bootstrap"
    backbones = {dataset: frozen_backbone(sweep.jobs, dataset) for dataset in environments}
    cells = make_cells(sweep.runs, selected, selection, environments, algorithms, backbones, bootstrap)
    averages = average_cells(cells, backbones)
    if bootstrap:
        averages = [_with_interval(cell, best, environments) for cell in averages]
    significance = None
    if options.significance:
        significance = compare_all(best, cells, environments, algorithms, options.baseline)
    if options.relative_to:
        cells = with_differences(cells, options.relative_to)
        averages = with_differences(averages, options.relative_to)
    runs = sweep.runs[sweep.runs["dataset"].isin(list(environments)) & sweep.runs["algorithm"].isin(algorithms)]
    tables = [
        make_table(
            [c for c in cells if c.table == dataset], options, titles, _protocol(runs[runs["dataset"] == dataset])
        )
        for dataset in environments
    ]
    tables.append(make_table(averages, options, titles, _protocol(runs)))
    versus = compare_two(best, environments, *options.versus) if options.versus else []
    power = smallest_differences(selected, environments, algorithms) if options.power else []
    return Section(selection, tables, best, versus=versus, power=power, significance=significance)


def _protocol(runs: pd.DataFrame) -> str:
    """Return the numbers of trials and draws per algorithm as text: "3 trials with 20 hyperparameter draws each"."""
    counts = runs.groupby(["dataset", "algorithm"])[["trial_seed", "hparams_seed"]].nunique()
    trials, draws = (
        f"{n.min()} to {n.max()}" if n.nunique() > 1 else f"{n.max() if len(n) else 0}"
        for n in (counts["trial_seed"], counts["hparams_seed"])
    )
    each = " each" if trials != "1" else ""
    return f"{trials} trial{'s' * (trials != '1')} with {draws} hyperparameter draw{'s' * (draws != '1')}{each}"


def _with_interval(cell: Cell, best: pd.DataFrame, environments: Mapping[str, Sequence[str]]) -> Cell:
    """Return the cell, with a bootstrap interval if it is an average over datasets."""
    if cell.column != AVERAGE:
        return cell
    scores, weights = benchmark_scores(best, environments, cell.algorithm)
    if len(scores) < 2 or cell.trials != len(scores) * len(environments):
        return cell  # datasets have different trials, so the mean of these scores is not the cell's
    low, high = bootstrap_interval(scores.to_numpy(), weights)
    return replace(cell, low=low, high=high)
