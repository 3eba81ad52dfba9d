"""The pictures of a sweep: `python -m domainbed.scripts.plot --input_dir my_sweep`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.model_selection import method_named
from domainbed.registry import import_modules
from domainbed.reporting.cells import algorithms_of, datasets_of
from domainbed.reporting.folders import PLOTS_FOLDER
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import select_names


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m domainbed.scripts.plot", description="Draw a sweep, for print.")
    p.add_argument("--input_dir", required=True, help="the sweep's folder, ours or DomainBed's")
    p.add_argument("--output_dir", help=f"where the pictures go (default: the folder {PLOTS_FOLDER} in --input_dir)")
    p.add_argument("--selection", default="training-domain", help="the selection method, or DomainBed's name of it")
    p.add_argument("--datasets", nargs="+", metavar="NAME", help="the datasets (default: all)")
    p.add_argument("--algorithms", nargs="+", metavar="NAME", help="the algorithms (default: all)")
    p.add_argument("--dpi", type=int, default=150, help="dots an inch of the PNGs")
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if not 10 <= args.dpi <= 2400:
        raise UsageError(f"--dpi must lie in [10, 2400], not {args.dpi}")
    import_modules(args.imports)
    selection = method_named(args.selection)
    sweep = load_sweep(args.input_dir)
    for problem in sweep.problems:
        print(f"warning: {problem}", file=sys.stderr)
    datasets = select_names(args.datasets, datasets_of(sweep.runs), "--datasets")
    algorithms = select_names(args.algorithms, algorithms_of(sweep.runs), "--algorithms")
    output_dir = Path(args.output_dir or Path(args.input_dir, PLOTS_FOLDER))
    n = 0
    at_most = 1 + len(datasets) * (3 + 2 * len(algorithms))
    from domainbed.reporting.plots import (
        all_figures,
        write_files,
    )  # matplotlib takes a second, which a mistake should not

    with tqdm(total=at_most, desc="drawing", unit="picture", disable=None, leave=False) as bar:
        for stem, caption, figure in all_figures(sweep, selection, datasets, algorithms, tell):
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"{output_dir}: {error.strerror}; --output_dir names another folder") from error
            tqdm.write(" ".join(map(str, write_files(figure, output_dir, stem, caption, args.dpi))))
            n += 1
            bar.update()
    if not n:
        raise UsageError(f"--input_dir {args.input_dir!r} has nothing to draw")
    print(f"{n} picture{'s' * (n > 1)} in {output_dir}, as PNG and PDF")


def tell(line: str) -> None:
    """A line beside the bar, on stderr."""
    tqdm.write(line, file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
