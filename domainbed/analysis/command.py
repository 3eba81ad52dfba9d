"""Analyze the predictions of a sweep: `python -m domainbed.scripts.analyze --input_dir SWEEP`."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.files import atomic_write, make_folder
from domainbed.model_selection import CLASS_NAMES, SELECTION_METHODS, resolve_method
from domainbed.options import add_options, check_options, from_args, option
from domainbed.predictions import PREDICTIONS_FILE
from domainbed.registry import import_modules
from domainbed.terminal import warn

if TYPE_CHECKING:
    import pandas as pd

    from domainbed.analysis.analysis import Section
    from domainbed.analysis.thumbnails import ImageSource

TABLES = ("accuracy", "calibration", "classes", "confusion", "agreement", "line", "images", "ensembles")
FORMATS = ("text", "markdown", "csv", "json")


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of the command."""

    input_dir: str = option(help="folder of a sweep that was launched with --save_predictions", metavar="DIR")
    selection: tuple[str, ...] = option(
        ("training-domain", "test-domain"),
        help=f"selection methods: {', '.join(SELECTION_METHODS)}, DomainBed's names ({', '.join(CLASS_NAMES)}), or "
        "your own",
        metavar="METHOD",
    )
    datasets: tuple[str, ...] | None = option(None, help="datasets to analyze", metavar="NAME", if_unset="all")
    algorithms: tuple[str, ...] | None = option(
        None, help="algorithms to analyze, or groups of them", metavar="NAME", if_unset="all"
    )
    tables: tuple[str, ...] = option((), help="tables to print", metavar="TABLE", choices=TABLES, if_unset="all")
    format: str = option("text", help="format of the tables; csv requires one table", choices=FORMATS)
    output: str | None = option(None, help="file to write the tables to", metavar="FILE", if_unset="they are printed")
    output_dir: str | None = option(
        None,
        help="folder for all tables as text and CSV, and for figures as PNG and PDF, each with its data as CSV",
        metavar="DIR",
        if_unset="no figures",
    )
    data_dir: str | None = option(
        None,
        help="folder of the datasets, as for train (any folder for the digits): also write contact sheets of the "
        "images that all runs fail, and of those that one algorithm alone solves, to --output_dir",
        metavar="DIR",
        if_unset="no contact sheets",
    )
    max_images: int = option(
        40, help="number of images on a contact sheet, at most", metavar="N", at_least=1, at_most=400
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.format == "csv" and len(set(self.tables)) != 1:
            raise UsageError(
                f"--format csv prints one table; add --tables with one of {', '.join(TABLES)}, or pass --output_dir, "
                "which writes all of them"
            )
        if self.data_dir is not None and self.output_dir is None:
            raise UsageError("--data_dir requires --output_dir, the folder for the contact sheets")


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("analyze"),
        description="Analyze the predictions of a sweep that was launched with --save_predictions: calibration before "
        "and after temperature scaling, classes that fail, confusions, rejection by confidence, agreement between "
        "algorithms, accuracies predicted from agreement, images that all of them fail, and ensembles.",
        examples=(
            "--input_dir runs/first",
            "--input_dir runs/first --tables calibration --format csv --output calibration.csv",
        ),
    )
    add_options(p, AnalyzeOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    options = from_args(AnalyzeOptions, args)
    selections = list(dict.fromkeys(map(resolve_method, options.selection)))
    cli.check_output(options.output, can_stream=True)

    from domainbed.analysis.analysis import analyze  # imports pandas: --help is fast
    from domainbed.analysis.thumbnails import open_source
    from domainbed.reporting.cells import algorithms_of, datasets_of
    from domainbed.reporting.load import load_sweep
    from domainbed.reporting.report import select_algorithms, select_datasets

    sweep = load_sweep(options.input_dir)
    warn(*sweep.problems)
    datasets = select_datasets(options.datasets, datasets_of(sweep.runs))
    algorithms = select_algorithms(options.algorithms, algorithms_of(sweep.runs))
    recorded = set(sweep.jobs["dataset"])
    sources = (
        []
        if options.data_dir is None
        else [open_source(sweep, name, options.data_dir) for name in datasets if name in recorded]
    )
    if options.output_dir:
        make_folder(Path(options.output_dir))
    computed = TABLES if options.output_dir else options.tables or TABLES
    sections = analyze(sweep, selections, datasets, algorithms, computed, warn)
    if not sections:
        raise UsageError(
            f"--input_dir {options.input_dir!r} has no selected runs with usable {PREDICTIONS_FILE}; launch with "
            "--save_predictions"
        )
    cli.write_output(format_sections(sections, options.format, options.tables), options.output)
    if options.output_dir:
        write_all(sections, Path(options.output_dir), sources, options.max_images, warn)


def format_sections(sections: "Sequence[Section]", format: str, names: Sequence[str] = ()) -> str:
    """Return tables in a format.

    Args:
        sections: the analysis.
        format: one of FORMATS.
        names: the names of the tables; all if there are none.
    """
    from domainbed.analysis.render import as_markdown, as_text
    from domainbed.reporting.frames import to_csv

    if format == "csv":
        return to_csv(collect_frame(sections, names[0]))
    if format == "json":
        content = [
            {
                "selection": section.selection,
                "dataset": section.dataset,
                "tables": {
                    table.name: json.loads(table.frame.to_json(orient="records", double_precision=15))
                    for table in section.tables
                    if not names or table.name in names
                },
            }
            for section in sections
        ]
        return json.dumps(content, indent=1) + "\n"
    return (as_markdown if format == "markdown" else as_text)(sections, names)


def collect_frame(sections: "Sequence[Section]", name: str) -> "pd.DataFrame":
    """Return a table of all sections, with the columns `selection` and `dataset` in addition."""
    import pandas as pd

    frames = []
    for section in sections:
        for table in section.tables:
            if table.name == name:
                frame = table.frame.copy()
                frame.insert(0, "selection", section.selection)
                frame.insert(1, "dataset", section.dataset)
                frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["selection", "dataset"])


