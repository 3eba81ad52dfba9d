"""Why a cell of the tables is what it is: the runs behind it, ranked.

`python -m domainbed.scripts.list_top_hparams --input_dir my_sweep --dataset PACS --algorithm Fishr --test_env 2`
"""

import argparse
import re
import sys
from collections.abc import Sequence

from domainbed.errors import UsageError, near
from domainbed.model_selection import SELECTION_METHODS, method_named
from domainbed.registry import import_modules
from domainbed.reporting.load import Sweep, load_sweep
from domainbed.reporting.tables import environment_names, environment_numbers
from domainbed.reporting.top_hparams import Cell, as_csv, as_json, as_text, hparams_of, not_ranked, ranked_runs
from domainbed.scripts import cli


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.list_top_hparams",
        description="Rank the hyperparameter draws behind one cell of the tables. Each trial has draws of its own, and "
        "the cell is the mean, over trials, of the test accuracy of each trial's best draw.",
    )
    p._negative_number_matcher = re.compile(r"-\d")  # -90%, an environment, is no flag
    p.add_argument("--input_dir", required=True, help="the sweep's folder, ours or DomainBed's")
    p.add_argument("--dataset", required=True, help="the table")
    p.add_argument("--algorithm", required=True, help="its row")
    p.add_argument("--test_env", required=True, help="its column: the environment's number, from 0, or its name")
    p.add_argument(
        "--selection",
        default="training-domain",
        metavar="METHOD",
        help=f"how runs are ranked: {', '.join(SELECTION_METHODS)}, or DomainBed's name of its class",
    )
    p.add_argument("--n", type=int, default=10, help="runs to list of each trial; 0: all")
    p.add_argument(
        "--format",
        choices=("text", "csv", "json"),
        default="text",
        help="text: accuracies in percent, rounded, and what the cell rests on; csv, json: unrounded, and every "
        "hyperparameter of every run",
    )
    cli.add_import_option(p)
    return p


def cell_of(sweep: Sweep, args: argparse.Namespace) -> Cell:
    """The cell that the arguments name. Raises UsageError where the sweep has no records of it."""
    runs = sweep.runs[sweep.runs["folder"].notna()]
    for column in ("dataset", "algorithm"):
        wanted = getattr(args, column)
        if wanted not in set(runs[column]):
            where = f"{args.input_dir} has no such runs" + (f" on {args.dataset}" if column == "algorithm" else "")
            raise UsageError(f"--{column} {wanted}: {where}; {near(wanted, runs[column].unique())}")
        runs = runs[runs[column] == wanted]
    names = dict(enumerate(environment_names(sweep.jobs, args.dataset)))
    left_out = {env: names.get(env, f"env{env}") for (env, *others) in sorted(runs["test_envs"]) if not others}
    numbers = environment_numbers(names) | {str(env): env for env in left_out}
    test_env = numbers.get(args.test_env)
    if test_env is None or test_env not in left_out:
        hint = near(args.test_env, left_out.values())
        raise UsageError(
            f"--test_env {args.test_env}: {args.algorithm} has no records on {args.dataset} with this test environment "
            f"alone; {hint}"
        )
    chosen = sweep.chosen(args.selection)
    ranked = ranked_runs(sweep.runs, chosen, args.dataset, args.algorithm, test_env)
    hparams = hparams_of(sweep.jobs, ranked)
    return Cell(args.dataset, args.algorithm, left_out[test_env], test_env, args.selection, ranked, hparams)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    args.selection = method_named(args.selection)
    if args.n < 0:
        raise UsageError(f"--n must be at least 0, not {args.n}")
    sweep = load_sweep(args.input_dir)
    for problem in sweep.problems:
        print(f"warning: {problem}", file=sys.stderr)
    cell = cell_of(sweep, args)
    n = args.n or len(cell.runs)
    if args.format == "text":
        print(as_text(cell, n))
        return
    for line in not_ranked(cell):
        print(f"warning: {line}", file=sys.stderr)
    print({"csv": as_csv, "json": as_json}[args.format](cell, n), end="")


if __name__ == "__main__":
    cli.run(main)
