"""Notes on a report: what its runs lack, and how they differ from the published protocol."""

import json
from collections.abc import Collection, Sequence

from domainbed.datasets import DATASETS
from domainbed.records import SELECTIVE, only_last_counts
from domainbed.reporting.cells import frozen_backbone
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import Sweep
from domainbed.reporting.published import (
    KNOWN_DIFFERENCES,
    KNOWN_DIFFERENCES_OF_ALGORITHMS,
    N_HPARAMS,
    N_TRIALS,
)
from domainbed.reporting.titles import Titles
from domainbed.sweep.status import JobState
from domainbed.warm_up import describe_unfinished, unfinished_warm_ups

# In addition to each dataset's number of steps.
PUBLISHED_COUNTS = (("hparams_seed", N_HPARAMS, "hyperparameter draws"), ("trial_seed", N_TRIALS, "trials"))
_SETTINGS = "hparams None, holdout_fraction 0.2, task domain_generalization"
# Whether published runs used TF32 depended on the GPU.
PUBLISHED_SETTINGS = {_SETTINGS, f"{_SETTINGS}, precision fp32"}


def pruned_notes(sweep: Sweep, options: ReportOptions) -> list[str]:
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


def unused_notes(sweep: Sweep, uses_pairs: bool) -> list[str]:
    """Return a note on the runs with several test environments that no selection method uses, if there are any."""
    n = sum(len(test_envs) > (2 if uses_pairs else 1) for test_envs in sweep.runs["test_envs"])
    if not n:
        return []
    return [
        f"Runs with several test environments are in no table ({n:,} of {len(sweep.runs):,}): selection methods "
        "require a single one. Their records have the accuracy on each environment."
    ]


def omitted_notes(sweep: Sweep) -> list[str]:
    """Return a note on the runs whose records lack most accuracies on their test environments, if there are any."""
    n = int(sweep.jobs["eval"].isin(SELECTIVE).sum())
    if not n:
        return []
    return [
        f"{n:,} of {len(sweep.jobs):,} runs were evaluated only where a selection method can select (--eval selection "
        "or leave_one_out): finished runs have the cells of a complete evaluation, but test-domain has none of "
        "unfinished ones, and curves of the test environment have gaps."
    ]


def warm_up_notes(sweep: Sweep, datasets: Collection[str], algorithms: Collection[str], titles: Titles) -> list[str]:
    """Return a note on the runs that ended during their warm-up, if there are any."""
    jobs = sweep.jobs[sweep.jobs["dataset"].isin(datasets) & sweep.jobs["algorithm"].isin(algorithms)]
    may_have_warm_up = jobs["hparams"].str.contains('iters"|linear_steps"')  # spares parsing those of all jobs
    jobs = jobs[may_have_warm_up & jobs["steps"].notna()].sort_values(["dataset", "algorithm"])
    text = describe_unfinished(
        (
            f"{titles(job['algorithm'])} on {titles(job['dataset'])}",
            unfinished_warm_ups(json.loads(job["hparams"]), job["steps"]),
        )
        for job in jobs[["dataset", "algorithm", "hparams", "steps"]].to_dict("records")
    )
    if not text:
        return []
    return [
        "Runs that ended during the warm-up of their algorithm, because these hyperparameters are not below the number "
        f"of steps: {text}."
    ]


def algorithm_notes(algorithms: Sequence[str], titles: Titles) -> list[str]:
    """Return a note on the algorithms whose code has changed since the published tables, if there are any."""
    changed = [
        f"{titles(name)} ({KNOWN_DIFFERENCES_OF_ALGORITHMS[name]})"
        for name in algorithms
        if name in KNOWN_DIFFERENCES_OF_ALGORITHMS
    ]
    if not changed:
        return []
    return [
        "The code of some algorithms in the published tables differed from DomainBed's current code, which this "
        f"package follows: {', '.join(changed)}."
    ]


def protocol_notes(sweep: Sweep, dataset: str, algorithms: Sequence[str], title: str) -> list[str]:
    """Return notes on how the sweep's protocol on a dataset, printed as `title`, differs from the published one."""
    differences: dict[str, None] = {}
    for algorithm in algorithms:
        runs, jobs = (f[(f["dataset"] == dataset) & (f["algorithm"] == algorithm)] for f in (sweep.runs, sweep.jobs))
        counts = [(runs[c].nunique(), usual, unit) for c, usual, unit in PUBLISHED_COUNTS if len(runs)]
        if dataset in DATASETS:
            published = DATASETS[dataset]
            counts += [(int(n), published.N_STEPS, "steps") for n in sorted(jobs["steps"].dropna().unique())]
            if not only_last_counts(algorithm):  # how often others are evaluated affects which record is selected
                intervals = sorted(jobs["checkpoint_freq"].dropna().unique())
                counts += [(int(n), published.CHECKPOINT_FREQ, "steps between evaluations") for n in intervals]
        differences |= {f"{n:,} {unit} (published: {usual:,})": None for n, usual, unit in counts if n != usual}
        if n := int((runs["state"] == JobState.PRUNED).sum()):
            differences[f"{n:,} of {len(runs):,} {algorithm} runs were pruned"] = None
        settings = {text.partition(", ")[2] for text in jobs["settings"]}  # without the number of steps
        differences |= dict.fromkeys(sorted(settings - PUBLISHED_SETTINGS))
    notes = []
    if frozen_backbone(sweep.jobs, dataset):
        notes.append(f"{title}: published results are not shown, because they are from fine-tuned networks.")
    if differences:
        notes.append(f"{title} is not comparable with the published results: {'; '.join(differences)}.")
    if dataset in KNOWN_DIFFERENCES:
        notes.append(f"{title}: {KNOWN_DIFFERENCES[dataset]}.")
    return notes
