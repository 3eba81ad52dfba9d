"""The estimated cost of a launch."""

import dataclasses
import json
from collections import namedtuple
from pathlib import Path

import pytest

from domainbed.engine.config import JobConfig
from domainbed.records import append_record, mark_done
from domainbed.sweep import cost, measurement, step_times
from domainbed.sweep.cost import count_models, estimate
from domainbed.sweep.job import Job
from domainbed.sweep.launchers import LAUNCHERS, Capacity
from domainbed.sweep.launchers.slurm import SlurmOptions
from domainbed.sweep.measurement import Measurement, Timing
from domainbed.sweep.preflight import check_jobs
from domainbed.sweep.status import survey
from domainbed.sweep.step_times import StepTime, recorded_step_times
from tests.sweep.helpers import jobs_of, launch_words, main, make_job

ERM, FISHR = ("ColoredDigits", "ERM"), ("ColoredDigits", "Fishr")


def make(folder: Path, algorithm: str, **kwargs) -> Job:
    return make_job(folder, algorithm=algorithm, hparams=None, **kwargs)


def finish(job: Job, step_time: object, step: int = 2, mem_gb: float = 0.0) -> Job:
    """Create the folder of a finished job."""
    job.folder.mkdir(parents=True)
    args = job.config.args()
    append_record(job.folder, {"step": step, "step_time": step_time, "mem_gb": mem_gb, "args": args})
    mark_done(job.folder)
    return job


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with 2 MiB of free space."""
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(2 * 2**20))


def test_records_of_finished_jobs_come_first(tmp_path: Path):
    """Then those of other jobs in the sweep's folder. Unusable records do not count."""
    done = [
        finish(make(tmp_path, "ERM", seed=seed), seconds) for seed, seconds in enumerate((1.0, 3.0, "long", 0.0, 1e300))
    ]
    finish(make(tmp_path, "ERM", seed=9, steps=50), 100.0)  # of another launch
    finish(make(tmp_path, "Fishr", seed=9, steps=50), 7.0, mem_gb=1.0)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "results.jsonl").write_text('{"step": 1, "step_time": 5.0, "args": [1]}\n')
    new = [make(tmp_path, algorithm, seed=8) for algorithm in ("ERM", "Fishr", "CORAL")]
    found = recorded_step_times(survey([*done, *new]), {job.kind for job in new})
    assert found == {ERM: StepTime(2.0, 2, False), FISHR: StepTime(7.0, 1, True)}


def test_a_large_sweep_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = [finish(make(tmp_path, "ERM", seed=seed), 1.0 + seed) for seed in range(20)]
    read = []
    original = step_times.last_record
    monkeypatch.setattr(step_times, "last_record", lambda folder: read.append(folder) or original(folder))
    step_time = recorded_step_times(survey(done), {ERM})[ERM]
    assert len(read) == step_time.n_jobs == 7
    assert step_time.seconds == sum(range(1, 21, 3)) / 7, "from early and late jobs"


def test_nothing_is_known_before_the_folder_exists(tmp_path: Path):
    job = make(tmp_path / "new", "ERM")
    assert recorded_step_times(survey([job]), {ERM}) == {}


