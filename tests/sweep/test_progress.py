"""The exact output of `sweep status` for invented jobs."""

import json
from pathlib import Path

from domainbed.engine.lock import LockOwner
from domainbed.sweep.failures import Failure
from domainbed.sweep.job import Job
from domainbed.sweep.progress import failure_lines, running_lines, status_table, summary_line
from domainbed.sweep.status import JobState, Status
from tests.sweep.helpers import make_job

LONG_AGO = "2026-01-02 03:04:05"


def example_sweep(folder: Path) -> dict[Job, Status]:
    """Return one job of one kind in each state, two of them running, and one job of another kind."""
    kinds = {"steps": 100, "algorithm": "ERM", "hparams": None}
    jobs = [make_job(folder, seed=seed, **kinds) for seed in range(7)]
    running = LockOwner("node1", "m", 12, "", 0, "7_3", step=60, first_step=20, seconds=80.0)
    just_started = LockOwner("node2", "m", 13, "", 0, "")
    statuses = [
        Status(JobState.NOT_LAUNCHED),
        Status(JobState.QUEUED),
        Status(JobState.RUNNING, owner=running),
        Status(JobState.RUNNING, owner=just_started),
        Status(JobState.INCOMPLETE),
        Status(JobState.FAILED, failure=Failure("RuntimeError: no", 2, "node3", LONG_AGO)),
        Status(JobState.DONE),
    ]
    jobs[4].folder.mkdir(parents=True)
    (jobs[4].folder / "results.jsonl").write_text('{"step": 0}\n{"step": 29}\n{"st')
    other = make_job(folder, steps=3000, algorithm="Fishr", hparams=None)
    return {**dict(zip(jobs, statuses, strict=True)), other: Status(JobState.NOT_LAUNCHED)}


def test_status_table(tmp_path: Path):
    assert status_table(example_sweep(tmp_path)) == (
        "Dataset        Algorithm      not launched    queued    running    incomplete    failed    done    updates"
        "    updates/s    time left\n"
        "-------------  -----------  --------------  --------  ---------  ------------  --------  ------  ---------"
        "  -----------  -----------\n"
        "ColoredDigits  ERM                       1         1          2             1         1       1       27 %"
        "          0.5       17 min\n"
        "ColoredDigits  Fishr                     1                                                             0 %"
    )


def test_summary_line(tmp_path: Path):
    statuses = example_sweep(tmp_path)
    assert (
        summary_line(statuses) == "1 of 8 jobs done; 190 of 3,700 updates, 0.5 per second, 1 h 57 min left at this rate"
    )
    idle = {job: status for job, status in statuses.items() if not status.owner}
    assert summary_line(idle) == "1 of 6 jobs done; 130 of 3,500 updates"


def test_running_lines(tmp_path: Path):
    statuses = example_sweep(tmp_path)
    assert running_lines(statuses) == [
        "ERM on ColoredDigits, test +90%, hparams 0, trial 0: 60 of 100 updates, 80 s left "
        "(process 12 on node1, SLURM job 7_3)",
        "ERM on ColoredDigits, test +90%, hparams 0, trial 0: 0 of 100 updates (process 13 on node2)",
    ]


def test_failure_lines(tmp_path: Path):
    statuses = example_sweep(tmp_path)
    jobs = list(statuses)
    statuses[jobs[6]] = Status(JobState.FAILED, failure=Failure())
    statuses[jobs[7]] = Status(JobState.FAILED, failure=Failure("SLURM task 7_7 ended before the job started", 1))
    for job in jobs[5:7]:
        job.folder.mkdir(exist_ok=True)
        (job.folder / "log.txt").touch()
    words = "ERM on ColoredDigits, test +90%, hparams 0, trial 0"
    assert failure_lines(statuses, {jobs[4].folder.name: "7_4 TIMEOUT", jobs[0].folder.name: "7_5 FAILED"}) == [
        f"{words}\n  interrupted, can be resumed; SLURM task 7_4 TIMEOUT; log: {jobs[4].folder}/log.txt",
        f"{words}\n  RuntimeError: no",
        f"  failed 2 times, last on node3, {LONG_AGO}; log: {jobs[5].folder}/log.txt",
        f"{words}\n  unknown reason",
        f"  failed once; log: {jobs[6].folder}/log.txt",
        f"{jobs[7]}\n  SLURM task 7_7 ended before the job started",
        "  failed once",
    ]
    assert failure_lines({jobs[4]: statuses[jobs[4]]}, {}) == []


def test_progress_is_read_from_the_last_complete_record(tmp_path: Path):
    """However long the file is, and even if its last line is incomplete."""
    job = make_job(tmp_path, steps=100_000)
    job.folder.mkdir()
    lines = [json.dumps({"step": step, "x": "y" * 1000}) for step in range(0, 9901, 100)]
    (job.folder / "results.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:500])
    assert summary_line({job: Status(JobState.INCOMPLETE)}) == "0 of 1 jobs done; 9,901 of 100,000 updates"
