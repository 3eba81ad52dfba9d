"""Jobs: their command lines, descriptions and equality."""

from pathlib import Path

import pytest

from domainbed.engine.config import JobConfig
from domainbed.scripts import train
from domainbed.sweep.job import Job
from domainbed.sweep.log import requested_jobs
from domainbed.sweep.status import JobState, survey
from tests.images import write_tree
from tests.sweep.helpers import fill_folder, log_only, main


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
def test_command_line_round_trip(kwargs: dict):
    config = JobConfig(**{"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": (1,), **kwargs})
    words = Job(config).command()
    assert words[1:3] == ["-m", "domainbed.scripts.train"]
    parsed = train.config_of(train.parser().parse_args(words[3:]))
    assert parsed == config
    assert parsed.args() == config.args()


def test_description():
    job = Job(JobConfig(dataset="ColoredDigits", algorithm="ERM", test_envs=(2, 0), hparams_seed=4, trial_seed=1))
    assert str(job) == "ERM on ColoredDigits, test +90% and -90%, hparams 4, trial 1"


def test_jobs_of_two_image_folders_are_distinct(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Those of one are done, those of the other not launched."""
    for name, envs in (("one", ("spring", "winter")), ("two", ("day", "night"))):
        tree = write_tree(tmp_path / name, {env: {"ash": 5, "oak": 5} for env in envs})
        words = ["--datasets", "Folder", "--data_dir", tree, "--algorithms", "ERM", "--n_hparams", 1, "--n_trials", 1]
        log_only(list(map(str, ["launch", *words, "--output_dir", tmp_path / "sweep"])))
    jobs = requested_jobs(tmp_path / "sweep")
    assert len(set(jobs)) == 4
    for job in jobs[2:]:
        fill_folder(job, JobState.DONE)
    assert [status.state.value for status in survey(jobs).values()] == ["not launched"] * 2 + ["done"] * 2
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 3
    assert "2 of 4 jobs done" in capsys.readouterr().out
