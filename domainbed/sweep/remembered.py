"""The arguments of each launch, kept in the sweep's folder: they say which jobs the sweep has."""

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed.errors import UsageError
from domainbed.registry import import_modules
from domainbed.sweep.grid import make_jobs
from domainbed.sweep.job import SWEEP_FOLDER, Job


def remember(sweep_dir: Path, arguments: Mapping[str, Any]) -> None:
    """Keep what `make_jobs` was called with, but for the folder itself, which may be moved."""
    told = json.dumps(arguments, sort_keys=True, indent=1).encode()
    path = _folder(sweep_dir) / f"{hashlib.md5(told).hexdigest()}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_suffix(f".{uuid.uuid4().hex}")  # another launch may write the same at the same moment
        mine.write_bytes(told)
        os.replace(mine, path)


def remembered_jobs(sweep_dir: Path) -> list[Job]:
    """The jobs of all launches into this folder.

    Raises:
        UsageError: there was none.
    """
    launches = sorted(_folder(sweep_dir).glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not launches:
        raise UsageError(f"--output_dir {sweep_dir} holds no sweep: nothing was launched there")
    jobs: dict[Path, Job] = {}
    for launch in launches:
        try:
            arguments = json.loads(launch.read_text(encoding="utf-8"))
            arguments["imports"] = tuple(arguments["imports"])
            import_modules(arguments["imports"])
            of_launch = make_jobs(output_dir=str(sweep_dir), **arguments)
        except (ValueError, KeyError, TypeError) as error:  # UsageError is a ValueError
            print(f"warning: the launch that {launch} tells of is left out: {error}", file=sys.stderr)
            continue
        jobs |= {job.folder: job for job in of_launch}
    if not jobs:
        raise UsageError(f"no launch into {sweep_dir} can be read any more")
    return list(jobs.values())


def _folder(sweep_dir: Path) -> Path:
    return sweep_dir / SWEEP_FOLDER / "launches"
