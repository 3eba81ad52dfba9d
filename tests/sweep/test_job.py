import pytest

from domainbed.engine.config import JobConfig
from domainbed.scripts import train
from domainbed.sweep.job import Job


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
