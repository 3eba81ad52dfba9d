"""From the arguments of a launch to its jobs."""

import itertools
import json
from pathlib import Path

import pytest

from domainbed.algorithms import ALGORITHMS, FAMILIES, expand_groups
from domainbed.datasets import BENCHMARK, DATASETS
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.seeding import seed_hash
from domainbed.sweep.grid import MAX_JOBS, Grid, all_test_envs
from domainbed.sweep.job import Job


def jobs_of(output_dir: str = "sweep", **kwargs) -> list[Job]:
    return Grid.from_args({"algorithms": ["ERM"], **kwargs}).jobs(Path(output_dir))


def test_single_test_envs():
    jobs = jobs_of(datasets=BENCHMARK)
    assert len(jobs) == 1860
    assert len({job.folder for job in jobs}) == len(jobs)
    assert all(len(job.config.test_envs) == 1 for job in jobs)


def test_pairs_with_leave_one_out():
    assert len(jobs_of(leave_one_out=True)) == 5280
    assert all_test_envs(3, True) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    assert all_test_envs(2, True) == [(0,), (1,)]


def test_order_and_seeds_are_those_of_domainbed():
    jobs = jobs_of(datasets=["RotatedMNIST", "ColoredMNIST"], n_hparams_from=3, n_hparams=5, n_trials=2)
    expected = [
        (trial, dataset, "ERM", env, hparams_seed)
        for trial, dataset in itertools.product(range(2), ["RotatedMNIST", "ColoredMNIST"])
        for env in range(len(DATASETS[dataset].ENVIRONMENTS))
        for hparams_seed in (3, 4)
    ]
    for job, (trial, dataset, algorithm, env, hparams_seed) in zip(jobs, expected, strict=True):
        c = job.config
        assert (c.trial_seed, c.dataset, c.algorithm, c.test_envs, c.hparams_seed) == (
            trial,
            dataset,
            algorithm,
            (env,),
            hparams_seed,
        )
        assert c.seed == seed_hash(dataset, algorithm, [env], hparams_seed, trial)


def test_repeated_names_count_once():
    jobs = jobs_of(datasets=["ColoredDigits", "ColoredDigits"], algorithms=["ERM", "ERM"])
    assert len(jobs) == len(set(jobs)) == 3 * 20 * 3


def test_folder_names_do_not_depend_on_paths():
    here, elsewhere = jobs_of(data_dir="/a"), jobs_of(data_dir="/b", output_dir="/elsewhere")
    assert [job.folder.name for job in here] == [job.folder.name for job in elsewhere]
    assert here[0].folder.parent == Path("sweep").absolute()
    assert jobs_of(data_dir="data")[0].config.data_dir == str(Path("data").absolute())


def test_args_round_trip():
    args = {"datasets": ("ColoredDigits",), "n_trials": 2, "steps": 3, "imports": ()}
    grid = Grid.from_args(args)
    assert grid.job_args == {"steps": 3, "imports": ()}
    assert args.items() <= grid.args().items()
    assert Grid.from_args(grid.args()) == grid


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_trials": 0}, "--n_trials must be at least 1"),
        ({"n_hparams": 0}, "--n_hparams 0 must be above --n_hparams_from 0"),
        ({"n_hparams_from": 20}, "--n_hparams 20 must be above --n_hparams_from 20"),
        ({"n_hparams_from": -1}, "--n_hparams_from must be at least 0, not -1"),
        ({"datasets": ["Rotated"]}, "unknown dataset 'Rotated'"),
        ({"algorithms": ["DAN"]}, "unknown algorithm 'DAN'"),
        ({"steps": 0}, "--steps must be at least 1"),
    ],
)
def test_invalid_arguments(kwargs: dict, message: str):
    with pytest.raises(UsageError) as error:
        jobs_of(**kwargs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "args",
    [
        {"n_trials": 10**9},
        {"n_trials": 10**400},
        {"n_hparams": 10**18},
        {"n_hparams": 10**4200, "n_trials": 10**4200},  # Python does not print their product
        {"n_trials": 1000, "n_hparams": 100, "datasets": ["PACS"]},  # the four environments make it too many
        {"n_trials": 500, "n_hparams": 100, "datasets": ["RotatedMNIST"], "leave_one_out": True},
    ],
)
def test_too_many_jobs_are_refused_at_once(args: dict):
    with pytest.raises(UsageError, match=f"the launch has more than {MAX_JOBS:,} jobs; specify fewer"):
        jobs_of(**{"algorithms": [f"A{i}" for i in range(5)], **args})


@pytest.mark.parametrize("n_trials", ["3", 2.5, True, None, [3], {"a": 1}])
def test_numbers_of_a_launch_file_are_checked(n_trials: object):
    with pytest.raises((UsageError, TypeError)):
        jobs_of(n_trials=n_trials)


