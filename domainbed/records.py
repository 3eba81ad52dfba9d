"""The files of a job's folder that tables read: results.jsonl, one JSON object per evaluation, and `done` at the end.

A record has the keys `step`, `epoch`, `env{i}_in_acc`, `env{i}_out_acc`, the means of the update's metrics since the
last evaluation, `step_time` (seconds), `mem_gb`, `args` and `hparams`, as in sweeps of DomainBed. Accuracies that the
job does not evaluate (`--eval`) are missing. Records of this package also have `environments` (names), `bad_images`
(number of broken images replaced), `schema_version`; with a user's algorithm or dataset, `code` (the hash of their
files); and with a frozen backbone, `backbone_weights` (the hash of its weights). The last record of a job that ended
before its last step, as `--averaging swad` decides, has `ended_early`.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from domainbed.errors import printable
from domainbed.files import MAX_JSON_SIZE, atomic_write, open_regular, open_to_append, read_end, read_regular

RESULTS_FILE = "results.jsonl"
DONE_FILE = "done"
PRUNED_FILE = "pruned.json"  # of a job that was stopped because it was behind; see `PruneDecision`
MAX_RESULTS_SIZE = 256 * 2**20  # bytes; 50,000 evaluations on 20 environments take about half of it
CHECKPOINT_FILE = "checkpoint.pt"  # of an unfinished job; written by engine/checkpoint.py

BEST_MODEL_FILE = "model_best.pkl"  # with --save_best_model; written by engine/recorder.py

# Records without `schema_version` (DomainBed's, and early ones of this package) have this version.
SCHEMA_VERSION = 1

# Entries of a record that are not metrics of the algorithm, in addition to the accuracies.
RECORD_KEYS = frozenset(
    {
        *("step", "epoch", "step_time", "mem_gb", "bad_images", "ended_early"),
        *("environments", "args", "hparams", "code", "backbone_weights", "schema_version"),
    }
)
ACCURACY = re.compile(r"env(?P<env>\d{1,4})_(?P<part>in|out)_acc")

NO_AVERAGING = "none"
# Schemes of `--averaging` whose earlier records describe unfinished averages; their papers evaluate the last one alone.
EVALUATED_ONCE = ("swad",)

# Values of the argument `eval` of jobs whose records lack accuracies on test environments that no table needs.
SELECTIVE = ("selection", "leave_one_out")

# What identifies a run within a sweep: arguments, except that `algorithm` is the name in tables (`algorithm_name`).
RUN_KEYS = ["dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed"]


def algorithm_name(args: Mapping[str, Any]) -> str:
    """Return the name in tables of the algorithm of a job with these arguments, such as `ERM` or `ERM+SWAD`.

    The records of an ensemble of jobs have the argument `ensemble`, its name.
    """
    averaging, ensemble = str(args.get("averaging", NO_AVERAGING)), args.get("ensemble")
    name = args["algorithm"] if averaging == NO_AVERAGING else f"{args['algorithm']}+{averaging.upper()}"
    return f"{name}+{ensemble}" if ensemble else name


def only_last_counts(algorithm: str) -> bool:
    """Return whether selection reads only the last record of an algorithm's runs, given its name in tables."""
    return algorithm.endswith(tuple(f"+{scheme.upper()}" for scheme in EVALUATED_ONCE))


def validation_accuracy(record: Mapping[str, Any]) -> float:
    """Return the mean accuracy of a record on the out splits of its training environments.

    It is rounded as in `model_selection.training_domain`, which adds the environments in order, so that both agree
    on which of two records is better.
    """
    test_envs = record["args"]["test_envs"]
    names = filter(None, map(ACCURACY.fullmatch, record))
    envs = [int(name["env"]) for name in names if name["part"] == "out"]
    training_envs = sorted(env for env in envs if env not in test_envs)
    total = 0.0
    for env in training_envs:  # `sum` compensates rounding errors from Python 3.12 on
        total += record[f"env{env}_out_acc"]
    return total / len(training_envs)


def append_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a job's results. `flush_records` makes it survive a power failure."""
    with open_to_append(folder / RESULTS_FILE) as file:
        file.write(json.dumps({**record, "schema_version": SCHEMA_VERSION}, sort_keys=True).encode() + b"\n")


def flush_records(folder: Path) -> None:
    """Flush a job's results to disk, if there are any."""
    with suppress(FileNotFoundError), open_regular(folder / RESULTS_FILE) as file:
        os.fsync(file.fileno())


def records_length(folder: Path) -> int:
    """Return the length of a job's results, in bytes."""
    try:
        with open_regular(folder / RESULTS_FILE) as file:  # makes a network file system refresh its attributes
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return 0


