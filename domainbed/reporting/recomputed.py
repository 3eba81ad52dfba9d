"""Comparison of the runs behind a cell of the tables with the same runs, retrained."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from domainbed.engine.components import import_components
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.files import read_regular
from domainbed.model_selection import WITH_PAIRS
from domainbed.records import MAX_RESULTS_SIZE, RESULTS_FILE, parse_records, read_job
from domainbed.reporting.load import Sweep
from domainbed.reporting.top_hparams import CellRuns
from domainbed.sweep.archive import find_problem
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.sweep.log import launch_files

# Fields of a record that may differ, because they are not results.
NOT_COMPARED = {"step_time", "mem_gb", "args", "hparams", "code", "backbone_weights", "schema_version"}
EXPLANATION = (
    "On a different processor, or with different versions or numbers of threads, results differ in the last digits "
    "from the first updates on, and training amplifies the differences. The same happens on most GPUs to runs launched "
    "without --deterministic."
)


def jobs_of_cell(
    sweep: Sweep,
    cell: CellRuns,
    output_dir: Path,
    data_dir: str | None = None,
    imports: Sequence[str] = (),
    trust_imports: bool = False,
) -> dict[str, Job]:
    """Return the jobs that retrain the finished runs of a cell, by the folder names of the original runs.

    They include runs with pairs of test environments if the selection method requires them. Their arguments are
    those in the records, except for paths: they use no image cache and save no model.

    Args:
        output_dir: folder for the new runs.
        data_dir: folder of the datasets; by default, the recorded one.
        imports: modules that the new jobs import.
        trust_imports: whether to import the recorded modules as well.

    Raises:
        UsageError: no run of the cell is done; it requires a class that is not registered; an algorithm,
            hyperparameter or environment differs here; or `output_dir` contains other runs.
    """
    done = sweep.jobs[sweep.jobs["done"]]
    done = done[(done["dataset"] == cell.dataset) & (done["algorithm"] == cell.algorithm)]
    max_test_envs = 2 if cell.selection in WITH_PAIRS else 1
    jobs = {
        str(name): _job(sweep.folder / str(name) / RESULTS_FILE, output_dir, data_dir, imports, trust_imports)
        for name, test_envs in done["test_envs"].items()
        if cell.test_env in test_envs and len(test_envs) <= max_test_envs
    }
    if not jobs:
        raise UsageError(f"none of the cell's runs in {sweep.folder} is done")
    expected = {job.folder.name for job in jobs.values()} | {SWEEP_FOLDER}
    existing = {path.name for path in output_dir.iterdir() if path.is_dir()} if output_dir.is_dir() else set()
    if existing - expected or launch_files(output_dir):
        raise UsageError(f"--output_dir {output_dir} contains other runs; choose an empty folder")
    return jobs


def _job(results: Path, output_dir: Path, data_dir: str | None, imports: Sequence[str], trust_imports: bool) -> Job:
    """Return the job that trains the run with these results again."""
    data = read_regular(results, MAX_RESULTS_SIZE)
    record = next(r for r in reversed(parse_records(data)[0]) if isinstance(r.get("args"), dict))  # every run has one
    args = record["args"]
    if "ensemble" in args:
        raise UsageError(f"{results} is an ensemble of other runs, which cannot be retrained")
    import_components(args, trust_imports, ["dataset", "algorithm", "averaging", "track"], results)
    if trust_imports:
        imports = tuple(dict.fromkeys((*args.get("imports", ()), *imports)))
    unused = {"cache": None, "log_to": ()}
    config = JobConfig.from_recorded_args({**args, "data_dir": data_dir or args.get("data_dir"), **unused})
    config = replace(
        config,
        skip_model_save=True,
        save_model_every_checkpoint=False,
        save_best_model=False,
        trust_checkpoint=False,
        imports=tuple(imports),
    )
    job = Job.in_sweep(config, output_dir)
    if problem := find_problem(job, {RESULTS_FILE: data}):
        raise UsageError(f"{results}: {problem}; the run cannot be retrained here")
    environments, recorded = config.environment_names(), record.get("environments")
    if recorded and recorded != environments:
        raise UsageError(
            f"{results} has the environments {', '.join(recorded)}, but the dataset here has "
            f"{', '.join(environments)}; specify another folder with --data_dir"
        )
    return job


def restrict_cell(cell: CellRuns, folders: Collection[str]) -> CellRuns:
    """Return the cell that a sweep with only the runs in these folders would have."""
    runs = cell.runs[cell.runs["folder"].isin(folders)]
    rank = runs.groupby("trial_seed")["rank"].rank().astype("Int64")
    return replace(cell, runs=runs.assign(rank=rank), hparams=cell.hparams.loc[runs.index])


@dataclass(frozen=True)
class RecordDifference:
    """The first difference between the records of two runs.

    Attributes:
        step: step of the first record that differs.
        metric: first of its metrics that differs; "step" if one run lacks the record.
        original, repeated: the values, or None if missing.
        max_accuracy: largest difference of any accuracy in any record, in percent.
    """

    step: int
    metric: str
    original: Any
    repeated: Any
    max_accuracy: float


def find_difference(original: Path, repeated: Path) -> RecordDifference | None:
    """Return how the records in two job folders differ; None if all metrics of the original were reproduced."""
    records, others = ({record["step"]: record for record in read_job(folder)[0]} for folder in (original, repeated))
    first = next(_differences(records, others), None)
    if first is None:
        return None
    accuracy_differences = (
        abs(record[name] - others[step][name])
        for step, record in records.items()
        for name in record
        if name.endswith("_acc") and name in others.get(step, {})
    )
    return RecordDifference(*first, max_accuracy=100 * max(accuracy_differences, default=0.0))


def _differences(original: Mapping[int, Any], repeated: Mapping[int, Any]) -> Iterator[tuple[int, str, Any, Any]]:
    for step in sorted(original.keys() | repeated.keys()):
        if step not in original or step not in repeated:
            yield step, "step", step if step in original else None, step if step in repeated else None
            continue
        for name in sorted(original[step].keys() - NOT_COMPARED):
            values = original[step][name], repeated[step].get(name)
            if values[0] != values[1]:
                yield step, name, *values


def format_comparison(
    original: CellRuns,
    repeated: CellRuns,
    differences: Mapping[tuple[int, int, tuple[int, ...]], RecordDifference],
    n: int,
) -> str:
    """Return a report on a cell and its retrained runs.

    Args:
        original, repeated: the cell, restricted to these runs.
        differences: the runs with different records, by trial, hyperparameter draw and test environments.
        n: number of runs.
    """
    parts = [str(original)]
    equal = f"{n - len(differences)} of {n} runs reproduced their records bit for bit, except for times and memory"
    if differences:
        rows = [
            [*key[:2], " ".join(map(str, key[2])), d.step, d.metric, d.original, d.repeated, f"{d.max_accuracy:.2f}"]
            for key, d in sorted(differences.items())
        ]
        headers = ["trial", "draw", "test", "step", "metric", "original", "repeated", "accuracies differ by up to (%)"]
        table = tabulate(rows, headers, disable_numparse=True, missingval="-")
        parts += [f"{equal}. First difference in each of the others:", table, EXPLANATION]
    else:
        parts.append(f"{equal}.")
    chosen = [cell.best[["trial_seed", "hparams_seed", "step"]].astype(int) for cell in (original, repeated)]
    is_same = chosen[0].to_numpy().tolist() == chosen[1].to_numpy().tolist()
    choice = "the same run and step in each trial" if is_same else "different runs or steps (see list_top_hparams)"
    parts.append(f"Original: {original.value}\nRepeated: {repeated.value}, from {choice}")
    return "\n\n".join(parts)
