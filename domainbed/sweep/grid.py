"""From a sweep's arguments to its jobs."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainbed.datasets import num_environments
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.seeding import seed_hash
from domainbed.sweep.job import Job


def make_jobs(
    datasets: Sequence[str],
    algorithms: Sequence[str],
    n_hparams_from: int,
    n_hparams: int,
    n_trials: int,
    leave_one_out: bool,
    output_dir: str,
    **others: Any,
) -> list[Job]:
    """Every dataset x algorithm x choice of test environments x hyperparameter draw x trial, trial by trial.

    Args:
        n_hparams_from, n_hparams: the draws are number n_hparams_from, …, n_hparams - 1; number 0 is the defaults.
        leave_one_out: besides each single test environment, leave out each pair.
        output_dir: the sweep's folder; each job's folder lies in it.
        others: passed on to each JobConfig.

    Raises:
        UsageError: the ranges are empty, or an argument can't be.
    """
    if n_trials < 1:
        raise UsageError(f"--n_trials must be at least 1, not {n_trials}")
    if not 0 <= n_hparams_from < n_hparams:
        raise UsageError(
            f"--n_hparams {n_hparams} must be above --n_hparams_from {n_hparams_from}, and that at least 0"
        )
    jobs = []
    unique = dict.fromkeys  # named twice is wanted once
    for trial_seed, dataset, algorithm in itertools.product(range(n_trials), unique(datasets), unique(algorithms)):
        for test_envs in all_test_envs(num_environments(dataset, others.get("data_dir")), leave_one_out):
            for hparams_seed in range(n_hparams_from, n_hparams):
                config = JobConfig(
                    dataset=dataset,
                    algorithm=algorithm,
                    test_envs=test_envs,
                    hparams_seed=hparams_seed,
                    trial_seed=trial_seed,
                    seed=seed_hash(dataset, algorithm, list(test_envs), hparams_seed, trial_seed),
                    **others,
                )
                jobs.append(Job.in_sweep(config, Path(output_dir)))
    return jobs


def all_test_envs(n: int, leave_one_out: bool) -> list[tuple[int, ...]]:
    """Each of `n` environments alone and, if asked for, each pair that leaves one to train on."""
    pairs = itertools.combinations(range(n), 2) if leave_one_out and n > 2 else ()
    return [*((i,) for i in range(n)), *pairs]
