"""Train one job: `domainbed train --dataset ColoredDigits --algorithm ERM --test_envs 2`."""

import sys
from collections.abc import Sequence

from domainbed import cli
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted, stop_on_signals
from domainbed.options import add_options, from_args
from domainbed.registry import import_modules


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
    return from_args(JobConfig, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Return 0, or 128 + n if signal n stopped the job."""
    config = parse_config(argv)

    from domainbed.engine.train import train  # imports torch: invalid arguments are reported without it

    with stop_on_signals() as should_stop:
        try:
            train(config, JobControl(should_stop))
        except Interrupted as stopped:
            print(f"{stopped}; run the same command to resume", file=sys.stderr)
            return 128 + should_stop.signals[0]
    return 0


if __name__ == "__main__":
    cli.run(main)
