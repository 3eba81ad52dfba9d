"""Plot a sweep: `python -m domainbed.scripts.plot --input_dir my_sweep`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.model_selection import resolve_method
from domainbed.registry import import_modules
from domainbed.reporting.cells import algorithms_of, datasets_of
from domainbed.reporting.folders import PLOTS_FOLDER
from domainbed.terminal import ProgressBar


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("plot"),
        description="Draw the results of a sweep as PNG and PDF files.",
        examples=(
            "--input_dir runs/first",
            "--input_dir runs/first --algorithms ERM Fishr --dpi 300",
        ),
    )
    p.add_argument(
        "--input_dir", required=True, metavar="DIR", help="the sweep's folder, written by this package or by DomainBed"
    )
    p.add_argument("--output_dir", metavar="DIR", help=f"folder for the plots (default: {PLOTS_FOLDER} in --input_dir)")
    p.add_argument(
        "--selection",
        default="training-domain",
        metavar="METHOD",
        help="the selection method, or its class name in DomainBed",
    )
    p.add_argument("--datasets", nargs="+", metavar="NAME", help="datasets to plot (default: all)")
    p.add_argument("--algorithms", nargs="+", metavar="NAME", help="algorithms to plot, or groups (default: all)")
    p.add_argument(
        "--rename",
        nargs="+",
        default=[],
        metavar="OLD=NEW",
        help="other names to print for algorithms, datasets and environments, as in collect_results",
    )
    p.add_argument("--dpi", type=int, default=150, metavar="N", help="resolution of PNG files, in dots per inch")
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if not 10 <= args.dpi <= 2400:
        raise UsageError(f"--dpi must be at least 10 and at most 2,400, not {args.dpi}")
    import_modules(args.imports)
    selection = resolve_method(args.selection)

    from domainbed.reporting.load import load_sweep  # imports pandas: --help and usage errors are fast
    from domainbed.reporting.report import select_algorithms, select_names, sweep_titles

    sweep = load_sweep(args.input_dir)
    for problem in sweep.problems:
        print(f"warning: {problem}", file=sys.stderr)
    datasets = select_names(args.datasets, datasets_of(sweep.runs), "--datasets")
    algorithms = select_algorithms(args.algorithms, algorithms_of(sweep.runs))
    titles = sweep_titles(sweep, args.rename)
    output_dir = Path(args.output_dir or Path(args.input_dir, PLOTS_FOLDER))
    from domainbed.reporting.plots import all_figures, save_figure  # imports matplotlib: a usage error comes first

    n = 0
    max_plots = 1 + len(datasets) * (3 + 2 * len(algorithms))
    with ProgressBar(total=max_plots, desc="plotting", unit="plot", leave=False) as bar:
        warn = partial(tqdm.write, file=sys.stderr)
        for stem, caption, figure in all_figures(sweep, selection, datasets, algorithms, warn, titles):
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"{output_dir}: {error.strerror}; choose another --output_dir") from error
            tqdm.write(" ".join(map(str, save_figure(figure, output_dir, stem, caption, args.dpi))))
            n += 1
            bar.update()
    if not n:
        raise UsageError(f"--input_dir {args.input_dir!r} has nothing to plot")
    print(f"{n} plot{'s' * (n > 1)} in {output_dir}, as PNG and PDF")


if __name__ == "__main__":
    cli.run(main)
