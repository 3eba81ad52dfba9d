"""The tables of a sweep: `python -m domainbed.scripts.collect_results --input_dir my_sweep`."""

import sys
from collections.abc import Sequence

from domainbed.records import load_records
from domainbed.reporting.text import report
from domainbed.scripts import cli


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m domainbed.scripts.collect_results", description="Print the tables of a sweep.")
    p.add_argument("--input_dir", required=True, help="the sweep's folder, ours or DomainBed's")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    records, problems = load_records(args.input_dir)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    print(report(records))


if __name__ == "__main__":
    cli.run(main)
