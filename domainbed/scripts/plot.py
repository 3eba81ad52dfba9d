"""Plot a sweep: `python -m domainbed.scripts.plot --input_dir my_sweep`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.files import make_folder
from domainbed.model_selection import resolve_method
from domainbed.options import add_options, check_options, from_args, option
from domainbed.registry import import_modules
from domainbed.reporting.cells import algorithms_of, datasets_of
from domainbed.reporting.folders import PLOTS_FOLDER
from domainbed.reporting.plot_kinds import KINDS, all_kinds, check_kinds, max_plots
from domainbed.terminal import ProgressBar, warn


@dataclass(frozen=True)
class PlotOptions:
    """What to plot, and how.

    Raises:
        UsageError: a value is not allowed.
    """

    input_dir: str = option(help="the sweep's folder, written by this package or by DomainBed", metavar="DIR")
    output_dir: str | None = option(
        None, help="folder for the plots", metavar="DIR", if_unset=f"{PLOTS_FOLDER} in --input_dir"
    )
    kind: tuple[str, ...] = option(
        (),
        help="; ".join(f"{name}: {content}" for name, content in KINDS.items())
        + "; or a tracker such as landscape: what it recorded (default: all)",
        metavar="KIND",
    )
    selection: str = option(
        "training-domain", help="the selection method, or its class name in DomainBed", metavar="METHOD"
    )
    datasets: tuple[str, ...] = option((), help="datasets to plot (default: all)", metavar="NAME")
    algorithms: tuple[str, ...] = option((), help="algorithms to plot, or groups (default: all)", metavar="NAME")
    baseline: str | None = option(
        None, help="algorithm whose line --kind line draws", metavar="NAME", if_unset="ERM, if it is plotted"
    )
    rename: tuple[str, ...] = option(
        (),
        help="other names to print for algorithms, datasets and environments, as in collect_results",
        metavar="OLD=NEW",
    )
    style: str = option(
        "paper",
        help="paper: 5.5 inches wide, with text of 9 points; slides: larger text and thicker lines, at most two panels "
        "in a row",
        choices=("paper", "slides"),
    )
    format: tuple[str, ...] = option(
        ("png", "pdf"), help="formats of the figures: png, pdf, svg (default: png pdf)", metavar="FORMAT"
    )
    dpi: int | None = option(
        None,
        help="resolution of PNG files, in dots per inch",
        metavar="N",
        at_least=10,
        at_most=2400,
        if_unset="150; with --style slides 300",
    )

    def __post_init__(self) -> None:
        check_options(self)
        resolve_method(self.selection)
        for format in self.format:
            if format not in ("png", "pdf", "svg"):
                raise UsageError(f"--format {format}: no such format; choose from png, pdf, svg")


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("plot"),
        description="Draw the results of a sweep, each plot with a CSV file of the data that it shows.",
        examples=(
            "--input_dir runs/first",
            "--input_dir runs/first --kind ranks line --style slides --format svg",
        ),
    )
    add_options(p, PlotOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    options = from_args(PlotOptions, args)
    check_kinds(options.kind)

    from domainbed.reporting.load import load_sweep  # imports pandas: --help and usage errors are fast
    from domainbed.reporting.report import select_algorithms, select_datasets, select_names, sweep_titles

    sweep = load_sweep(options.input_dir)
    warn(*sweep.problems)
    datasets = select_datasets(options.datasets, datasets_of(sweep.runs))
    algorithms = select_algorithms(options.algorithms, algorithms_of(sweep.runs))
    if options.baseline:
        select_names([options.baseline], algorithms, "--baseline")
    titles = sweep_titles(sweep, options.rename)
    output_dir = Path(options.output_dir or Path(options.input_dir, PLOTS_FOLDER))
    from domainbed.reporting.plots import draw_plots, save_plot  # imports matplotlib: a usage error comes first
    from domainbed.reporting.plots.style import LOOKS, use_look

    n = 0
    total = max_plots(options.kind or all_kinds(), len(datasets), len(algorithms))
    with use_look(options.style), ProgressBar(total=total, desc="plotting", unit="plot", leave=False) as bar:
        note = partial(tqdm.write, file=sys.stderr)
        plots = draw_plots(
            *(sweep, options.selection, datasets, algorithms, note, titles, options.baseline or "ERM", options.kind)
        )
        for plot in plots:
            make_folder(output_dir)
            dpi = options.dpi or LOOKS[options.style].dpi
            paths = save_plot(plot, output_dir, dpi, list(dict.fromkeys(options.format)))
            tqdm.write(" ".join(map(str, paths)))
            n += 1
            bar.update()
    if not n:
        raise UsageError(f"--input_dir {options.input_dir!r} has nothing to plot")
    formats = ", ".join(format.upper() for format in dict.fromkeys(options.format))
    print(f"{n} plot{'s' * (n > 1)} in {output_dir}, as {formats} and CSV")


if __name__ == "__main__":
    cli.run(main)
