"""A cell whose runs are trained again: are their records the kept ones, bit for bit?"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.model_selection import WITH_PAIRS
from domainbed.records import RESULTS_FILE, parse_records, read_job
from domainbed.registry import import_modules
from domainbed.reporting.load import Sweep
from domainbed.reporting.top_hparams import Cell
from domainbed.sweep.archive import problem_of
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.sweep.log import launch_files

NO_RESULTS = {"step_time", "mem_gb", "args", "hparams", "schema_version"}  # of a record: they may differ
WHY = (
    "Another processor, other versions or another number of threads give other last digits from the first updates on, "
    "which training magnifies; so do most GPUs, for runs that were launched without --deterministic."
)


def jobs_of_cell(
    sweep: Sweep, cell: Cell, output_dir: Path, data_dir: str | None = None, imports: Sequence[str] = ()
) -> dict[str, Job]:
    """The jobs that train the cell's runs again, by the folder of the kept ones; with their pairs where these choose.

    Their arguments are those in the kept records, but for where they read and write: nothing is cached, and no model
    left.

    Args:
        sweep: the kept one, which has the cell. Of its runs only those that are done are trained again.
        output_dir: the jobs' folders come to lie here.
        data_dir: the datasets' folder; None for the recorded one.
        imports: modules to import besides the recorded ones.

    Raises:
        UsageError: one can't be trained again, for its algorithm, a hyperparameter or an environment is another here;
            or none is done; or other runs lie in `output_dir`.
    """
    of_cell = sweep.jobs[sweep.jobs["done"]]
    of_cell = of_cell[(of_cell["dataset"] == cell.dataset) & (of_cell["algorithm"] == cell.algorithm)]
    most = 2 if cell.method in WITH_PAIRS else 1
    jobs = {
        str(name): _job(sweep.folder / str(name) / RESULTS_FILE, output_dir, data_dir, imports)
        for name, test_envs in of_cell["test_envs"].items()
        if cell.test_env in test_envs and len(test_envs) <= most
    }
    if not jobs:
        raise UsageError(f"none of the cell's runs in {sweep.folder} is done")
    ours = {job.folder.name for job in jobs.values()} | {SWEEP_FOLDER}
    there = {path.name for path in output_dir.iterdir() if path.is_dir()} if output_dir.is_dir() else set()
    if there - ours or launch_files(output_dir):
        raise UsageError(f"--output_dir {output_dir} holds other runs; name an empty folder")
    return jobs


def _job(kept: Path, output_dir: Path, data_dir: str | None, imports: Sequence[str]) -> Job:
    data = kept.read_bytes()
    record = next(r for r in reversed(parse_records(data)[0]) if isinstance(r.get("args"), dict))  # or it is no run
    args = record["args"]
    imports = tuple(dict.fromkeys((*args.get("imports", ()), *imports)))
    import_modules(imports)
    config = JobConfig.of_args({**args, "data_dir": data_dir or args.get("data_dir"), "cache": None})
    config = replace(config, skip_model_save=True, save_model_every_checkpoint=False, imports=imports)
    job = Job.in_sweep(config, output_dir)
    if problem := problem_of(job, data):
        raise UsageError(f"{kept}: {problem}; it can't be trained again here")
    here, there = config.environment_names(), record.get("environments")
    if there and there != here:
        raise UsageError(
            f"{kept} has the environments {', '.join(there)}, where there are {', '.join(here)} here; --data_dir names "
            "another folder"
        )
    return job


def among(cell: Cell, folders: Collection[str]) -> Cell:
    """The cell, were these its only runs."""
    runs = cell.runs[cell.runs["folder"].isin(folders)]
    rank = runs.groupby("trial_seed")["rank"].rank().astype("Int64")
    return replace(cell, runs=runs.assign(rank=rank), hparams=cell.hparams.loc[runs.index])


@dataclass(frozen=True)
class Difference:
    """Where the records of a run that was trained again leave the kept ones.

    Attributes:
        step: of the first record that differs.
        figure: the first of that record's that does, by name; "step" where records are missing.
        kept, again: its values; None where there is none.
        accuracy: the most that any accuracy differs in any record, in percent.
    """

    step: int
    figure: str
    kept: Any
    again: Any
    accuracy: float


def difference(kept: Path, again: Path) -> Difference | None:
    """How the records in a job's folder differ from the kept ones; None where all figures that these have are the same,
    bit for bit."""
    ours, theirs = ({record["step"]: record for record in read_job(folder)[0]} for folder in (kept, again))
    first = next(_differing(ours, theirs), None)
    if first is None:
        return None
    of_accuracies = (
        abs(record[name] - theirs[step][name])
        for step, record in ours.items()
        for name in record
        if name.endswith("_acc") and name in theirs.get(step, {})
    )
    return Difference(*first, accuracy=100 * max(of_accuracies, default=0.0))


def _differing(kept: Mapping[int, Any], again: Mapping[int, Any]) -> Iterator[tuple[int, str, Any, Any]]:
    for step in sorted(kept.keys() | again.keys()):
        if step not in kept or step not in again:
            yield step, "step", step if step in kept else None, step if step in again else None
            continue
        for name in sorted(kept[step].keys() - NO_RESULTS):
            values = kept[step][name], again[step].get(name)
            if values[0] != values[1]:
                yield step, name, *values


def as_text(kept: Cell, again: Cell, differences: Mapping[tuple[int, int, tuple[int, ...]], Difference], n: int) -> str:
    """What is told of a cell of whose runs `n` were trained again.

    Args:
        kept, again: the cell, of these runs.
        differences: of the runs whose records differ, by trial, draw and test environments.
    """
    parts = [str(kept)]
    alike = f"{n - len(differences)} of {n} runs gave the kept records, bit for bit (all figures but times and memory)"
    if differences:
        rows = [
            [trial, draw, " ".join(map(str, test_envs)), d.step, d.figure, d.kept, d.again, f"{d.accuracy:.2f}"]
            for (trial, draw, test_envs), d in sorted(differences.items())
        ]
        headers = ["trial", "draw", "test", "step", "figure", "kept", "again", "accuracies by up to (%)"]
        table = tabulate(rows, headers, disable_numparse=True, missingval="-")
        parts += [f"{alike}. Where the others first differ:", table, WHY]
    else:
        parts.append(f"{alike}.")
    chosen = [cell.best[["trial_seed", "hparams_seed", "step"]].astype(int) for cell in (kept, again)]
    same = chosen[0].to_numpy().tolist() == chosen[1].to_numpy().tolist()
    told = "the same run and step in each trial" if same else "other runs or steps; list_top_hparams ranks them"
    parts.append(
        f"Kept:  {kept.mean:.1f} +/- {kept.error:.1f}\nAgain: {again.mean:.1f} +/- {again.error:.1f}, from {told}"
    )
    return "\n\n".join(parts)
