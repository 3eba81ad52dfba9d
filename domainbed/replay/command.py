"""Replay cheaper policies: `python -m domainbed.scripts.replay --input_dir SWEEP`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed import cli
from domainbed.errors import UsageError, suggest
from domainbed.files import atomic_write, make_folder
from domainbed.options import add_options, check_options, from_args, option
from domainbed.registry import import_modules
from domainbed.terminal import warn

if TYPE_CHECKING:
    import pandas as pd

STEM = "replay"


@dataclass(frozen=True)
class ReplayOptions:
    """Options of the command."""

    input_dir: str = option(help="folder of a finished sweep", metavar="DIR")
    datasets: tuple[str, ...] | None = option(None, help="datasets to replay", metavar="NAME", if_unset="all")
    algorithms: tuple[str, ...] | None = option(
        None, help="algorithms to replay, or groups of them", metavar="NAME", if_unset="all"
    )
    baseline: str = option("ERM", help="algorithm to which the others are compared", metavar="NAME")
    resamples: int = option(50, help="number of random orders and draws of each policy", metavar="N", at_least=1)
    updates_per_evaluation: float = option(
        10.0, help="what an evaluation costs, in updates", metavar="N", at_least=0, below=float("inf")
    )
    output_dir: str | None = option(
        None, help=f"folder for {STEM}.txt, .csv, .json, .png and .pdf", metavar="DIR", if_unset="nothing is written"
    )

    def __post_init__(self) -> None:
        check_options(self)


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("replay"),
        description="Replay a finished sweep with fewer draws, trials or evaluations, or with pruning: how much "
        "compute this saves, and how much it changes the cells, the order of algorithms, and which differences from a "
        "baseline are significant. Uses training-domain selection.",
        examples=("--input_dir runs/digits", "--input_dir runs/digits --output_dir runs/digits_replay"),
    )
    add_options(p, ReplayOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    options = from_args(ReplayOptions, args)
    import_modules(args.imports)

    from domainbed.replay.fidelity import find_answers
    from domainbed.replay.policies import all_policies  # imports pandas: --help is fast
    from domainbed.replay.replays import replay, summarize
    from domainbed.replay.table import format_summary

    curves, environments = load_curves(options)
    if options.output_dir:
        make_folder(Path(options.output_dir))
    differences = find_answers(curves, environments, options.baseline).differences
    summary = summarize(
        replay(
            curves,
            all_policies(curves),
            environments,
            options.baseline,
            options.resamples,
            options.updates_per_evaluation,
        )
    )
    text = format_summary(summary, curves, differences, options)
    print(text, end="")
    if options.output_dir:
        write_summary(Path(options.output_dir), text, summary, differences, options)


def load_curves(options: ReplayOptions) -> "tuple[pd.DataFrame, dict[str, list[str]]]":
    """Return the curves to replay (`policies`), and the names of the environments of each of their datasets.

    Prints warnings, such as about runs that are skipped.

    Raises:
        UsageError: there are no such runs, or none of the baseline.
    """
    from domainbed.replay.jobs import find_replayable
    from domainbed.replay.policies import score_records
    from domainbed.reporting.cells import algorithms_of, datasets_of, testable_names
    from domainbed.reporting.load import load_sweep
    from domainbed.reporting.report import check_compared, select_algorithms, select_datasets

    sweep = load_sweep(options.input_dir)
    warn(*sweep.problems)
    datasets = select_datasets(options.datasets, datasets_of(sweep.runs))
    algorithms = select_algorithms(options.algorithms, algorithms_of(sweep.runs))
    environments = {name: testable_names(sweep.jobs, name) for name in datasets}
    requested = sweep.jobs["dataset"].isin(datasets) & sweep.jobs["algorithm"].isin(algorithms)
    jobs, skipped = find_replayable(sweep.jobs[requested], environments)
    curves = score_records(sweep.records[sweep.records["folder"].isin(jobs.index)])
    if curves["test_acc"].isna().all():
        reason = f"only {', '.join(skipped)}" if skipped else "none has usable records"
        raise UsageError(f"--input_dir {options.input_dir!r} has no runs to replay: {reason}")
    warn(*(f"skipping {phrase}" for phrase in skipped))
    baseline, replayed = options.baseline, list(curves["algorithm"].unique())
    check_compared(baseline, algorithms, algorithms_of(sweep.runs), "--baseline")
    if baseline not in replayed:
        raise UsageError(f"--baseline {baseline}: none of its runs can be replayed; {suggest(baseline, replayed)}")
    return curves, {name: names for name, names in environments.items() if name in set(curves["dataset"])}


def write_summary(
    folder: Path, text: str, summary: "pd.DataFrame", differences: "pd.Series", options: ReplayOptions
) -> None:
    """Write the text, the summary as CSV and JSON, and the plot.

    Args:
        folder: an existing folder.
        text: as returned by `format_summary`, whose arguments the others are.
    """
    from domainbed.replay.plots import plot_fidelity
    from domainbed.reporting.frames import to_csv
    from domainbed.reporting.plots import save_figure

    shown = {name: getattr(options, name) for name in ("baseline", "resamples", "updates_per_evaluation")}
    shown |= {"differences": len(differences), "significant_differences": int((differences != 0).sum())}
    contents = {
        "txt": text,
        "csv": to_csv(summary),
        "json": json.dumps({**shown, "policies": json.loads(summary.to_json(orient="records"))}, indent=1) + "\n",
    }
    for extension, content in contents.items():
        with atomic_write(folder / f"{STEM}.{extension}") as file:
            file.write(content.encode())
    title = "Cost against fidelity"
    caption = "Change of the tables against the cost of each policy, in percent of the complete sweep."
    save_figure(plot_fidelity(summary, title), folder, STEM, caption)
    print(f"written to {folder}", file=sys.stderr)