@pytest.mark.parametrize("name", ["trial_seed", "hparams_seed"])
def test_seeds_are_those_that_tables_read(name: str):
    args = {"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": (0,)}
    assert getattr(JobConfig(**args, **{name: 2**63 - 1}), name) == 2**63 - 1
    with pytest.raises(UsageError, match=f"--{name} must be at least 0 and below 9,223,372,036,854,775,808"):
        JobConfig(**args, **{name: 2**63})


def expanded(**kwargs) -> tuple[Grid, list[str]]:
    return Grid.from_args({"n_hparams": 1, "n_trials": 1, **kwargs}).expand_groups()


def test_groups_stand_for_their_members():
    grid, skipped = expanded(algorithms=["alignment", "ERM", "DANN"], datasets=["PACS"])
    assert grid.algorithms == (*FAMILIES["alignment"], "ERM")
    assert (grid.left_out, skipped) == ((), [])
    grid, _ = expanded(algorithms=["all"], datasets=["PACS"])
    assert grid.algorithms == tuple(ALGORITHMS)
    assert len(list(grid.runs())) == 4 * len(ALGORITHMS)


def test_names_alone_change_nothing():
    grid = Grid.from_args({"algorithms": ["ERM", "MIRO"], "datasets": ["ColoredDigits"]})
    assert grid.expand_groups() == (grid, [])
    assert "left_out" not in grid.args()


def test_members_are_left_out_on_datasets_that_they_do_not_support():
    grid, skipped = expanded(algorithms=["oracle", "ERM"], datasets=["ColoredDigits", "PACS"])
    assert skipped == ["Skipping MIRO on ColoredDigits: it requires a dataset of photos, not of small images"]
    kinds = {(run.dataset, run.algorithm) for run in grid.runs()}
    assert kinds == {("ColoredDigits", "ERM"), ("PACS", "MIRO"), ("PACS", "ERM")}
    recorded = json.loads(json.dumps(grid.args()))
    assert list(Grid.from_args(recorded).runs()) == list(grid.runs())


def test_members_that_do_not_train_on_features_are_left_out():
    mlp = {"frozen": True, "backbone": "resnet18"}
    _, skipped = expanded(algorithms=["all"], datasets=["PACS"], hparams=json.dumps(mlp))
    reason = "it requires images, not the features of a frozen backbone"
    assert skipped == [f"Skipping {name} on PACS: {reason}" for name in ("ARM", "MIRO")]
    grid, skipped = expanded(algorithms=["all"], datasets=["PACS"], hparams=json.dumps({**mlp, "linear_probe": True}))
    assert {line.split()[1] for line in skipped} == {"TRM", "SagNet", "ADRMX", "ARM", "MIRO"}
    assert {line.split()[1] for line in skipped if "a trained featurizer" in line} == {"TRM", "SagNet", "ADRMX"}
    assert not {"TRM", "SagNet", "ADRMX", "ARM", "MIRO"} & {run.algorithm for run in grid.runs()}


def test_members_that_require_more_domains_are_left_out():
    """A pair of test environments leaves one of three environments to train on."""
    single, skipped = expanded(algorithms=["meta"], datasets=["ColoredDigits"])
    assert (single.left_out, skipped) == ((), [])
    pairs, skipped = expanded(algorithms=["meta"], datasets=["ColoredDigits"], leave_one_out=True)
    assert pairs.left_out == (("ColoredDigits", "MLDG"),)
    assert skipped == ["Skipping MLDG on ColoredDigits: it requires at least 2 training domains, not 1"]


def test_member_that_is_also_listed_is_kept():
    grid, skipped = expanded(algorithms=["all", "MIRO"], datasets=["ColoredDigits"])
    assert ("ColoredDigits", "MIRO") in {(run.dataset, run.algorithm) for run in grid.runs()}
    assert skipped == []


def test_group_without_a_supported_dataset_is_rejected():
    with pytest.raises(UsageError, match="--algorithms oracle: no algorithm of these groups supports --datasets Colo"):
        expanded(algorithms=["oracle"], datasets=["ColoredDigits", "RotatedDigits"])


@pytest.mark.parametrize(("name", "hint"), [("alignmnt", "alignment"), ("ALL", "all"), ("EMR", "ERM")])
def test_misspelled_group_or_algorithm(name: str, hint: str):
    with pytest.raises(UsageError, match=f"unknown algorithm '{name}'; did you mean .*{hint}"):
        expanded(algorithms=[name])


def test_own_algorithm_takes_precedence_over_a_group():
    with ALGORITHMS.temporarily("meta", ALGORITHMS["ERM"]):
        assert expand_groups(["meta"]) == ("meta",)
        assert "meta" in expand_groups(["all"])
    assert expand_groups(["meta"]) == FAMILIES["meta"]


def test_every_builtin_algorithm_belongs_to_one_family():
    members = [name for family in FAMILIES.values() for name in family]
    assert sorted(members) == sorted(ALGORITHMS.builtin_names)
    assert not {*FAMILIES, "all"} & set(ALGORITHMS.builtin_names)