def records_checksum(folder: Path, length: int) -> int:
    """Return a checksum of the first `length` bytes of a job's results."""
    if not length:
        return 0
    with open(folder / RESULTS_FILE, "rb") as file:
        return zlib.crc32(file.read(length))


def truncate_records(folder: Path, length: int) -> None:
    """Truncate a job's results to `length` bytes and flush them to disk; with length 0, delete them."""
    if not length:
        (folder / RESULTS_FILE).unlink(missing_ok=True)
    else:
        with open_to_append(folder / RESULTS_FILE) as file:
            file.truncate(min(length, os.fstat(file.fileno()).st_size))
            os.fsync(file.fileno())


def mark_done(folder: Path) -> None:
    """Flush a job's results to disk, then mark the job as finished."""
    flush_records(folder)
    with atomic_write(folder / DONE_FILE) as file:
        file.write(b"done")


def is_done(folder: Path) -> bool:
    """Return whether a job is finished."""
    return (folder / DONE_FILE).exists()


@dataclass(frozen=True)
class PruneDecision:
    """Why a job was pruned: the content of its PRUNED_FILE.

    Attributes:
        step: the step after whose evaluation the job stopped.
        rule: the rule, as text, such as "asha, factor 2, grace 0.1".
        accuracy: the job's best validation accuracy so far.
        peers: those of the other draws that had reached this step, by the names of their folders.
    """

    step: int
    rule: str
    accuracy: float
    peers: dict[str, float]

    def __str__(self) -> str:
        better = sum(peer > self.accuracy for peer in self.peers.values())
        return (
            f"pruned at step {self.step}: {better} of {len(self.peers)} other draws are better than its validation "
            f"accuracy {100 * self.accuracy:.1f} ({self.rule})"
        )


def mark_pruned(folder: Path, decision: PruneDecision) -> None:
    """Mark a job as pruned, once its checkpoint is on disk."""
    with atomic_write(folder / PRUNED_FILE) as file:
        file.write(json.dumps(asdict(decision), indent=1).encode())


def is_pruned(folder: Path) -> bool:
    """Return whether a job is pruned."""
    return (folder / PRUNED_FILE).exists()


def read_pruned(folder: Path) -> PruneDecision | None:
    """Return why a job was pruned; None if it was not, or if its PRUNED_FILE cannot be read."""
    try:
        return parse_pruned(read_regular(folder / PRUNED_FILE, MAX_JSON_SIZE))
    except OSError:
        return None


def parse_pruned(data: bytes) -> PruneDecision | None:
    """Return the content of a PRUNED_FILE; None if it is damaged."""
    try:
        decision = PruneDecision(**json.loads(data))
        peers = {printable(name): float(accuracy) for name, accuracy in decision.peers.items()}
        rule, accuracy = printable(decision.rule), float(decision.accuracy)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    if type(decision.step) is not int or not all(map(math.isfinite, [accuracy, *peers.values()])):
        return None
    return PruneDecision(decision.step, rule, accuracy, peers)


def clear_pruned(folder: Path) -> None:
    """Mark a job as not pruned, so that it can be resumed."""
    (folder / PRUNED_FILE).unlink(missing_ok=True)


def read_job(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of a job, by ascending step, and a list of problems.

    Lines that are not records are skipped (a killed job may leave its last line incomplete). If a job was run more than
    once in the same folder, the last run counts: a record replaces earlier ones with the same or a later step.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than MAX_RESULTS_SIZE.
    """
    return parse_records(read_regular(folder / RESULTS_FILE, MAX_RESULTS_SIZE))


def parse_records(data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """Parse the content of a results file; see `read_job`."""
    records: list[dict[str, Any]] = []
    malformed, versions, replaced = [], set(), 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode(errors="replace"))
            step = record["step"] = int(record["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            malformed.append(number)
            continue
        if record.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
            versions.add(str(record["schema_version"]))
            continue
        while records and records[-1]["step"] >= step:
            records.pop()
            replaced += 1
        records.append(record)
    problems = []
    if malformed:
        more = f" ({len(malformed)} such lines)" if len(malformed) > 1 else ""
        problems.append(f"line {malformed[0]} is not a complete record{more}; skipped")
    if versions:
        known = f"this version of domainbed reads {SCHEMA_VERSION}"
        problems.append(f"records of unsupported schema version {', '.join(sorted(versions))} ({known}); skipped")
    if replaced:
        problems.append(f"the job was run more than once in its folder; skipped {replaced} records of earlier runs")
    return records, problems


def last_record(folder: Path) -> dict[str, Any] | None:
    """Return the last complete record of a job, or None. Only the end of the file is read."""
    try:
        lines = read_end(folder / RESULTS_FILE, 64 * 1024).split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                return record
    return None
