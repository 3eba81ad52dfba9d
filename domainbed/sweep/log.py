"""The arguments of each launch, kept in the sweep's folder: they say which jobs the sweep has."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from domainbed.errors import UsageError
from domainbed.files import atomic_write
from domainbed.registry import import_modules
from domainbed.sweep.grid import Run, make_job, make_runs
from domainbed.sweep.job import SWEEP_FOLDER, Job


def log_launch(sweep_dir: Path, arguments: Mapping[str, Any]) -> None:
    """Keep what `make_jobs` was called with, but for the folder itself, which may be moved. The last launch counts."""
    told = json.dumps(arguments, sort_keys=True, indent=1).encode()
    path = _folder(sweep_dir) / f"{hashlib.md5(told).hexdigest()}.json"
    if path.exists():
        if launch_files(sweep_dir)[-1] != path:
            with suppress(PermissionError):  # another user's
                os.utime(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(told)


def launch_files(sweep_dir: Path) -> list[Path]:
    """The file of each launch into this folder, the first one first."""
    return sorted(_folder(sweep_dir).glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))


def warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def read_launches(sweep_dir: Path, tell: Callable[[str], object] = warn) -> list[tuple[dict[str, Any], list[Run]]]:
    """The arguments of each launch into this folder, the first one first, and the runs that it asked for.

    Its `imports` are imported. A launch that can't be made any more is left out, and `tell` is called with a line.
    """
    launches = []
    for path in launch_files(sweep_dir):
        try:
            arguments = json.loads(path.read_text(encoding="utf-8"))
            arguments["imports"] = tuple(arguments["imports"])
            import_modules(arguments["imports"])
            runs = list(make_runs(**arguments))
            for run in {(run.dataset, run.algorithm): run for run in runs}.values():
                make_job(run, str(sweep_dir), arguments)  # of each kind one, to see that it can be made
        except (ValueError, LookupError, TypeError, RecursionError, OSError) as error:  # UsageError is a ValueError
            tell(f"the launch that {path} tells of is left out: {error}")
            continue
        launches.append((arguments, runs))
    return launches


def requested_jobs(sweep_dir: Path) -> list[Job]:
    """The jobs of all launches into this folder.

    Raises:
        UsageError: there was none.
    """
    if not _folder(sweep_dir).is_dir():
        raise UsageError(f"--output_dir {sweep_dir} holds no sweep: nothing was launched there")
    jobs: dict[Path, Job] = {}
    for arguments, runs in read_launches(sweep_dir):
        of_launch = [make_job(run, str(sweep_dir), arguments) for run in runs]
        jobs |= {job.folder: job for job in of_launch}
    if not jobs:
        raise UsageError(f"no launch into {sweep_dir} can be read any more")
    return list(jobs.values())


def _folder(sweep_dir: Path) -> Path:
    return sweep_dir / SWEEP_FOLDER / "launches"
