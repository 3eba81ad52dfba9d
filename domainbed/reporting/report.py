"""A report: all tables of a sweep, with notes and comparisons, independent of the output format."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from domainbed.algorithms import ALGORITHMS, FAMILIES, GROUPS
from domainbed.datasets import DATASETS
from domainbed.errors import UsageError, suggest
from domainbed.model_selection import WITH_PAIRS, best_hparams
from domainbed.records import SELECTIVE
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
    testable_names,
    with_differences,
)
from domainbed.reporting.comparisons import Significance, compare_all
from domainbed.reporting.findings import Findings, significance_findings
from domainbed.reporting.layout import MISSING_MARK, ReportOptions, Table, format_number, make_table
from domainbed.reporting.line_findings import line_findings
from domainbed.reporting.load import Sweep
from domainbed.reporting.on_the_line import LineResult, compare_with_line
from domainbed.reporting.power import LEVEL, POWER, TRIALS, SmallestDifference, smallest_differences
from domainbed.reporting.published import KNOWN_DIFFERENCES, N_HPARAMS, N_TRIALS
from domainbed.reporting.statistics import bootstrap_interval, paired_difference, probability_of_improvement
from domainbed.reporting.titles import Titles, make_titles
from domainbed.sweep.status import JobState

# In addition to each dataset's number of steps.
PUBLISHED_COUNTS = (("hparams_seed", N_HPARAMS, "hyperparameter draws"), ("trial_seed", N_TRIALS, "trials"))
_SETTINGS = "hparams None, holdout_fraction 0.2, task domain_generalization"
# Whether published runs used TF32 depended on the GPU.
PUBLISHED_SETTINGS = {_SETTINGS, f"{_SETTINGS}, precision fp32"}


class Comparison(NamedTuple):
    """A paired comparison of two algorithms on one dataset, over the trials that both have completed.

    Attributes:
        dataset: the dataset, or AVERAGE.
        difference, low, high: mean difference in percentage points, and its 95% interval; NaN without trials.
        probability, p_low, p_high: the probability that a trial of the first beats one of the second, and its 95%
            interval; NaN without trials.
        trials: the number of trials.
    """

    dataset: str
    difference: float = np.nan
    low: float = np.nan
    high: float = np.nan
    probability: float = np.nan
    p_low: float = np.nan
    p_high: float = np.nan
    trials: int = 0


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


def make_report(sweep: Sweep, options: ReportOptions) -> Report:
    """Return the requested tables of a sweep.

    Raises:
        UsageError: the sweep has no runs of a requested dataset or algorithm.
    """
    datasets = select_names(options.datasets, datasets_of(sweep.runs), "--datasets")
    algorithms = select_algorithms(options.algorithms, algorithms_of(sweep.runs))
    compared = {"--versus": options.versus, "--relative_to": filter(None, [options.relative_to])}
    if options.significance or options.on_the_line:
        compared["--baseline"] = (options.baseline,)
    for flag, names in compared.items():
        for name in names:
            select_names([name], algorithms_of(sweep.runs), flag)
            if name not in algorithms:
                raise UsageError(f"{flag} {name}: not among --algorithms; add it there")
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
    notes += [*_pruned_notes(sweep, options), *_unused_notes(sweep, sections), *_omitted_notes(sweep)]
    if options.compare:
        notes += [note for dataset in datasets for note in _protocol_notes(sweep, dataset, algorithms, titles(dataset))]
    lines = []
    if options.on_the_line:
        lines = compare_with_line(sweep.select("training-domain"), environments, algorithms, options.baseline)
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
    selected = sweep.select(selection)
    selected = selected[selected["dataset"].isin(list(environments)) & selected["algorithm"].isin(algorithms)]
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
    versus = _compare(best, environments, *options.versus) if options.versus else []
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
    if not len(scores) or cell.trials != len(scores) * len(environments):
        return cell  # datasets have different trials, so the mean of these scores is not the cell's
    low, high = bootstrap_interval(scores.to_numpy(), weights)
    return replace(cell, low=low, high=high)


def _compare(
    best: pd.DataFrame, environments: Mapping[str, Sequence[str]], first: str, second: str
) -> list[Comparison]:
    comparisons = []
    for dataset in [*environments, AVERAGE]:
        included = environments if dataset == AVERAGE else {dataset: environments[dataset]}
        first_scores, weights = benchmark_scores(best, included, first)
        second_scores, _ = benchmark_scores(best, included, second)
        trials = first_scores.index.intersection(second_scores.index)
        if len(trials):
            a, b = first_scores.loc[trials].to_numpy(), second_scores.loc[trials].to_numpy()
            difference, improvement = paired_difference(a, b, weights), probability_of_improvement(a, b, weights)
            comparisons.append(Comparison(dataset, *difference, *improvement, len(trials)))
        else:
            comparisons.append(Comparison(dataset))
    return comparisons


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
        rows.append([titles(c.dataset), *texts, str(c.trials)])
    better = f"P({first} > {second})"
    note = (
        f"Difference: {first} minus {second} in percentage points, paired by trial. {better}: probability that a trial "
        f"of {first} beats a trial of {second} on a test environment. Both use the trials in which both algorithms "
        "have results on every test environment. The bootstrap intervals are too narrow with few trials; those of a "
        "single trial have zero width."
    )
    headers = ["Dataset", "Difference", "Difference, 95%", better, f"{better}, 95%", "Trials"]
    return TextTable(f"{first} vs. {second}", headers, rows, note)


def power_table(section: Section, report: Report) -> TextTable:
    """Return the smallest differences of a section of a report, which must have some, as text."""
    rows: dict[tuple[str, int], list[str]] = {}
    for result in section.power:
        row = rows.setdefault((result.dataset, result.draws), [report.titles(result.dataset), str(result.draws)])
        row.append(format_number(result.difference, report.options.decimals))
    note = (
        "The true difference between the averages of two algorithms, in percentage points, that a two-sided paired "
        f"t-test of level {LEVEL:g} detects with probability {POWER:g}. From the variance of the differences between "
        "all pairs of algorithms over the trials of this sweep, which is itself uncertain if these are few; fewer "
        "draws: the defaults and random others of this sweep."
    )
    headers = ["Dataset", "Draws", *(f"{n} trials" for n in TRIALS)]
    return TextTable("Smallest difference that can be shown", headers, [*rows.values()], note)


def _pruned_notes(sweep: Sweep, options: ReportOptions) -> list[str]:
    """Return a note on the pruned runs, if there are any."""
    n = int((sweep.runs["state"] == JobState.PRUNED).sum())
    if not n:
        return []
    rules = f" ({'; '.join(sweep.rules)})" if sweep.rules else ""
    note = (
        f"{n:,} of {len(sweep.runs):,} runs were pruned{rules}: they stopped early, because they were behind other "
        "draws of their trial by training-domain validation. What they would have reached later is unknown."
    )
    if others := [name for name in options.selections if name != "training-domain"]:
        note += f" With {' and '.join(others)}, cells may differ more: these methods might have selected pruned runs."
    return [note]


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


def _unused_notes(sweep: Sweep, sections: Sequence[Section]) -> list[str]:
    """Return a note on the runs with several test environments that no selection method uses, if there are any."""
    lacks_pairs = any(section.selection in WITH_PAIRS and not section.tables for section in sections)
    n = sum(len(test_envs) > (1 if lacks_pairs else 2) for test_envs in sweep.runs["test_envs"])
    if not n:
        return []
    return [
        f"Runs with several test environments are in no table ({n:,} of {len(sweep.runs):,}): selection methods "
        "require a single one. Their records have the accuracy on each environment."
    ]


def _omitted_notes(sweep: Sweep) -> list[str]:
    """Return a note on the runs whose records lack most accuracies on their test environments, if there are any."""
    n = int(sweep.jobs["eval"].isin(SELECTIVE).sum())
    if not n:
        return []
    return [
        f"{n:,} of {len(sweep.jobs):,} runs were evaluated only where a selection method can select (--eval selection "
        "or leave_one_out): finished runs have the cells of a complete evaluation, but test-domain has none of "
        "unfinished ones, and curves of the test environment have gaps."
    ]


def _protocol_notes(sweep: Sweep, dataset: str, algorithms: Sequence[str], title: str) -> list[str]:
    """Return notes on how the sweep's protocol on a dataset, printed as `title`, differs from the published one."""
    differences: dict[str, None] = {}
    for algorithm in algorithms:
        runs, jobs = (f[(f["dataset"] == dataset) & (f["algorithm"] == algorithm)] for f in (sweep.runs, sweep.jobs))
        counts = [(runs[c].nunique(), usual, unit) for c, usual, unit in PUBLISHED_COUNTS if len(runs)]
        if dataset in DATASETS:
            counts += [(int(n), DATASETS[dataset].N_STEPS, "steps") for n in sorted(jobs["steps"].dropna().unique())]
        differences |= {f"{n:,} {unit} (published: {usual:,})": None for n, usual, unit in counts if n != usual}
        if n := int((runs["state"] == JobState.PRUNED).sum()):
            differences[f"{n:,} of {len(runs):,} {algorithm} runs were pruned"] = None
        settings = {text.partition(", ")[2] for text in jobs["settings"]}  # without the number of steps
        differences |= dict.fromkeys(sorted(settings - PUBLISHED_SETTINGS))
    notes = []
    if frozen_backbone(sweep.jobs, dataset):
        notes.append(f"{title}: published results are not shown, because they fine-tune the network.")
    if differences:
        notes.append(f"{title} is not comparable with the published results: {'; '.join(differences)}.")
    if dataset in KNOWN_DIFFERENCES:
        notes.append(f"{title}: {KNOWN_DIFFERENCES[dataset]}.")
    return notes
