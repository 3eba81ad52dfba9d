"""All tables of a sweep, with what they rest on and what is missing, before they are text, LaTeX or a page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from domainbed.datasets import DATASETS
from domainbed.errors import UsageError, suggest
from domainbed.model_selection import SELECTION_METHODS, WITH_PAIRS, best_hparams
from domainbed.reporting.cells import (
    AVERAGE,
    algorithms_of,
    average_cells,
    datasets_of,
    environment_names,
    make_cells,
    scores_of,
)
from domainbed.reporting.layout import AVERAGES, MISSING, ReportOptions, Table, make_table, printed
from domainbed.reporting.load import Sweep
from domainbed.reporting.published import DRAWS, MADE_OTHERWISE, TRIALS
from domainbed.reporting.statistics import bootstrap_interval, paired_difference, probability_of_improvement
from domainbed.sweep.status import JobState

# What the published tables rest on, besides each dataset's number of steps.
COUNTED = (("hparams_seed", DRAWS, "draws"), ("trial_seed", TRIALS, "trials"))
_SETTINGS = "hparams None, holdout_fraction 0.2, task domain_generalization"
PUBLISHED_SETTINGS = {_SETTINGS, f"{_SETTINGS}, precision fp32"}  # TF32, the default, or none: it depended on the GPU

VERSUS = ["dataset", "difference", "low", "high", "probability", "p_low", "p_high", "trials"]


@dataclass(frozen=True)
class Section:
    """What one selection method says.

    Attributes:
        chosen: the record chosen from each run (`model_selection`).
        best: of these the best of each trial, behind the tables' cells.
        why_empty: where there is no table, why.
        versus: for two algorithms, a row a dataset and AVERAGE: `dataset`, `difference` (mean, percent points),
            `low`, `high`, `probability` (that the first beats the second), `p_low`, `p_high`, `trials`.
    """

    selection: str
    tables: list[Table]
    chosen: pd.DataFrame
    best: pd.DataFrame
    why_empty: str
    versus: pd.DataFrame | None


@dataclass(frozen=True)
class Report:
    """All that a sweep has to say; `names` are its datasets' environments, `notes` concern all of it."""

    sweep: Sweep
    wanted: ReportOptions
    names: Mapping[str, Sequence[str]]
    algorithms: Sequence[str]
    sections: list[Section]
    notes: list[str]

    @property
    def progress(self) -> str:
        """How far the sweep is: "84 runs asked for: 80 done, 1 failed, 3 not launched"."""
        counts = Counter(self.sweep.runs["state"])
        told = ", ".join(f"{counts[state]:,} {state.value}" for state in reversed(JobState) if counts[state])
        return f"{len(self.sweep.runs):,} runs asked for: {told}"


def make_report(sweep: Sweep, wanted: ReportOptions) -> Report:
    """All tables that are wanted.

    Raises:
        UsageError: a selection method, a dataset or an algorithm that is not there.
    """
    datasets = select_names(wanted.datasets, datasets_of(sweep.runs), "--datasets")
    algorithms = select_names(wanted.algorithms, algorithms_of(sweep.runs), "--algorithms")
    _check_versus(wanted.versus, algorithms, algorithms_of(sweep.runs))
    names = {dataset: environment_names(sweep.jobs, dataset) for dataset in datasets}
    for dataset in (dataset for dataset in datasets if not names[dataset]):  # without records, what was asked for tells
        test_envs = sweep.runs.loc[sweep.runs["dataset"] == dataset, "test_envs"]
        names[dataset] = [f"env{i}" for i in range(1 + max(map(max, test_envs)))]
    sections = [_section(sweep, wanted, s, names, algorithms) for s in wanted.selections or SELECTION_METHODS]
    notes = (
        []
        if sweep.is_remembered
        else [
            "What was asked for is not kept here, or can't be read; taken for it are, for each dataset, "
            "all trials and draws that any algorithm has."
        ]
    )
    if wanted.compare_published:
        notes += _differences_of_protocol(sweep, datasets, algorithms)
    return Report(sweep, wanted, names, algorithms, sections, notes)


def select_names(wanted: Sequence[str] | None, there: list[str], option: str) -> list[str]:
    """What is wanted of what is there, each once; all of it where nothing is said.

    Raises:
        UsageError: something wanted is not there.
    """
    for name in wanted or ():
        if name not in there:
            raise UsageError(f"{option} {name}: this sweep has no such runs; {suggest(name, there)}")
    return list(dict.fromkeys(wanted)) if wanted else there


def _check_versus(versus: Sequence[str] | None, shown: Sequence[str], there: list[str]) -> None:
    """Raises UsageError where there are not two to compare."""
    select_names(versus, there, "--versus")
    for name in versus or ():
        if name not in shown:
            raise UsageError(f"--versus {name}: --algorithms leaves it out")
    if versus and len(set(versus)) < 2:
        raise UsageError(f"--versus {' '.join(versus)}: name two different algorithms")


