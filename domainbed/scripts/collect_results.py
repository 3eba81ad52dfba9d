"""Print the tables of a sweep: `python -m domainbed.scripts.collect_results --input_dir my_sweep`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed import cli
from domainbed.options import add_options, from_args
from domainbed.registry import import_modules
from domainbed.reporting.formats.render import FORMATS, check_format, render
from domainbed.reporting.layout import ReportOptions
from domainbed.terminal import warn


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("collect_results"),
        description="Print the tables of a finished or running sweep: test accuracies in percent, mean +/- standard "
        "error over trials.",
        examples=(
            "--input_dir runs/first",
            "--input_dir runs/first --format html --output report.html",
        ),
    )
    p.add_argument(
        "--input_dir", required=True, metavar="DIR", help="the sweep's folder, written by this package or by DomainBed"
    )
    p.add_argument("--output", metavar="FILE", help="write to this file, atomically, instead of standard output")
    p.add_argument(
        "--format",
        default="text",
        metavar="FORMAT",
        help=f"{', '.join(FORMATS[:-1])}, or {FORMATS[-1]}. latex is a complete document; latex-fragment is only the "
        "tables, for \\input (requires booktabs and graphicx); bibtex contains the entries that --cite cites; csv and "
        "json contain every cell, unrounded, with its counts; html is a page with the runs behind each cell, on which "
        "all runs can be explored",
    )
    p.add_argument(
        "--latex",
        dest="format",
        action="store_const",
        const="latex",
        default=argparse.SUPPRESS,
        help="the same as --format latex",
    )
    add_options(p, ReportOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    cli.check_output(args.output, can_stream=True)
    import_modules(args.imports)
    options = from_args(ReportOptions, args)
    check_format(args.format, options)

    from domainbed.reporting.load import load_sweep  # imports pandas: --help and usage errors are fast
    from domainbed.reporting.report import make_report

    report = make_report(load_sweep(args.input_dir), options)
    output = Path(args.output) if args.output else None
    content = render(report, args.format, output.parent if output else Path())
    if args.format == "csv":  # it has no place for these
        warn(*report.warnings)
    cli.write_output(content, args.output)
    if output:
        print(f"{report.progress}; written to {output}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
