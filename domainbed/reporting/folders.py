"""Scan of a sweep's folder: which folders have records, and whether these have changed."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from domainbed.engine.lock import LOCK_FILE
from domainbed.engine.tracking import TRACKERS
from domainbed.records import CHECKPOINT_FILE, DONE_FILE, PRUNED_FILE, RESULTS_FILE, read_pruned
from domainbed.reporting.record_cache import Signature
from domainbed.sweep.failures import ATTEMPT_FILE, FAILURE_FILE
from domainbed.sweep.job import LOG_FILE, SWEEP_FOLDER

BATCH = 1000  # folders scanned together
SLOW = 50e-6  # seconds per folder from which threads pay off; a folder in the inode cache takes a tenth
THREADS = 8  # on a slow file system
PLOTS_FOLDER = "plots"
# Files that identify the folder of a job without records yet, in our sweeps and DomainBed's.
JOB_FILES = {DONE_FILE, LOG_FILE, LOCK_FILE, ATTEMPT_FILE, FAILURE_FILE, CHECKPOINT_FILE, "out.txt", "err.txt"}


class FolderScan(NamedTuple):
    """The job folders of a sweep.

    Attributes:
        signatures: the size and modification time of each job's records.
        done: the jobs that are done.
        pruned: the jobs that are pruned, and the rule of each; "" if it is unknown.
        problems: warnings, one line each.
    """

    signatures: dict[str, Signature]
    done: set[str]
    pruned: dict[str, str]
    problems: list[str]


def scan_folders(sweep_dir: Path) -> FolderScan:
    """Scan all folders of a sweep, with several threads if the file system is slow."""
    names, problems = [], []
    not_jobs = {SWEEP_FOLDER, PLOTS_FOLDER, *TRACKERS}  # written by our own commands
    with os.scandir(sweep_dir) as entries:
        for entry in entries:
            path = f"{sweep_dir}/{entry.name}"
            if entry.is_symlink() and not os.path.exists(path):
                problems.append(f"{path}: broken symbolic link; skipped")
            elif entry.is_dir() and entry.name not in not_jobs:
                if entry.name.isprintable():
                    names.append(entry.name)
                else:
                    problems.append(f"{sweep_dir}/{entry.name!r}: not a valid name of a job folder; skipped")
    names.sort()
    batches = [names[i : i + BATCH] for i in range(0, len(names), BATCH)]
    start = time.perf_counter()
    scans = [_scan_batch(sweep_dir, batch) for batch in batches[:1]]
    is_slow = time.perf_counter() - start > SLOW * len(names[:BATCH])
    with ThreadPoolExecutor(THREADS if is_slow else 1) as pool:
        scans += pool.map(partial(_scan_batch, sweep_dir), batches[1:])
    return FolderScan(
        {name: signature for scan in scans for name, signature in scan.signatures.items()},
        {name for scan in scans for name in scan.done},
        {name: rule for scan in scans for name, rule in scan.pruned.items()},
        [*sorted(problems), *(problem for scan in scans for problem in scan.problems)],
    )


def _scan_batch(sweep_dir: Path, names: Sequence[str]) -> FolderScan:
    scan = FolderScan({}, set(), {}, [])
    for name in names:
        path = f"{sweep_dir}/{name}"  # pathlib would take as long as the rest of this loop
        is_done = os.path.exists(f"{path}/{DONE_FILE}")  # checked first: nothing is written after this file
        try:
            stat = os.stat(f"{path}/{RESULTS_FILE}")
        except FileNotFoundError:
            if problem := _problem_without_records(path):
                scan.problems.append(f"{path}: {problem}")
        except OSError as error:
            scan.problems.append(f"{path}: {error.strerror}; skipped")
        else:
            scan.signatures[name] = stat.st_size, stat.st_mtime_ns
            if is_done:
                scan.done.add(name)
            elif os.path.exists(f"{path}/{PRUNED_FILE}"):
                decision = read_pruned(Path(path))
                scan.pruned[name] = decision.rule if decision else ""
    return scan


def _problem_without_records(path: str) -> str:
    """Return what is wrong with a folder without records, or an empty string."""
    try:
        files = os.listdir(path)
    except OSError as error:
        return f"{error.strerror}; skipped"
    if DONE_FILE in files:
        return f"the job is done, but has no {RESULTS_FILE}"
    return "not a job folder; skipped" if files and JOB_FILES.isdisjoint(files) else ""
