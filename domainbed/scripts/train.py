"""Train one job: `python -m domainbed.scripts.train --dataset ColoredDigits --algorithm ERM --test_envs 2`."""

import argparse
import sys
from collections.abc import Sequence

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.engine.config import TASKS, JobConfig
from domainbed.engine.interrupts import Interrupted, stop_on_signals
from domainbed.registry import import_modules


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.train",
        description="Train one job, or go on with it, and write its folder.",
    )
    p.add_argument("--data_dir", help="folder that holds the datasets (the digits need none); with Folder: the dataset")
    p.add_argument("--dataset", default="RotatedMNIST", help=f"one of {', '.join(DATASETS)}, or your own")
    p.add_argument("--algorithm", default="ERM", help=f"one of {', '.join(ALGORITHMS)}, or your own")
    p.add_argument("--task", default=TASKS[0], help=f"one of {', '.join(TASKS)}")
    p.add_argument("--hparams", help="hyperparameters to set, a JSON object such as '{\"batch_size\": 16}'")
    p.add_argument("--hparams_seed", type=int, default=0, help="0: the default hyperparameters; else a random draw")
    p.add_argument("--trial_seed", type=int, default=0, help="decides splits and environments")
    p.add_argument("--seed", type=int, default=0, help="decides everything else that is random")
    p.add_argument("--steps", type=int, help="number of updates (default: the dataset's own)")
    p.add_argument("--checkpoint_freq", type=int, help="evaluate every so many updates (default: the dataset's own)")
    p.add_argument(
        "--test_envs",
        "--test_env",  # as DomainBed's users write it where it is one
        type=int,
        nargs="+",
        default=[0],
        help="numbers, from 0, of the environments that are not trained on",
    )
    p.add_argument("--output_dir", default="train_output", help="the job's folder")
    p.add_argument("--holdout_fraction", type=float, default=0.2, help="part of each environment that is held out")
    p.add_argument(
        "--uda_holdout_fraction",
        type=float,
        default=0.0,
        help="domain adaptation: part of the test environments that is seen in training, without labels",
    )
    p.add_argument("--skip_model_save", action="store_true", help="leave no model.pkl")
    cli.add_job_options(p)
    cli.add_import_option(p)
    return p


def config_of(args: argparse.Namespace) -> JobConfig:
    """The job that the command line asks for."""
    import_modules(args.imports)
    return JobConfig(**{**vars(args), "test_envs": tuple(args.test_envs), "imports": tuple(args.imports)})


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Returns the exit status: 0, or that of a process which a signal ended where one made this job stop."""
    config = config_of(parser().parse_args(argv))

    from domainbed.engine.train import train  # imports torch, which a mistake in the arguments need not wait for

    with stop_on_signals() as asked_to_stop:
        try:
            train(config, should_stop=asked_to_stop)
        except Interrupted as stopped:
            print(f"{stopped}; the same command goes on from there", file=sys.stderr)
            return 128 + asked_to_stop.signals[0]
    return 0


if __name__ == "__main__":
    cli.run(main)
