"""What a job is, and which two are the same."""

from pathlib import Path

import pytest

from domainbed.engine.config import JobConfig
from domainbed.scripts import sweep, train
from domainbed.sweep.job import Job
from domainbed.sweep.log import log_launch, requested_jobs
from domainbed.sweep.status import JobState, survey
from tests.images import write_tree
from tests.sweep.helpers import fill_folder, main


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"test_envs": (0, 2), "hparams": '{"lr": 0.5}', "hparams_seed": 3, "trial_seed": 2, "seed": 77},
        {"steps": 3, "checkpoint_freq": 2, "holdout_fraction": 0.35, "data_dir": "/with space", "output_dir": "o"},
        {"skip_model_save": True, "save_model_every_checkpoint": True, "imports": ("os", "sys")},
        {"task": "domain_adaptation", "uda_holdout_fraction": 0.25},
    ],
)
def test_the_command_line_says_the_same(kwargs: dict):
    config = JobConfig(**{"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": (1,), **kwargs})
    words = Job(config).command()
    assert words[1:3] == ["-m", "domainbed.scripts.train"]
    parsed = train.config_of(train.parser().parse_args(words[3:]))
    assert parsed == config
    assert parsed.args() == config.args()


def test_a_job_tells_what_it_is():
    job = Job(JobConfig(dataset="ColoredDigits", algorithm="ERM", test_envs=(2, 0), hparams_seed=4, trial_seed=1))
    assert str(job) == "ERM on ColoredDigits, test +90% and -90%, hparams 4, trial 1"


def test_of_two_trees_in_one_sweep_no_job_is_taken_for_another(tmp_path: Path, capsys: pytest.CaptureFixture):
    """One is done, the other was never launched."""
    for name, envs in (("one", ("spring", "winter")), ("two", ("day", "night"))):
        tree = write_tree(tmp_path / name, {env: {"ash": 5, "oak": 5} for env in envs})
        words = ["--datasets", "Folder", "--data_dir", tree, "--algorithms", "ERM", "--n_hparams", 1, "--n_trials", 1]
        args = sweep.parser().parse_args(list(map(str, ["launch", *words, "--output_dir", tmp_path / "sweep"])))
        log_launch(tmp_path / "sweep", sweep.grid_of(args))
    jobs = requested_jobs(tmp_path / "sweep")
    assert len(set(jobs)) == 4
    for job in jobs[2:]:
        fill_folder(job, JobState.DONE)
    assert [status.state.value for status in survey(jobs).values()] == ["not launched"] * 2 + ["done"] * 2
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 3
    assert "2 of 4 jobs done" in capsys.readouterr().out
