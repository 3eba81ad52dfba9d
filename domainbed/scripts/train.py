"""Train one job: `domainbed train --dataset ColoredDigits --algorithm ERM --test_envs 2`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted, Pruned, stop_on_signals
from domainbed.engine.lock import TakenError, is_locked
from domainbed.errors import UsageError
from domainbed.options import add_options, from_args
from domainbed.pruning import NO_PRUNING, PruneOptions
from domainbed.records import is_done, read_pruned
from domainbed.registry import import_modules
from domainbed.sweep.failures import clear_failure, describe_error, record_failure, remove_failure_files
from domainbed.sweep.job import Job
from domainbed.sweep.peers import Pruner
from domainbed.terminal import warn


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("train"),
        description="Train one job, or resume it, and write its records and model to a folder.",
        examples=(
            "--dataset ColoredDigits --algorithm ERM --test_envs 2",
            "--dataset PACS --algorithm Fishr --test_envs 0 --data_dir data --output_dir runs/fishr",
        ),
    )
    add_options(p, JobConfig)
    add_options(p.add_argument_group("pruning, for jobs of a sweep"), PruneOptions)
    p.set_defaults(dataset="RotatedMNIST", algorithm="ERM", test_envs=[0])
    return p


def config_of(args: argparse.Namespace) -> JobConfig:
    """Return the job that the arguments describe, after importing the user's modules."""
    import_modules(args.imports)
    if warning := ALGORITHMS.homonym_warning(args.algorithm):
        warn(warning)
    return from_args(JobConfig, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Return 0 if the job is done or pruned, or 128 + n if signal n stopped it."""
    args = parser().parse_args(argv)
    config, should_prune = config_of(args), JobControl.should_prune
    pruning = from_args(PruneOptions, args)
    if pruning.prune != NO_PRUNING:
        should_prune = Pruner(job_to_prune(config, pruning))
        if decision := read_pruned(Path(config.output_dir)):  # by another process, before this one started
            print(decision)
            return 0

    with stop_on_signals() as should_stop, recorded_failure(config):
        from domainbed.engine.train import train  # imports torch: invalid arguments are reported without it

        try:
            train(config, JobControl(should_stop, should_prune=should_prune))
        except Pruned as pruned:
            print(pruned)
        except Interrupted as stopped:
            print(f"{stopped}; run the same command to resume", file=sys.stderr)
            return 128 + should_stop.signals[0]
    return 0


def job_to_prune(config: JobConfig, pruning: PruneOptions) -> Job:
    """Return a job of a sweep with its rule. Raises UsageError if its folder is not that of a job of a sweep."""
    folder = Path(config.output_dir).absolute()
    if folder.name != config.name():
        raise UsageError(
            f"--prune compares the jobs of a sweep, but --output_dir {config.output_dir} is not the folder of such a "
            "job; use `sweep launch --prune`"
        )
    return Job.in_sweep(config, folder.parent, pruning)


@contextmanager
def recorded_failure(config: JobConfig) -> Iterator[None]:
    """Record an error within a `with` block as the failure of the job, if its folder is that of a job of a sweep.

    Launchers that only run command lines rely on it.
    """
    folder = Path(config.output_dir)
    if folder.absolute().name != config.name():
        yield
        return
    clear_failure(folder)
    try:
        yield
    except TakenError:
        raise
    except Exception as error:
        if not is_locked(folder):
            with suppress(OSError):  # a job may fail before it creates its folder, such as without its data
                folder.mkdir(parents=True, exist_ok=True)
            record_failure(folder, describe_error(error, folder))
        raise
    if is_done(folder):
        remove_failure_files(folder)


if __name__ == "__main__":
    cli.run(main)
