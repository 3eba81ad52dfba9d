"""From a sweep's arguments to its jobs."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.datasets import num_environments
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.seeding import seed_hash
from domainbed.sweep.job import Job

RANGES = ("datasets", "algorithms", "n_hparams_from", "n_hparams", "n_trials", "leave_one_out")  # not one job's


class Run(NamedTuple):
    """What tells one run of a sweep from another (the columns of records.RUN, in that order)."""

    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    trial_seed: int
    hparams_seed: int


def make_runs(
    datasets: Sequence[str],
    algorithms: Sequence[str],
    n_hparams_from: int,
    n_hparams: int,
    n_trials: int,
    leave_one_out: bool,
    data_dir: str | None = None,
    **_: Any,
) -> Iterator[Run]:
    """Every dataset x algorithm x choice of test environments x hyperparameter draw x trial, trial by trial.

    Args:
        n_hparams_from, n_hparams: the draws are number n_hparams_from, …, n_hparams - 1; number 0 is the defaults.
        leave_one_out: besides each single test environment, leave out each pair.
        data_dir: where Folder looks for its environments.

    Raises:
        UsageError: the ranges are empty.
    """
    if n_trials < 1:
        raise UsageError(f"--n_trials must be at least 1, not {n_trials}")
    if not 0 <= n_hparams_from < n_hparams:
        raise UsageError(
            f"--n_hparams {n_hparams} must be above --n_hparams_from {n_hparams_from}, and that at least 0"
        )
    unique = dict.fromkeys  # named twice is wanted once
    for trial_seed, dataset, algorithm in itertools.product(range(n_trials), unique(datasets), unique(algorithms)):
        for test_envs in all_test_envs(num_environments(dataset, data_dir), leave_one_out):
            for hparams_seed in range(n_hparams_from, n_hparams):
                yield Run(dataset, algorithm, test_envs, trial_seed, hparams_seed)


def make_jobs(output_dir: str, **arguments: Any) -> list[Job]:
    """The job of each run of `make_runs`, in the sweep's folder `output_dir`.

    Args:
        arguments: those of `make_runs`, and any other field of JobConfig.

    Raises:
        UsageError: the ranges are empty, or an argument can't be.
    """
    return [make_job(run, output_dir, arguments) for run in make_runs(**arguments)]


def make_job(run: Run, output_dir: str, arguments: Mapping[str, Any]) -> Job:
    """The job of one run; `arguments` as in `make_jobs`."""
    seed = seed_hash(run.dataset, run.algorithm, list(run.test_envs), run.hparams_seed, run.trial_seed)
    others = {name: value for name, value in arguments.items() if name not in RANGES}
    return Job.in_sweep(JobConfig(**run._asdict(), seed=seed, **others), Path(output_dir))


def all_test_envs(n: int, leave_one_out: bool) -> list[tuple[int, ...]]:
    """Each of `n` environments alone and, if asked for, each pair that leaves one to train on."""
    pairs = itertools.combinations(range(n), 2) if leave_one_out and n > 2 else ()
    return [*((i,) for i in range(n)), *pairs]
