import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError


def make(**kwargs) -> JobConfig:
    return JobConfig(**{"dataset": "ColoredMNIST", "algorithm": "ERM", "test_envs": (0,), **kwargs})


def test_steps_and_checkpoint_freq_default_to_the_datasets():
    config = make()
    assert (config.steps, config.checkpoint_freq) == (5001, 100)
    assert make(steps=5001, checkpoint_freq=100) == config
    assert make(steps=5001, checkpoint_freq=100).name() == config.name()


def test_name_hashes_exactly_what_determines_the_records():
    names = {make().name()}
    not_hashed = {
        "data_dir": "/x",
        "output_dir": "/y",
        "skip_model_save": True,
        "save_model_every_checkpoint": True,
        "save_best_model": True,
        "save_predictions": True,
        "imports": ("os",),
        "trust_checkpoint": True,
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
        "log_to": ("csv",),
    }
    assert make(**not_hashed).name() in names
    assert make(hparams="{}").name() in names
    hashed = {
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
        "averaging": "sma",
        "init_digest": "ab",
        "eval": "splits",
        "clean_evaluation": True,
        "protocol": "head",
        "precision": "bf16",
    }
    for name, value in hashed.items():
        is_adaptation = name in ("task", "uda_holdout_fraction")
        names.add(make(**{name: value}).name() if not is_adaptation else make(**{**hashed, name: value}).name())
    assert len(names) == len(hashed), "task and uda_holdout_fraction require one another"
    # init_from by its content, init_digest; the columns and the split of a Table are tested below.
    others = {"algorithm", "init_from", "columns", "split_by"}
    assert set(hashed) | set(not_hashed) | others == {f.name for f in dataclasses.fields(JobConfig)}
    assert make(hparams='{"lr": 0.5, "batch_size": 3}').name() == make(hparams='{"batch_size":3,"lr":0.5}').name()


def test_names_are_stable():
    """With other names, all jobs of existing sweeps would count as not launched."""
    assert make().name() == "2441d3614c14c51e29dcc7cd5049b2fc"
    assert make(hparams_seed=3, trial_seed=1, seed=5).name() == "75ecb8aab4dfb5a6711c7e9757ab549c"


def test_args_are_json_and_pickling_preserves_the_job():
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
        ({"task": "generalization"}, "invalid --task 'generalization'"),
        ({"test_envs": (3,)}, "--test_envs 3: ColoredMNIST has no such environment; choose from 0 (+90%), 1 (+80%)"),
        ({"test_envs": (-1,)}, "--test_envs -1"),
        ({"test_envs": ()}, "--test_envs is empty; choose from 0 (+90%)"),
        ({"test_envs": (1, 1)}, "lists an environment twice"),
        ({"test_envs": (0, 1, 2)}, "--test_envs leaves no environment of ColoredMNIST to train on; omit one of 0"),
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"checkpoint_freq": 0}, "--checkpoint_freq must be at least 1"),
        ({"hparams_seed": -1}, "--hparams_seed must be at least 0"),
        ({"trial_seed": -1}, "--trial_seed must be at least 0"),
        ({"seed": -5}, "--seed must be at least 0"),
        ({"seed": 2**32}, "--seed must be at least 0 and below 4,294,967,296, not 4294967296"),
        ({"holdout_fraction": 0.0}, "--holdout_fraction must be above 0 and below 1, not"),
        ({"holdout_fraction": 1.0}, "--holdout_fraction must be above 0 and below 1, not"),
        ({"holdout_fraction": float("nan")}, "--holdout_fraction must be above 0 and below 1, not"),
        ({"uda_holdout_fraction": 1.0}, "--uda_holdout_fraction must be at least 0 and below 1, not 1.0"),
        (
            {"uda_holdout_fraction": 0.5},
            "--task domain_adaptation requires --uda_holdout_fraction above 0, and vice versa",
        ),
        (
            {"task": "domain_adaptation"},
            "--task domain_adaptation requires --uda_holdout_fraction above 0, and vice versa",
        ),
        ({"hparams": '{"lr": 1'}, "is not JSON"),
        ({"hparams": "[1]"}, "must be a JSON object"),
    ],
)
def test_invalid_argument_is_named(kwargs: dict, message: str):
    with pytest.raises(UsageError) as error:
        make(**kwargs)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_job_equals_the_job_from_its_recorded_args():
    config = make(output_dir="job", track="landscape", imports=("json",))
    args = config.args()
    assert JobConfig.from_recorded_args(args) == config
    assert JobConfig.from_recorded_args(args).args() == args
    older = {name: value for name, value in args.items() if name not in ("track", "precision")}
    assert JobConfig.from_recorded_args({**older, "unknown_option": 1}) == config
    with pytest.raises(UsageError, match="unknown dataset"):
        JobConfig.from_recorded_args({**args, "dataset": "Digits"})


def test_hyperparameters_are_checked_when_they_are_resolved():
    """Until then, the algorithm need not be imported."""
    config = make(hparams='{"lrr": 1}')
    with pytest.raises(UsageError, match=r"ERM has no hyperparameter 'lrr'; did you mean lr\?"):
        config.resolved_hparams()


def test_columns_and_splits_by_group_are_part_of_the_name_in_one_form(tmp_path: Path):
    for i in range(2):
        (tmp_path / f"{i}.csv").write_text("file,kind,env,who\na.png,x,0,p\nb.png,y,1,q\n")
    given = {"dataset": "Table", "algorithm": "ERM", "test_envs": (0,), "data_dir": str(tmp_path / "0.csv")}
    labeled = JobConfig(**given, columns="label=kind")
    grouped = JobConfig(**given, columns="group=who, label=kind")
    assert grouped.columns == "label=kind,group=who"
    assert grouped.splits_groups()
    assert not labeled.splits_groups()
    # Spelling out the default names the same job.
    assert JobConfig(**given, columns="label=kind,group=who", split_by="group") == grouped
    assert JobConfig(**given, columns="label=kind", split_by="image") == labeled
    by_image = JobConfig(**given, columns="label=kind,group=who", split_by="image")
    assert not by_image.splits_groups()
    assert len({config.name() for config in (labeled, grouped, by_image)}) == 3
    moved = JobConfig(**{**given, "data_dir": str(tmp_path / "1.csv")}, columns="group=who,label=kind")
    assert moved.name() == grouped.name()
    assert JobConfig.from_recorded_args(grouped.args()) == grouped
    assert JobConfig("ColoredDigits", "ERM", (0,), split_by="image") == JobConfig("ColoredDigits", "ERM", (0,))
    with pytest.raises(UsageError, match="--split_by"):
        JobConfig(**given, columns="label=kind", split_by="patient")
    with pytest.raises(UsageError, match="--columns applies to the Table dataset only"):
        JobConfig("ColoredDigits", "ERM", (0,), columns="label=kind")
