"""The launch log: the arguments of each launch, kept in the sweep's folder. They determine the jobs of the sweep.

Reading it runs no code: whoever can write to the folder chose the modules that a launch imported.
"""

import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path

from domainbed.errors import UsageError
from domainbed.files import atomic_write, read_json
from domainbed.records import algorithm_name
from domainbed.sweep.grid import Grid, RunKey
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.sweep.queue import read_queue_or_warn
from domainbed.sweep.status import JobState, survey
from domainbed.terminal import warn


def log_launch(sweep_dir: Path, grid: Grid) -> None:
    """Record a launch as the last one. The sweep's folder is not recorded, so it may be moved."""
    content = json.dumps(grid.to_log(), sort_keys=True, indent=1).encode()
    path = _log_folder(sweep_dir) / f"{hashlib.md5(content).hexdigest()}.json"
    if path in (files := launch_files(sweep_dir)):
        if files[-1] != path:
            with suppress(PermissionError):  # the file of another user
                os.utime(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)


def launch_files(sweep_dir: Path) -> list[Path]:
    """Return the file of each launch, from the first to the last, without links, which may lead to any file."""
    paths = filter(_is_file, _log_folder(sweep_dir).glob("*.json"))
    return sorted(paths, key=lambda path: (path.stat().st_mtime, path.name))


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def read_launches(sweep_dir: Path, warn: Callable[[str], object] = warn) -> list[tuple[Grid, list[RunKey]]]:
    """Return each launch, from the first to the last, with its runs.

    Args:
        warn: called with a message for each launch that is skipped, because it is invalid or an earlier version logged
            a launch of a dataset that is not registered here.
    """
    for path in itertools.filterfalse(_is_file, _log_folder(sweep_dir).glob("*.json")):
        warn(f"skipping {path}: not a regular file")
    launches = []
    for path in launch_files(sweep_dir):
        try:
            logged = read_json(path)
            grid = Grid.from_log(logged)
            runs = list(grid.runs())
            for run in {(run.dataset, run.algorithm): run for run in runs}.values():
                grid.job(run, sweep_dir)  # validates the arguments
        except UsageError as error:
            imports = logged.get("imports")
            modules = " ".join(map(repr, imports)) if isinstance(imports, list) else ""
            hint = f" (the launch imported {modules}; if you trust them, pass --import)" if modules else ""
            warn(f"skipping the launch recorded in {path}: {error}{hint}")
            continue
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            warn(f"skipping the launch recorded in {path}: {error}")
            continue
        launches.append((grid, runs))
    return launches


def requested_jobs(sweep_dir: Path) -> list[Job]:
    """Return the jobs of all launches into this folder.

    Raises:
        UsageError: no launch is recorded, or none is valid.
    """
    if not _log_folder(sweep_dir).is_dir():
        raise UsageError(f"--output_dir {sweep_dir} contains no sweep; run `sweep launch` first")
    jobs: dict[Path, Job] = {}
    for grid, runs in read_launches(sweep_dir):
        launched = [grid.job(run, sweep_dir) for run in runs]
        jobs |= {job.folder: job for job in launched}
    if not jobs:
        raise UsageError(f"none of the launches into {sweep_dir} can be read")
    return list(jobs.values())


def run_states(sweep_dir: Path, done: Container[RunKey], warn: Callable[[str], object]) -> dict[RunKey, JobState]:
    """Return the state of each run that a launch into this folder requested, by its `algorithm` in tables.

    If launches requested the same run with different arguments (such as the number of steps), the last one counts.

    Args:
        done: runs known to have a job that is done. They are not surveyed if all launches share their job arguments,
            so a large sweep that is done is fast.
        warn: as in `read_launches`.
    """
    launches = read_launches(sweep_dir, warn)
    is_uniform = all((g.job_args, g.seed) == (launches[0][0].job_args, launches[0][0].seed) for g, _ in launches)
    states: dict[RunKey, JobState] = {}
    jobs = {}
    for grid, runs in launches:
        for run in runs:
            key = run._replace(algorithm=algorithm_name({**grid.job_args, "algorithm": run.algorithm}))
            states[key] = JobState.DONE
            if not is_uniform or key not in done:
                jobs[key] = grid.job(run, sweep_dir)
    statuses = survey(jobs.values(), read_queue_or_warn(sweep_dir) if jobs else None)
    return states | {run: statuses[job].state for run, job in jobs.items()}


def _log_folder(sweep_dir: Path) -> Path:
    return sweep_dir / SWEEP_FOLDER / "launches"
