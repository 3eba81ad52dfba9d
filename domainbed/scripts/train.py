"""Train one job: `domainbed train --dataset ColoredDigits --algorithm ERM --test_envs 2`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted, stop_on_signals
from domainbed.engine.lock import TakenError, is_locked
from domainbed.options import add_options, from_args
from domainbed.records import is_done
from domainbed.registry import import_modules
from domainbed.sweep.failures import clear_failure, describe_error, record_failure, remove_failure_files


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
    p.set_defaults(dataset="RotatedMNIST", algorithm="ERM", test_envs=[0])
    return p


def parse_config(argv: Sequence[str] | None = None) -> JobConfig:
    """Return the job that the arguments describe, after importing the user's modules."""
    args = parser().parse_args(argv)
    import_modules(args.imports)
    if warning := ALGORITHMS.homonym_warning(args.algorithm):
        print(f"warning: {warning}", file=sys.stderr)
    return from_args(JobConfig, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Return 0, or 128 + n if signal n stopped the job."""
    config = parse_config(argv)

    from domainbed.engine.train import train  # imports torch: invalid arguments are reported without it

    with stop_on_signals() as should_stop, recorded_failure(config):
        try:
            train(config, JobControl(should_stop))
        except Interrupted as stopped:
            print(f"{stopped}; run the same command to resume", file=sys.stderr)
            return 128 + should_stop.signals[0]
    return 0


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
            record_failure(folder, describe_error(error, folder))
        raise
    if is_done(folder):
        remove_failure_files(folder)


if __name__ == "__main__":
    cli.run(main)
