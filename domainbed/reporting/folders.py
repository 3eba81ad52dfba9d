"""What lies in a sweep's folder, looked at from outside: which folders have records, and whether these are new."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from domainbed.engine.lock import LOCK_FILE
from domainbed.records import CHECKPOINT_FILE, DONE_FILE, RESULTS_FILE
from domainbed.reporting.record_cache import Signature
from domainbed.sweep.failures import ATTEMPT_FILE, FAILURE_FILE
from domainbed.sweep.job import LOG_FILE, SWEEP_FOLDER

LOT = 1000  # folders that are looked at together
SLOW = 50e-6  # seconds to look at a folder; one whose inode is in memory takes a tenth
THREADS = 8  # that look at slow folders
PLOTS_FOLDER = "plots"
LANDSCAPE_FOLDER = "landscape"
OURS = {SWEEP_FOLDER, PLOTS_FOLDER, LANDSCAPE_FOLDER}  # what our own commands put beside the jobs
# What tells the folder of a job without records yet, DomainBed's included.
JOBS_FILES = {DONE_FILE, LOG_FILE, LOCK_FILE, ATTEMPT_FILE, FAILURE_FILE, CHECKPOINT_FILE, "out.txt", "err.txt"}


class Looked(NamedTuple):
    """What folders look like from outside: the signature of each job's records, which are done, and what is odd."""

    signatures: dict[str, Signature]
    done: set[str]
    problems: list[str]


def scan_folders(folder: Path) -> Looked:
    """Look at all folders in a sweep's, by many threads where each takes its time, as on a network file system."""
    names, odd = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.is_symlink() and not os.path.exists(path):
                odd.append(f"{path}: a link that leads nowhere; left out")
            elif entry.is_dir() and entry.name not in OURS:
                if entry.name.isprintable():
                    names.append(entry.name)
                else:
                    odd.append(f"{folder}/{entry.name!r}: no name for a job's folder; left out")
    names.sort()
    lots = [names[i : i + LOT] for i in range(0, len(names), LOT)]
    began = time.perf_counter()
    looked = [_look_at(folder, lot) for lot in lots[:1]]
    is_slow = time.perf_counter() - began > SLOW * len(names[:LOT])
    with ThreadPoolExecutor(THREADS if is_slow else 1) as pool:
        looked += pool.map(partial(_look_at, folder), lots[1:])
    return Looked(
        {name: signature for each in looked for name, signature in each.signatures.items()},
        {name for each in looked for name in each.done},
        [*sorted(odd), *(problem for each in looked for problem in each.problems)],
    )


def _look_at(folder: Path, names: Sequence[str]) -> Looked:
    looked = Looked({}, set(), [])
    for name in names:
        path = f"{folder}/{name}"  # pathlib would take as long as all the rest of this loop
        is_done = os.path.exists(f"{path}/{DONE_FILE}")  # first: if it is, nothing is written after this
        try:
            stat = os.stat(f"{path}/{RESULTS_FILE}")
            looked.signatures[name] = stat.st_size, stat.st_mtime_ns
        except FileNotFoundError:
            looked.problems.extend(f"{path}: {what}" for what in _without_records(path))
            continue
        except OSError as error:
            looked.problems.append(f"{path}: {error.strerror}; left out")
            continue
        if is_done:
            looked.done.add(name)
    return looked


def _without_records(path: str) -> list[str]:
    """What is odd about a folder without records, if it is."""
    try:
        there = os.listdir(path)
    except OSError as error:
        return [f"{error.strerror}; left out"]
    if DONE_FILE in there:
        return [f"the job is done, but there is no {RESULTS_FILE}"]
    return ["no job's folder; left out"] if there and not JOBS_FILES.intersection(there) else []