def test_price(tmp_path: Path, disk: None):
    jobs = [make(tmp_path, "ERM", seed=seed, steps=1000) for seed in range(3)]
    jobs += [make(tmp_path, "Fishr", steps=5000), make(tmp_path, "CORAL", steps=100)]
    jobs[0].folder.mkdir()
    append_record(jobs[0].folder, {"step": 499})  # half of it is done
    measurements = {job.kind: Measurement(2**20, None) for job in jobs}
    measurements[FISHR] = Measurement(2**20, StepTime(2.0, 0, False))
    recorded = {ERM: StepTime(1.0, 8, True)}
    result = estimate(jobs, survey(jobs), recorded, measurements, Capacity(2, 4, 0.5))
    assert (result.updates, result.seconds) == (500 + 2 * 1000 + 5000 + 100, 2500 + 10_000)
    assert result.wall_seconds == 10_000, "not less than the longest job takes"
    assert result.lines() == [
        "Estimate: 5 jobs, 7,600 updates, 2 h 47 min with 2 at once, 14 core-hours, 1.7 GPU-hours",
        "  without evaluations; based on the records of 8 jobs on a GPU and 2 updates of each of 1 kind of jobs on "
        "this machine, without loading",
        "  time unknown, not included: CORAL on ColoredDigits; there are no records of such jobs (`--estimate` times "
        "updates of built-in algorithms)",
        "  disk: 5.0 MiB for 5 saved models (--skip_model_save saves none); 2.0 MiB free",
        "  warning: there is not enough free space for them",
    ]
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["unknown"] == [{"dataset": "ColoredDigits", "algorithm": "CORAL"}]
    assert (content["seconds"], content["gpu_hours"]) == (10_000, 12_500 / 3600 / 2)


def test_cost_without_any_knowledge(tmp_path: Path):
    """Of a launcher that does not say what it runs jobs on, and of algorithms whose size is unknown."""
    jobs = [make(tmp_path, name) for name in ("ERM", "CORAL", "Fishr", "VREx")]
    result = estimate(jobs, survey(jobs), {}, {ERM: Measurement(None, None)}, None)
    assert result.lines() == [
        "Estimate: 4 jobs, 12 updates",
        "  time unknown, not included: ERM on ColoredDigits, CORAL on ColoredDigits and 2 more; there are no records "
        "of such jobs (`--estimate` times updates of built-in algorithms)",
    ]
    assert result.lines(is_timed=True)[1].endswith("and 2 more; they could not be timed")
    assert result.to_json()["seconds"] is result.to_json()["core_hours"] is None
    known = estimate(jobs[:1], survey(jobs), {ERM: StepTime(20.0, 1, False)}, {}, None)
    large = estimate(jobs[:1], survey(jobs), {ERM: StepTime(8e4, 1, False)}, {}, Capacity(1, 64, 1.0))
    assert large.lines()[0] == "Estimate: 1 jobs, 3 updates, 2 d 18 h with 1 at once, 4,267 core-hours, 67 GPU-hours"
    assert known.lines()[0] == "Estimate: 1 jobs, 3 updates, 60 s one after another"


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 1),
        ({"skip_model_save": True}, 0),
        ({"save_best_model": True}, 2),
        ({"save_model_every_checkpoint": True, "skip_model_save": True, "steps": 101, "checkpoint_freq": 50}, 3),
        ({"save_model_every_checkpoint": True, "steps": 102, "checkpoint_freq": 50}, 5),
    ],
)
def test_number_of_models(options: dict, n: int):
    assert count_models(JobConfig("ColoredDigits", "ERM", (0,), **options)) == n


