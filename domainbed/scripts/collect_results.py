"""The tables of a sweep: `python -m domainbed.scripts.collect_results --input_dir my_sweep`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from domainbed import cli
from domainbed.errors import UsageError, suggest
from domainbed.files import atomic_write
from domainbed.model_selection import CLASS_NAMES, SELECTION_METHODS, method_named
from domainbed.registry import import_modules
from domainbed.reporting.formats.data import as_csv, as_json
from domainbed.reporting.formats.latex import document, fragment
from domainbed.reporting.formats.page import page
from domainbed.reporting.formats.text import markdown, text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import Report, make_report

FORMATS: dict[str, Callable[[Report], str]] = {
    "text": text,
    "markdown": markdown,
    "latex": document,
    "latex-fragment": fragment,
    "csv": as_csv,
    "json": as_json,
}


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.collect_results",
        description="The tables of a sweep, while it runs or after: leave-one-domain-out accuracies in percent, mean "
        "+/- standard error over trials.",
    )
    p.add_argument("--input_dir", required=True, help="the sweep's folder, ours or DomainBed's")
    p.add_argument("--output", metavar="FILE", help="write into this file, whole or not at all (default: print)")
    p.add_argument(
        "--format",
        default="text",
        metavar="FORMAT",
        help=f"any of {', '.join([*FORMATS, 'html'])}. latex compiles as it is; latex-fragment is its tables alone, "
        "for \\input (with \\usepackage{booktabs,graphicx}); csv and json have every cell with all digits and counts; "
        "html is a page with plots and each cell's runs",
    )
    p.add_argument(
        "--selection",
        nargs="+",
        metavar="METHOD",
        help=f"any of {', '.join(SELECTION_METHODS)}, DomainBed's {', '.join(CLASS_NAMES)}, or your own (default: all)",
    )
    p.add_argument("--datasets", nargs="+", metavar="NAME", help="only these, in this order")
    p.add_argument("--algorithms", nargs="+", metavar="NAME", help="only these, in this order")
    p.add_argument("--decimals", type=int, default=1, metavar="N", help="of accuracies in percent")
    p.add_argument(
        "--interval",
        default="standard-error",
        metavar="KIND",
        help="standard-error, as published, or bootstrap: 95 %% stratified bootstrap intervals over trials",
    )
    p.add_argument("--compare", metavar="WITH", help="published: DomainBed's, Fishr's and Fish's figures beside yours")
    p.add_argument(
        "--versus",
        nargs=2,
        metavar=("A", "B"),
        help="compare two algorithms: paired difference and probability of improvement, with 95 %% intervals",
    )
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    check(args)
    import_modules(args.imports)
    selections = [method_named(name) for name in args.selection or () if name != "all"]
    wanted = ReportOptions(
        selections=list(SELECTION_METHODS if "all" in (args.selection or ["all"]) else dict.fromkeys(selections)),
        datasets=args.datasets,
        algorithms=args.algorithms,
        decimals=args.decimals,
        bootstrap=args.interval == "bootstrap",
        compare_published=args.compare == "published",
        versus=args.versus,
    )
    report = make_report(load_sweep(args.input_dir), wanted)
    output = Path(args.output) if args.output else None
    told = page(report, output.parent if output else Path()) if args.format == "html" else FORMATS[args.format](report)
    if args.format == "csv":  # which has no place for them
        empty = [f"{section.selection}: {section.why_empty}" for section in report.sections if section.why_empty]
        for line in (*empty, *report.notes, *report.sweep.problems):
            print(f"warning: {line}", file=sys.stderr)
    content = told.encode(errors="backslashreplace")  # the name of a folder may be no text
    if output is None:
        sys.stdout.write(content.decode())
        return
    if output.exists() and not output.is_file():  # a pipe, or /dev/null
        output.write_bytes(content)
    else:
        with atomic_write(output.resolve()) as file:
            file.write(content)
    print(f"{report.progress}; written to {output}", file=sys.stderr)


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for what can't be, before a large sweep is read."""
    if not 0 <= args.decimals <= 9:
        raise UsageError(f"--decimals must be from 0 to 9, not {args.decimals}")
    choices = {"format": [*FORMATS, "html"], "interval": ["standard-error", "bootstrap"], "compare": ["published"]}
    for option, names in choices.items():
        if (name := getattr(args, option)) not in (*names, None):
            raise UsageError(f"--{option} {name!r} is unknown; {suggest(name, names)}")
    if args.versus and args.format == "csv":
        raise UsageError("--versus has no place among the cells of --format csv; json has it")
    cli.check_output(args.output)


if __name__ == "__main__":
    cli.run(main)