def write_all(
    sections: "Sequence[Section]",
    folder: Path,
    sources: "Sequence[ImageSource]",
    max_images: int,
    warn: Callable[[str], object],
) -> None:
    """Write all tables and figures.

    Args:
        sections: the analysis, with all tables.
        folder: an existing folder.
        sources: of the datasets whose images to show.
        max_images: the largest number of images on a contact sheet.
        warn: called with one line per problem.

    Raises:
        UsageError: a dataset cannot be read.
    """
    from domainbed.analysis.plots import draw_section
    from domainbed.analysis.sheets import DPI, draw_sheets
    from domainbed.analysis.tables import runs_frame
    from domainbed.reporting.frames import to_csv
    from domainbed.reporting.plots import save_plot
    from domainbed.reporting.plots.gallery import file_stem, unique_stem

    def write(name: str, content: str) -> None:
        with atomic_write(folder / name) as file:
            file.write(content.encode())

    write("analysis.txt", format_sections(sections, "text"))
    for name in TABLES:
        write(f"{name}.csv", to_csv(collect_frame(sections, name)))
    n = n_sheets = 0
    stems: set[str] = set()
    for section in sections:
        stem = unique_stem(file_stem(["runs", section.dataset, section.selection]), stems)
        write(f"{stem}.csv", to_csv(runs_frame(section.runs)))
        for plot in draw_section(section):
            save_plot(plot._replace(stem=unique_stem(plot.stem, stems)), folder)
            n += 1
    for source in sources:
        of_dataset = [section for section in sections if section.dataset == source.name]
        for plot in draw_sheets(of_dataset, source, max_images, warn):
            save_plot(plot._replace(stem=unique_stem(plot.stem, stems)), folder, DPI)
            n_sheets += 1
    sheets = f", {n_sheets} of them contact sheets," if sources else ""
    print(f"tables and {n + n_sheets} figures{sheets} in {folder}", file=sys.stderr)