def test_updates_are_timed_and_models_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only those of built-in algorithms: the updates of others may never end."""
    jobs = [make(tmp_path, "ERM"), make(tmp_path, "Fishr"), make_job(tmp_path, "sleep", at=0)]
    kinds = [job.kind for job in jobs]
    found = check_jobs(jobs, Timing({ERM, kinds[2]}, 60.0)).measurements
    assert set(found) == set(kinds)
    assert found[ERM].step_time is not None
    assert 0 < found[ERM].step_time.seconds < 10
    assert found[FISHR].step_time is found[kinds[2]].step_time is None
    assert check_jobs(jobs[:1], Timing({ERM}, 0.0)).measurements[ERM].step_time is None, "no time is left"
    config = dataclasses.replace(jobs[0].config, output_dir=str(tmp_path / "job"))

    from domainbed.engine.model import MODEL_FILE
    from domainbed.engine.train import train

    train(config)
    size = (tmp_path / "job" / MODEL_FILE).stat().st_size
    model_bytes = found[ERM].model_bytes
    assert model_bytes is not None
    assert model_bytes < size < model_bytes + 20_000

    monkeypatch.setattr(measurement, "time_updates", lambda *args: 1 / 0)
    assert check_jobs(jobs[:1], Timing({ERM}, 60.0)).measurements[ERM] == Measurement(model_bytes, None)


def test_estimate_launches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = launch_words(tmp_path / "sweep", "--estimate", "--algorithms", "ERM", "--hparams", "{}")
    words.remove("--skip_confirmation")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3 jobs in {tmp_path / 'sweep'}: 3 not launched"
    assert lines[1].startswith("Estimate: 3 jobs, 9 updates, ")
    assert lines[2].endswith("based on 2 updates of each of 1 kind of jobs on this machine, without loading")
    assert lines[3].startswith("  disk: ")
    assert not (tmp_path / "sweep").exists()


def test_archives_have_step_times(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Also of jobs that are not requested."""
    words = launch_words(tmp_path / "first", "--algorithms", "ERM", "--hparams", '{"batch_size": 4}')
    assert main(words) == 0
    archive = tmp_path / "first.tar.xz"
    assert main(["export", "--output_dir", tmp_path / "first", "--archive", archive]) == 0
    capsys.readouterr()
    again = [*words, "--steps", 5, "--output_dir", tmp_path / "second", "--import_results", archive, "--estimate"]
    assert main(again) == 0
    assert "based on the records of 3 jobs on a CPU" in capsys.readouterr().out
    same = [*words, "--output_dir", tmp_path / "second", "--import_results", archive, "--estimate"]
    assert main(same) == 0
    assert "3 jobs can be imported" in capsys.readouterr().out
    assert not (tmp_path / "second").exists(), "an estimate writes nothing"


def test_capacity_of_slurm(tmp_path: Path):
    options = SlurmOptions(jobs_per_task=4, slurm_gpus=2, slurm_cpus=8, slurm_array_parallelism=5)
    launcher = LAUNCHERS["slurm"](options)
    assert launcher.capacity(10) == Capacity(3, 8, 2)
    assert launcher.capacity(1000) == Capacity(5, 8, 2)


def test_capacity_of_this_machine(tmp_path: Path):
    words = launch_words(tmp_path, "--workers", 2, "--threads", 3, launcher="local")
    assert len(jobs_of(words)) == 3
    launcher = LAUNCHERS["local"](LAUNCHERS["local"].Options(workers=2, threads=3))
    capacity = launcher.capacity(10)
    assert (capacity.jobs, capacity.cores) == (2, 3)


def test_predictions_are_counted(tmp_path: Path, disk: None):
    jobs = [make(tmp_path, "ERM", seed=seed, save_predictions=True, skip_model_save=True) for seed in range(2)]
    measurements = check_jobs(jobs, Timing()).measurements
    result = estimate(jobs, survey(jobs), {}, measurements, None)

    from domainbed.engine.train import train
    from domainbed.predictions import PREDICTIONS_FILE

    train(dataclasses.replace(jobs[0].config, output_dir=str(tmp_path / "job")))
    size = (tmp_path / "job" / PREDICTIONS_FILE).stat().st_size
    assert result.prediction_bytes == result.to_json()["prediction_bytes"] == 2 * measurements[ERM].prediction_bytes
    assert size - 10_000 < measurements[ERM].prediction_bytes < 4 * size  # the names of 1,797 digits; two evaluations
    assert result.lines()[2:] == ["  disk: 0.1 MiB for predictions; 2.0 MiB free"]
    both = dataclasses.replace(result, prediction_bytes=2**20, n_models=3, model_bytes=2**20)
    line = "  disk: 1.0 MiB for 3 saved models (--skip_model_save saves none) and 1.0 MiB for predictions; 2.0 MiB free"
    assert both.lines()[2:] == [line]
    full = dataclasses.replace(both, prediction_bytes=2**20 + 1)
    assert full.lines()[2:] == [line, "  warning: there is not enough free space for them"]
