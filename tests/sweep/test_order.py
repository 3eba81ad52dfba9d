"""Trial by trial, the jobs that take longest begin first."""

from pathlib import Path

from domainbed.records import append_record, mark_done
from domainbed.sweep.order import launch_order
from tests.sweep.helpers import make_job


def done(folder: Path, step_time, **kwargs):
    job = make_job(folder, hparams=None, **kwargs)
    job.folder.mkdir()
    append_record(job.folder, {"step": 0, "step_time": 99.0})
    append_record(job.folder, {"step": 2, "step_time": step_time})
    mark_done(job.folder)
    return job


def test_by_what_jobs_of_their_kind_took(tmp_path: Path):
    kinds = {"quick": "ERM", "slow": "Fishr", "unknown": "CORAL", "odd": "VREx"}
    sweep = [done(tmp_path, 0.5, algorithm="ERM"), done(tmp_path, 4.0, algorithm="Fishr")]
    sweep.append(done(tmp_path, "long", algorithm="VREx"))

    def make(kind: str, **kwargs):
        return make_job(tmp_path, algorithm=kinds[kind], hparams=None, **kwargs)

    half_done = make("unknown", seed=7)
    half_done.folder.mkdir()
    append_record(half_done.folder, {"step": 0, "step_time": 0.001})
    jobs = [
        make("quick", seed=1, steps=20),
        make("unknown", seed=2),
        make("slow", seed=3, steps=2),
        make("odd", seed=4),
        make("quick", seed=5, steps=10),
        make("slow", seed=6, steps=3),
        half_done,
    ]
    assert [job.config.seed for job in launch_order(jobs, [*sweep, *jobs])] == [2, 4, 7, 6, 1, 3, 5]


def test_no_trial_begins_before_the_one_before_it(tmp_path: Path):
    """However long its jobs take, and whatever is known of them."""
    sweep = [done(tmp_path, 0.5, algorithm="ERM"), done(tmp_path, 4.0, algorithm="Fishr")]
    kinds = ["CORAL", "ERM", "Fishr"]
    jobs = [make_job(tmp_path, algorithm=kind, hparams=None, trial_seed=t) for kind in kinds for t in (2, 0, 1)]
    began = [(job.config.trial_seed, job.config.algorithm) for job in launch_order(jobs, [*sweep, *jobs])]
    assert began == [(trial, kind) for trial in range(3) for kind in ("CORAL", "Fishr", "ERM")]


def test_where_nothing_is_known_the_order_stays(tmp_path: Path):
    jobs = [make_job(tmp_path, seed=seed, steps=seed + 1) for seed in range(5)]
    assert launch_order(jobs, jobs) == jobs
    assert launch_order([], jobs) == []
