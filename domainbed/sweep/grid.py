"""From the arguments of a launch to its jobs."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS
from domainbed.datasets import BENCHMARK, DATASETS, num_environments
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.options import check_options, option
from domainbed.seeding import seed_hash
from domainbed.sweep.job import Job


class RunKey(NamedTuple):
    """The coordinates of a run in a sweep: the columns of `records.RUN_KEYS`, in that order.

    In tables and states, `algorithm` is the name in tables (`records.algorithm_name`).
    """

    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    trial_seed: int
    hparams_seed: int


# Fields of JobConfig that differ from job to job, or that jobs of a sweep leave at their defaults.
NOT_SHARED = {*RunKey._fields, "seed", "init_digest", "output_dir", "task", "checkpoint_freq", "uda_holdout_fraction"}


@dataclass(frozen=True)
class Grid:
    """The jobs of a launch: all combinations of dataset, algorithm, test environments, hyperparameter draw and trial.

    Attributes:
        job_args: arguments shared by all jobs, by their names in JobConfig.

    Raises:
        UsageError: on construction, if a range is empty.
    """

    datasets: tuple[str, ...] = option(
        BENCHMARK, help=f"datasets: any of {', '.join(DATASETS)}, or your own", metavar="NAME"
    )
    algorithms: tuple[str, ...] = option(
        DEFAULT_ALGORITHMS, help=f"algorithms: any of {', '.join(ALGORITHMS)}, or your own", metavar="NAME"
    )
    n_hparams_from: int = option(0, help="first hyperparameter draw; draw 0 is the defaults", metavar="N", at_least=0)
    n_hparams: int = option(20, help="end of the range of hyperparameter draws (exclusive)", metavar="N")
    n_trials: int = option(3, help="number of trials, each with its own splits and seeds", metavar="N", at_least=1)
    leave_one_out: bool = option(
        False, help="also leave out each pair of environments (required by leave-one-domain-out selection)"
    )
    job_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        if self.n_hparams <= self.n_hparams_from:
            raise UsageError(f"--n_hparams {self.n_hparams} must be above --n_hparams_from {self.n_hparams_from}")

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> "Grid":
        """Return the grid with the arguments of a launch; all that are not options of the grid are `job_args`."""
        args = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
        own = {f.name for f in fields(cls)} & args.keys()
        return cls(
            **{name: args[name] for name in own},
            job_args={name: value for name, value in args.items() if name not in own},
        )

    def args(self) -> dict[str, Any]:
        """Return the arguments from which `from_args` creates the same grid, as kept in the launch log."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "job_args"}
        return {**own, **self.job_args}

    def runs(self) -> Iterator[RunKey]:
        """Yield the runs trial by trial. A dataset or algorithm that is named twice counts once.

        Raises:
            UsageError: a dataset is unknown.
        """
        data_dir = self.job_args.get("data_dir")  # only the dataset Folder reads it
        for trial_seed, dataset, algorithm in itertools.product(
            range(self.n_trials), dict.fromkeys(self.datasets), dict.fromkeys(self.algorithms)
        ):
            for test_envs in all_test_envs(num_environments(dataset, data_dir), self.leave_one_out):
                for hparams_seed in range(self.n_hparams_from, self.n_hparams):
                    yield RunKey(dataset, algorithm, test_envs, trial_seed, hparams_seed)

    def job(self, run: RunKey, sweep_dir: Path) -> Job:
        """Return the job of a run. Raises UsageError if one of its arguments is invalid."""
        seed = seed_hash(run.dataset, run.algorithm, list(run.test_envs), run.hparams_seed, run.trial_seed)
        return Job.in_sweep(JobConfig(**run._asdict(), seed=seed, **self.job_args), sweep_dir)

    def jobs(self, sweep_dir: Path) -> list[Job]:
        """Return the jobs of all runs. Raises UsageError if an argument is invalid."""
        return [self.job(run, sweep_dir) for run in self.runs()]


def all_test_envs(n: int, leave_one_out: bool) -> list[tuple[int, ...]]:
    """Return each of `n` environments alone and, with `leave_one_out`, each pair that leaves one to train on."""
    pairs = itertools.combinations(range(n), 2) if leave_one_out and n > 2 else ()
    return [*((i,) for i in range(n)), *pairs]
