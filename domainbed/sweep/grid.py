"""From the arguments of a launch to its jobs."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS, GROUPS, expand_groups
from domainbed.datasets import BENCHMARK, DATASETS, DatasetSpec, dataset_spec
from domainbed.engine.config import JobConfig, LoggedJobConfig, check_test_envs
from domainbed.engine.requirements import unmet_requirement
from domainbed.errors import UsageError
from domainbed.hparams import parse_overrides
from domainbed.options import as_tuple, check_options, option
from domainbed.pruning import PruneOptions
from domainbed.records import EVALUATED_ONCE
from domainbed.seeding import seed_hash
from domainbed.sweep.job import Job
from domainbed.terminal import ProgressBar

MAX_JOBS = 10**6  # of a launch; all algorithms, benchmarks and pairs of test environments make 200,000


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
NOT_SHARED = {*RunKey._fields, "seed", "init_digest", "output_dir", "checkpoint_freq"}


@dataclass(frozen=True)
class Grid:
    """The jobs of a launch: all combinations of dataset, algorithm, test environments, hyperparameter draw and trial.

    Attributes:
        job_args: arguments shared by all jobs, by their names in JobConfig.
        specs: the specification of each dataset, for a grid from the launch log. Nothing that it names need be
            registered here, and its jobs cannot be trained.
        pruning: the rule by which jobs may stop early, if any.
        left_out: pairs (dataset, algorithm) without jobs; see `expand_groups`.

    Raises:
        UsageError: on construction, if a range is empty, or there are more than MAX_JOBS jobs.
    """

    datasets: tuple[str, ...] = option(
        BENCHMARK, help=f"datasets: any of {', '.join(DATASETS)}, or your own", metavar="NAME"
    )
    algorithms: tuple[str, ...] = option(
        DEFAULT_ALGORITHMS,
        help=f"algorithms: any of {', '.join(ALGORITHMS)}, or your own; or groups: {', '.join(GROUPS)}; "
        "members of a group that do not support a dataset are skipped for it",
        metavar="NAME",
    )
    n_hparams_from: int = option(0, help="first hyperparameter draw; draw 0 uses the defaults", metavar="N", at_least=0)
    n_hparams: int = option(20, help="end of the range of hyperparameter draws (exclusive)", metavar="N")
    n_trials: int = option(3, help="number of trials, each with its own splits and seeds", metavar="N", at_least=1)
    leave_one_out: bool = option(
        False, help="also leave out each pair of environments (required by leave-one-domain-out selection)"
    )
    test_envs: tuple[tuple[int, ...], ...] = option(
        (),
        help="test on these environments together, and train on all others; repeat the option for other sets, such as "
        "--test_envs 0 --test_envs 1 2. Tables include only runs with a single test environment",
        metavar="N",
        if_unset="each environment alone",
    )
    seed: int = option(
        0,
        help="base seed; changes the initial weights and batches of every job, but not the splits",
        metavar="N",
        at_least=0,
        below=2**32,
    )
    job_args: Mapping[str, Any] = field(default_factory=dict)
    specs: Mapping[str, DatasetSpec] = field(default_factory=dict)
    pruning: PruneOptions | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_options(self)
        # A set that is given twice, in any order, counts once.
        test_envs = tuple(dict.fromkeys(tuple(sorted(envs)) for envs in self.test_envs))
        object.__setattr__(self, "test_envs", test_envs)
        if self.test_envs and self.leave_one_out:
            raise UsageError("--leave_one_out cannot be combined with --test_envs")
        if self.leave_one_out and self.job_args.get("eval") == "selection":
            raise UsageError(
                "--eval selection omits accuracies that leave-one-domain-out needs; with --leave_one_out, pass --eval "
                "leave_one_out"
            )
        if self.pruning and self.leave_one_out:
            raise UsageError(
                "--prune cannot be combined with --leave_one_out: leave-one-domain-out selection needs the runs of a "
                "draw with every pair of test environments, which would be pruned independently of each other"
            )
        if self.pruning and (scheme := self.job_args.get("averaging")) in EVALUATED_ONCE:
            raise UsageError(f"--prune cannot be combined with --averaging {scheme}: only its last record counts")
        if self.n_hparams <= self.n_hparams_from:
            raise UsageError(f"--n_hparams {self.n_hparams} must be above --n_hparams_from {self.n_hparams_from}")
        self._check_size(len(set(self.datasets)))  # before datasets are known to exist

    def _check_size(self, n_test_envs: int) -> None:
        """Check the number of jobs, given the number of (sets of) test environments of all datasets."""
        n = n_test_envs * len(set(self.algorithms)) * self.n_trials * (self.n_hparams - self.n_hparams_from)
        if n > MAX_JOBS:
            raise UsageError(
                f"the launch has more than {MAX_JOBS:,} jobs; specify fewer --n_trials, --n_hparams, --algorithms or "
                "--datasets"
            )

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> "Grid":
        """Return the grid with the arguments of a launch; all that are not options of the grid are `job_args`."""
        args = {name: as_tuple(value) for name, value in args.items()}
        args["left_out"] = tuple((dataset, algorithm) for dataset, algorithm in args.get("left_out", ()))
        own = {f.name for f in fields(cls)} & args.keys()
        return cls(
            **{name: args[name] for name in own},
            job_args={name: value for name, value in args.items() if name not in own},
        )

    def args(self) -> dict[str, Any]:
        """Return the arguments from which `from_args` creates the same grid, without `specs`."""
        not_args = ("job_args", "specs", "pruning", "left_out")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in not_args}
        left_out = {"left_out": self.left_out} if self.left_out else {}
        return {**own, **left_out, **self.job_args}

    def expand_groups(self) -> tuple["Grid", list[str]]:
        """Return the grid with groups of algorithms replaced by their members, and lines on what is left out.

        A member of a group is left out on datasets that it does not support, unless it is also listed by its own name.

        Raises:
            UsageError: a name is unknown, or nothing is left.
        """
        named = {name for name in self.algorithms if name in ALGORITHMS}
        algorithms = expand_groups(self.algorithms)
        left_out: dict[tuple[str, str], str] = {}  # reasons
        for algorithm, dataset in itertools.product(algorithms, dict.fromkeys(self.datasets)):
            if algorithm not in named and (reason := self._why_unsupported(algorithm, dataset)):
                left_out[dataset, algorithm] = f"Skipping {algorithm} on {dataset}: it requires {reason}"
        if len(left_out) == len(algorithms) * len(set(self.datasets)):
            raise UsageError(
                f"--algorithms {' '.join(self.algorithms)}: no algorithm of these groups supports --datasets "
                f"{' '.join(self.datasets)}"
            )
        return replace(self, algorithms=algorithms, left_out=tuple(left_out)), list(left_out.values())

    def _why_unsupported(self, algorithm: str, dataset: str) -> str:
        """Return what an algorithm requires that jobs on a dataset do not have; "" if nothing."""
        overrides = parse_overrides(self.job_args.get("hparams"))
        spec = self._spec(dataset)
        return unmet_requirement(
            ALGORITHMS[algorithm],
            num_domains=len(spec.environments) - max(map(len, self._test_envs_on(dataset, spec)), default=0),
            small_images=DATASETS[dataset].SMALL_IMAGES,
            images=overrides.get("frozen") is not True,
            linear_probe=overrides.get("linear_probe") is True,
        )

    def to_log(self) -> dict[str, Any]:
        """Return the launch as a JSON object, from which `from_log` reads its jobs without importing anything."""
        pruning = {"pruning": asdict(self.pruning)} if self.pruning else {}
        return {
            **self.args(),
            **pruning,
            "specs": {name: asdict(spec) for name, spec in self._with_specs().specs.items()},
        }

    @classmethod
    def from_log(cls, logged: Mapping[str, Any]) -> "Grid":
        """Return the grid of a launch, as returned by `to_log`. Earlier versions did not log specifications.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: the object is not a launch.
            UsageError: a dataset is neither specified nor registered.
        """
        args = {name: value for name, value in logged.items() if name not in ("specs", "pruning")}
        pruning = PruneOptions(**logged["pruning"]) if "pruning" in logged else None
        specs = {
            name: DatasetSpec(**{**spec, "environments": tuple(spec["environments"])})
            for name, spec in logged.get("specs", {}).items()
        }
        grid = replace(cls.from_args(args), specs=specs, pruning=pruning)._with_specs()
        if not all(type(env) is int for envs in grid.test_envs for env in envs):
            raise ValueError("a test environment is not an integer")
        for name in (*grid.datasets, *grid.algorithms, *(env for spec in specs.values() for env in spec.environments)):
            if not (isinstance(name, str) and name.isprintable()):
                raise ValueError(f"{name!r} is not a valid name")
        steps = (
            grid.job_args.get("steps"),
            *(n for spec in specs.values() for n in (spec.n_steps, spec.checkpoint_freq)),
        )
        if not all(n is None or (type(n) is int and n > 0) for n in steps):
            raise ValueError("a number of steps is not a positive integer")
        return grid

    def _with_specs(self) -> "Grid":
        """Return the grid with a specification of each of its datasets, from its class if it has none yet."""
        specs = {name: self.specs.get(name) or self._spec(name) for name in dict.fromkeys(self.datasets)}
        return replace(self, specs=specs)

    def _spec(self, dataset: str) -> DatasetSpec:
        """Return the specification of a dataset with the arguments of the jobs, from its class."""
        return dataset_spec(dataset, self.job_args.get("data_dir"), self.job_args.get("columns"))

    def runs(self) -> Iterator[RunKey]:
        """Yield the runs trial by trial. A dataset or algorithm that is named twice counts once.

        Raises:
            UsageError: a dataset is unknown or does not have the given test environments, or there are more than
                MAX_JOBS runs.
        """
        specs = self._with_specs().specs
        counts = [len(spec.environments) for spec in specs.values()]
        self._check_size(sum(len(self.test_envs) or n + (math.comb(n, 2) if self.leave_one_out else 0) for n in counts))
        sets = {name: self._test_envs_on(name, spec) for name, spec in specs.items()}
        for trial_seed, dataset, algorithm in itertools.product(
            range(self.n_trials), specs, dict.fromkeys(self.algorithms)
        ):
            if (dataset, algorithm) in self.left_out:
                continue
            for test_envs in sets[dataset]:
                for hparams_seed in range(self.n_hparams_from, self.n_hparams):
                    yield RunKey(dataset, algorithm, test_envs, trial_seed, hparams_seed)

    def _test_envs_on(self, dataset: str, spec: DatasetSpec) -> list[tuple[int, ...]]:
        """Return the sets of test environments on a dataset. Raises UsageError if it does not have a given one."""
        given = [check_test_envs(test_envs, dataset, spec) for test_envs in self.test_envs]
        return given or all_test_envs(len(spec.environments), self.leave_one_out, spec.n_testable)

    def job(self, run: RunKey, sweep_dir: Path) -> Job:
        """Return the job of a run. Raises UsageError if one of its arguments is invalid."""
        coordinates = (run.dataset, run.algorithm, list(run.test_envs), run.hparams_seed, run.trial_seed)
        seed = seed_hash(*coordinates, *([self.seed] if self.seed else []))  # 0: DomainBed's seed
        args = {**run._asdict(), "seed": seed, **self.job_args}
        config = LoggedJobConfig(spec=self.specs[run.dataset], **args) if self.specs else JobConfig(**args)
        return Job.in_sweep(config, sweep_dir, self.pruning)

    def jobs(self, sweep_dir: Path) -> list[Job]:
        """Return the jobs of all runs. Raises UsageError if an argument is invalid."""
        runs = ProgressBar(list(self.runs()), "creating jobs", unit="job", delay=2, leave=False)
        return [self.job(run, sweep_dir) for run in runs]


def all_test_envs(n: int, leave_one_out: bool, n_testable: int | None = None) -> list[tuple[int, ...]]:
    """Return each of `n` environments alone and, with `leave_one_out`, each pair that leaves one to train on.

    Sets without any of the first `n_testable` environments are left out.
    """
    pairs = itertools.combinations(range(n), 2) if leave_one_out and n > 2 else ()
    sets = [*((i,) for i in range(n)), *pairs]
    return sets if n_testable is None else [envs for envs in sets if min(envs) < n_testable]
