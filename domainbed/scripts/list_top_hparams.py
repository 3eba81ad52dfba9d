"""Why a cell of the tables is what it is: the runs behind it, ranked.

`python -m domainbed.scripts.list_top_hparams --input_dir my_sweep --dataset PACS --algorithm Fishr --test_env 2`
"""

import sys
from collections.abc import Sequence

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.model_selection import method_named
from domainbed.registry import import_modules
from domainbed.reporting.load import load_sweep
from domainbed.reporting.top_hparams import as_csv, as_json, as_text, not_ranked
from domainbed.scripts.cell import add_cell_options, cell_of


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.list_top_hparams",
        description="Rank the hyperparameter draws behind one cell of the tables. Each trial has draws of its own, and "
        "the cell is the mean, over trials, of the test accuracy of each trial's best draw.",
    )
    add_cell_options(p)
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


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    selection = method_named(args.selection)
    if args.n < 0:
        raise UsageError(f"--n must be at least 0, not {args.n}")
    sweep = load_sweep(args.input_dir)
    for problem in sweep.problems:
        print(f"warning: {problem}", file=sys.stderr)
    cell = cell_of(sweep, args.dataset, args.algorithm, args.test_env, selection)
    n = args.n or len(cell.runs)
    if args.format == "text":
        print(as_text(cell, n))
        return
    for line in not_ranked(cell):
        print(f"warning: {line}", file=sys.stderr)
    print({"csv": as_csv, "json": as_json}[args.format](cell, n), end="")


if __name__ == "__main__":
    cli.run(main)