def _section(
    sweep: Sweep, wanted: ReportOptions, selection: str, names: Mapping[str, Sequence[str]], algorithms: Sequence[str]
) -> Section:
    chosen = sweep.chosen(selection)
    chosen = chosen[chosen["dataset"].isin(list(names))]
    chosen = chosen[chosen["algorithm"].isin(algorithms)]
    best = best_hparams(chosen)
    if best.empty:
        needs = "runs with a single test environment, and others to train on"
        if selection in WITH_PAIRS:
            needs = "the runs with each pair of test environments (sweep launch --leave_one_out)"
        return Section(selection, [], chosen, best, f"No table: it needs {needs}.", None)
    with_pairs = selection in WITH_PAIRS
    cells = make_cells(sweep.runs, chosen, names, algorithms, with_pairs, wanted.bootstrap)
    over_all = average_cells(cells)
    if wanted.bootstrap:
        for algorithm in algorithms:
            scores, weights = scores_of(best, names, algorithm)
            is_it = (over_all["dataset"] == AVERAGE) & (over_all["algorithm"] == algorithm)
            # Where datasets have different trials, these scores are not those of the mean.
            if len(scores) and (over_all.loc[is_it, "trials"] == len(scores) * len(names)).all():
                over_all.loc[is_it, ["low", "high"]] = bootstrap_interval(scores.to_numpy(), weights)
    tables = [make_table(wanted, selection, dataset, cells[cells["dataset"] == dataset], names) for dataset in names]
    tables.append(make_table(wanted, selection, AVERAGES, over_all, names))
    versus = _versus(best, names, *wanted.versus) if wanted.versus else None
    return Section(selection, tables, chosen, best, "", versus)


def versus_rows(report: Report, section: Section) -> tuple[str, list[str], list[list[str]], str]:
    """A section's paired comparison as texts: title, headers, rows, and a note on what they mean."""
    assert report.wanted.versus is not None
    assert section.versus is not None
    first, second = report.wanted.versus
    decimals = report.wanted.decimals
    rows = []
    for row in section.versus.to_dict("records"):
        if row["trials"]:
            difference = [printed(row[name], decimals, "+") for name in ("difference", "low", "high")]
            probability = [printed(row[name], 2) for name in ("probability", "p_low", "p_high")]
            texts = [difference[0], "[{}, {}]".format(*difference[1:])]
            texts += [probability[0], "[{}, {}]".format(*probability[1:])]
        else:
            texts = [MISSING] * 4
        rows.append([row["dataset"], *texts, str(row["trials"])])
    better = f"P({first} > {second})"
    headers = ["Dataset", "Difference", "Difference, 95 %", better, f"{better}, 95 %", "Trials"]
    note = (
        f"Difference: percent points by which {first} is above {second}, paired by trial. P: probability of "
        "improvement, that a trial of the first beats one of the second on a test environment. Both are over the "
        "trials that have every test environment for both, with stratified bootstrap intervals, too narrow where "
        "trials are few (a single one has no spread)."
    )
    return f"{first} against {second}", headers, rows, note


def _versus(best: pd.DataFrame, names: Mapping[str, Sequence[str]], first: str, second: str) -> pd.DataFrame:
    """The paired comparison of two algorithms, on the trials that both have: see Section.versus."""
    rows = []
    for dataset in [*names, AVERAGE]:
        of_dataset = names if dataset == AVERAGE else {dataset: names[dataset]}
        (a, weights), (b, _) = scores_of(best, of_dataset, first), scores_of(best, of_dataset, second)
        both = a.index.intersection(b.index)
        row = {"dataset": dataset, "trials": len(both)}
        if len(both):
            difference = paired_difference(a.loc[both].to_numpy(), b.loc[both].to_numpy(), weights)
            probability = probability_of_improvement(a.loc[both].to_numpy(), b.loc[both].to_numpy(), weights)
            row |= difference._asdict() | {
                "probability": probability.probability,
                "p_low": probability.low,
                "p_high": probability.high,
            }
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=VERSUS)


def _differences_of_protocol(sweep: Sweep, datasets: Sequence[str], algorithms: Sequence[str]) -> list[str]:
    """In what the sweep differs from the published protocol, a line a dataset."""
    notes = []
    for dataset in datasets:
        different: dict[str, None] = {}
        for algorithm in algorithms:
            runs, jobs = (
                f[(f["dataset"] == dataset) & (f["algorithm"] == algorithm)] for f in (sweep.runs, sweep.jobs)
            )
            here = [(runs[c].nunique(), usual, what) for c, usual, what in COUNTED if len(runs)]
            if dataset in DATASETS:
                here += [(int(n), DATASETS[dataset].N_STEPS, "steps") for n in sorted(jobs["steps"].dropna().unique())]
            different |= {f"{n:,} {what} (published: {usual:,})": None for n, usual, what in here if n != usual}
            others = {settings.partition(", ")[2] for settings in jobs["settings"]} - PUBLISHED_SETTINGS
            different |= dict.fromkeys(sorted(others))
        if different:
            notes.append(f"{dataset} does not compare with what was published: {'; '.join(different)}.")
        if dataset in MADE_OTHERWISE:
            notes.append(f"{dataset}: {MADE_OTHERWISE[dataset]}.")
    return notes
