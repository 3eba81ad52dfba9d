"""Rank the runs behind one cell of the tables.

`python -m domainbed.scripts.list_top_hparams --input_dir my_sweep --dataset PACS --algorithm Fishr --test_env 2`
"""

from collections.abc import Sequence

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.model_selection import resolve_method
from domainbed.registry import import_modules
from domainbed.scripts.cell import add_cell_options, find_cell
from domainbed.terminal import warn

FORMATS = ("text", "csv", "json")


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("list_top_hparams"),
        description="Rank the hyperparameter draws behind one cell of the tables. Each trial has its own draws; the "
        "cell is the mean, over trials, of the test accuracy of each trial's best draw.",
        examples=(
            "--input_dir runs/first --dataset ColoredDigits --algorithm ERM --test_env 2",
            "--input_dir runs/first --dataset ColoredDigits --algorithm ERM --test_env 2 --n 0 --format csv",
        ),
    )
    add_cell_options(p)
    p.add_argument("--n", type=int, default=10, metavar="N", help="runs to list per trial; 0 lists all")
    p.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="text: rounded accuracies in percent, with a summary of the cell; csv, json: full precision, with all "
        "hyperparameters of each run",
    )
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.n < 0:
        raise UsageError(f"--n must be at least 0, not {args.n}")
    import_modules(args.imports)
    selection = resolve_method(args.selection)

    from domainbed.reporting.load import load_sweep  # imports pandas: --help and usage errors are fast
    from domainbed.reporting.top_hparams import format_csv, format_json, format_text, unranked_notes

    sweep = load_sweep(args.input_dir)
    warn(*sweep.problems)
    cell = find_cell(sweep, args.dataset, args.algorithm, args.test_env, selection)
    if args.format != "text":  # the other formats have no room for notes
        warn(*unranked_notes(cell))
    format_cell = {"text": format_text, "csv": format_csv, "json": format_json}[args.format]
    print(format_cell(cell, args.n or len(cell.runs)), end="\n" if args.format == "text" else "")


if __name__ == "__main__":
    cli.run(main)
