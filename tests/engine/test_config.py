import dataclasses
import json
import pickle

import pytest

from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError


def make(**kwargs) -> JobConfig:
    return JobConfig(**{"dataset": "ColoredMNIST", "algorithm": "ERM", "test_envs": (0,), **kwargs})


def test_what_is_left_open_is_the_datasets_own():
    config = make()
    assert (config.steps, config.checkpoint_freq) == (5001, 100)
    assert make(steps=5001, checkpoint_freq=100) == config
    assert make(steps=5001, checkpoint_freq=100).name() == config.name()


def test_the_name_is_a_hash_of_what_determines_the_result():
    names = {make().name()}
    beside = {
        "data_dir": "/x",
        "output_dir": "/y",
        "skip_model_save": True,
        "save_model_every_checkpoint": True,
        "imports": ("os",),
        "weights_dir": "/w",
        "on_bad_image": "skip",
        "cache": "/c",
        "cache_gb": 1.0,
        "resident_gb": 1.0,
        "loader_workers": 3,
        "save_every": 1.0,
        "deterministic": True,
        "engine": "eager",
        "compile": "off",
        "track": "landscape",
    }
    assert make(**beside).name() in names
    assert make(hparams="{}").name() in names
    determining = {
        "dataset": "RotatedMNIST",
        "test_envs": (1,),
        "task": "domain_adaptation",
        "hparams": '{"lr": 0.5}',
        "hparams_seed": 1,
        "trial_seed": 1,
        "seed": 1,
        "steps": 7,
        "checkpoint_freq": 7,
        "holdout_fraction": 0.3,
        "uda_holdout_fraction": 0.5,
        "eval": "splits",
        "clean_evaluation": True,
        "precision": "bf16",
    }
    for name, value in determining.items():
        adapts = name in ("task", "uda_holdout_fraction")
        names.add(make(**{name: value}).name() if not adapts else make(**{**determining, name: value}).name())
    assert len(names) == len(determining), "task and uda_holdout_fraction only go together"
    assert set(determining) | set(beside) | {"algorithm"} == {f.name for f in dataclasses.fields(JobConfig)}
    assert make(hparams='{"lr": 0.5, "batch_size": 3}').name() == make(hparams='{"batch_size":3,"lr":0.5}').name()


def test_names_stay_what_they_are():
    """Another name would make every sweep of the past look undone."""
    assert make().name() == "2441d3614c14c51e29dcc7cd5049b2fc"
    assert make(hparams_seed=3, trial_seed=1, seed=5).name() == "75ecb8aab4dfb5a6711c7e9757ab549c"


def test_args_are_json_and_pickles_are_whole():
    config = make(test_envs=(2, 0), hparams='{"lr": 0.5}', imports=("os",))
    args = config.args()
    assert json.loads(json.dumps(args)) == args
    assert args["test_envs"] == [0, 2]
    assert args["hparams"] == '{"lr": 0.5}'
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dataset": "ColourMNIST"}, "unknown dataset 'ColourMNIST'; did you mean ColoredMNIST"),
        ({"algorithm": "ERN"}, "unknown algorithm 'ERN'; did you mean ERM?"),
        ({"task": "generalization"}, "unknown task 'generalization'"),
        ({"test_envs": (3,)}, "--test_envs 3: ColoredMNIST has no such environment; choose from 0 (+90%), 1 (+80%)"),
        ({"test_envs": (-1,)}, "--test_envs -1"),
        ({"test_envs": ()}, "--test_envs names no environment"),
        ({"test_envs": (1, 1)}, "names an environment twice"),
        ({"test_envs": (0, 1, 2)}, "names all environments of ColoredMNIST; leave one"),
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"checkpoint_freq": 0}, "--checkpoint_freq must be at least 1"),
        ({"hparams_seed": -1}, "--hparams_seed must be at least 0"),
        ({"trial_seed": -1}, "--trial_seed must be at least 0"),
        ({"seed": -5}, "--seed must be at least 0"),
        ({"seed": 2**32}, "--seed must be below 2**32"),
        ({"holdout_fraction": 0.0}, "--holdout_fraction must lie between 0 and 1"),
        ({"holdout_fraction": 1.0}, "--holdout_fraction must lie between 0 and 1"),
        ({"holdout_fraction": float("nan")}, "--holdout_fraction must lie between 0 and 1"),
        ({"uda_holdout_fraction": 1.0}, "--uda_holdout_fraction must lie in [0, 1)"),
        ({"uda_holdout_fraction": 0.5}, "need one another"),
        ({"task": "domain_adaptation"}, "need one another"),
        ({"hparams": '{"lrr": 1}'}, "did you mean lr?"),
    ],
)
def test_mistakes_are_named(kwargs: dict, message: str):
    with pytest.raises(UsageError) as error:
        make(**kwargs)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
