"""The Colored MNIST proof of concept: `python -m domainbed.scripts.colored_mnist --data_dir data --restarts 10`."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed import cli
from domainbed.errors import UsageError, suggest

# As in domainbed.colored_mnist.experiment, from where they would cost --help an import of torch; a test holds them together.
ALGORITHMS = ("ERM", "IRM", "VREx", "Fishr", "Fishr_uncentered", "Fishr_covariance")
PUBLISHED_STEPS = 501


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.colored_mnist",
        description="Train IRM's Colored MNIST setting from several seeds and print the table beside the published "
        "one. Run again, this trains only the restarts that are not in --output_dir yet.",
    )
    p.add_argument("--data_dir", required=True, help="folder that holds MNIST/raw, or that it is downloaded into")
    p.add_argument(
        "--algorithm",
        nargs="+",
        default=["ERM", "IRM", "VREx", "Fishr"],
        metavar="NAME",
        help=f"of {', '.join(ALGORITHMS)}",
    )
    p.add_argument("--restarts", type=int, default=10, help="runs of each algorithm; number r has seed --seed + r")
    p.add_argument("--seed", type=int, default=0, help="of the first restart")
    p.add_argument("--label_flip", type=float, default=0.25, help="part of the labels that are wrong")
    p.add_argument("--grayscale_model", action="store_true", help="let the model see no colour")
    p.add_argument("--steps", type=int, default=PUBLISHED_STEPS, help="the last of which only measures")
    p.add_argument(
        "--track",
        choices=("nothing", "landscape"),
        default="nothing",
        help="landscape: keep how far apart the training environments' risks, gradients and Hessians are, every ten "
        "steps; print the last and draw all. Restarts that have not kept it are trained again",
    )
    p.add_argument("--output_dir", default="runs/colored_mnist", help="folder of records.jsonl, a line a restart")
    p.add_argument("--workers", type=int, help="restarts at once (default: 1 with a GPU, else one a CPU core)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.algorithm = list(dict.fromkeys(args.algorithm))
    check(args)

    from domainbed.colored_mnist.experiment import load_mnist  # imports torch, which a mistake need not wait for
    from domainbed.colored_mnist.runner import key, read, train_all
    from domainbed.colored_mnist.tables import table

    records = Path(args.output_dir) / "records.jsonl"
    track = args.track == "landscape"
    done = {key(run) for run in read(records) if "course" in run or not track}
    wanted = [run for r in range(args.restarts) for run in settings(args, args.seed + r)]
    todo = [run for run in wanted if key(run) not in done]
    failed = 0
    if todo:
        load_mnist(args.data_dir)  # told before anything is started, if it is not there
        records.parent.mkdir(parents=True, exist_ok=True)
        failed = train_all(todo, args.data_dir, args.workers, records, track)
    of_each = {key(run): run for run in read(records)}
    runs = [of_each[key(run)] for run in wanted if key(run) in of_each]
    comparable = not args.grayscale_model and args.steps == PUBLISHED_STEPS
    print(table(runs, args.algorithm, args.restarts, args.label_flip, comparable))
    print(f"\nAccuracies in percent, mean ± standard deviation over {args.restarts} restarts; runs in {records}")
    if track:
        tell_landscape([run for run in runs if "course" in run], args.algorithm, records.parent)
    return 1 if failed else 0


def tell_landscape(runs: Sequence[Mapping[str, Any]], algorithms: Sequence[str], output_dir: Path) -> None:
    """Print how the landscape was at the end, and draw its course."""
    from domainbed.colored_mnist.tables import landscape_courses, landscape_table
    from domainbed.reporting.plots import write_files
    from domainbed.reporting.plots.curves import distance_courses
    from domainbed.reporting.plots.style import make_style

    print(f"\n{landscape_table(runs, algorithms)}")
    looks = {name: make_style(i) for i, name in enumerate(algorithms)}
    figure = distance_courses(landscape_courses(runs), looks, "Colored MNIST, IRM's setting")
    if figure is None:
        return
    caption = "Squared distances between the two training environments, of the classifier on all images."
    png, pdf = write_files(figure, output_dir, "landscape", caption)
    print(f"\nAt the last step, mean ± standard deviation over restarts; its course: {png}, {pdf}")


def check(args: argparse.Namespace) -> None:
    for name in args.algorithm:
        if name not in ALGORITHMS:
            raise UsageError(f"unknown algorithm {name!r}; {suggest(name, ALGORITHMS)}")
    if not 0 <= args.label_flip <= 1:
        raise UsageError(f"--label_flip must lie in [0, 1], not {args.label_flip}")
    for name in ("restarts", "steps", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if not 0 <= args.seed <= 2**32 - args.restarts:
        raise UsageError(f"--seed must lie between 0 and 2**32 - --restarts, not be {args.seed}")


def settings(args: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """What determines a run, for each algorithm."""
    for algorithm in args.algorithm:
        yield {
            "algorithm": algorithm,
            "label_flip": args.label_flip,
            "grayscale": args.grayscale_model,
            "steps": args.steps,
            "seed": seed,
        }


if __name__ == "__main__":
    cli.run(main)
