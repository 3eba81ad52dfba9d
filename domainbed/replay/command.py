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
    from domainbed.replay.policies import all_policies, score_records  # imports pandas: --help is fast
    from domainbed.replay.replays import replay, summarize
    from domainbed.reporting.cells import algorithms_of, datasets_of, testable, testable_names
    from domainbed.reporting.load import load_sweep
    from domainbed.reporting.report import select_algorithms, select_datasets

    sweep = load_sweep(options.input_dir)
    for problem in sweep.problems:
        print(f"warning: {problem}", file=sys.stderr)
    if n_pruned := int(sweep.jobs["pruned"].sum()):
        print(f"warning: skipping {n_pruned:,} pruned runs; only finished runs are replayed", file=sys.stderr)
    datasets = select_datasets(options.datasets, datasets_of(sweep.runs))
    algorithms = select_algorithms(options.algorithms, algorithms_of(sweep.runs))
    environments = {name: testable_names(sweep.jobs, name) for name in datasets}
    records = sweep.records
    curves = testable(score_records(records[records["done"]]), environments)
    curves = curves[curves["dataset"].isin(datasets) & curves["algorithm"].isin(algorithms)].reset_index(drop=True)
    if curves.empty:
        raise UsageError(f"--input_dir {options.input_dir!r} has no finished runs with a single test environment")
    replayed = list(curves["algorithm"].unique())
    if options.baseline not in replayed:
        raise UsageError(f"--baseline {options.baseline}: no finished runs; {suggest(options.baseline, replayed)}")
    environments = {name: names for name, names in environments.items() if name in set(curves["dataset"])}
    n_compared = len(find_answers(curves, environments, options.baseline).differences)
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
    text = format_summary(summary, curves, n_compared, options)
    print(text, end="")
    if options.output_dir:
        write_summary(Path(options.output_dir), text, summary, options)


def format_summary(summary: "pd.DataFrame", curves: "pd.DataFrame", n_compared: int, options: ReplayOptions) -> str:
    """Return the text table of the summary of replays (`replays.summarize`) of `n_compared` differences."""
    from tabulate import tabulate

    from domainbed.replay.fidelity import count_computing
    from domainbed.replay.replays import CHANGED, cheapest_faithful

    def interval(row: "pd.Series", name: str, decimals: int, scale: float = 1.0) -> str:
        mean, low, high = (f"{scale * row[column]:.{decimals}f}" for column in (name, f"{name}_low", f"{name}_high"))
        return mean if low == mean == high else f"{mean} [{low}, {high}]"

    rows = [
        [
            row["policy"],
            *(f"{100 * row[name]:.0f}" for name in ("updates", "evaluations", "cost")),
            interval(row, "cell", 2),
            f"{row['max_cell']:.1f}",
            interval(row, "swapped", 0, 100),
            "/".join(f"{row[name]:.1f}" for name in ("lost", "gained", "reversed")),
            interval(row, CHANGED, 1),
        ]
        for _, row in summary.iterrows()
    ]
    headers = [
        *("Policy", "Updates", "Evaluations", "Cost", "Cells", "Largest"),
        *("Swapped", "Lost/gained/reversed", "Changed"),
    ]
    n_updates, n_evaluations = count_computing(curves)
    n_runs = len(curves.drop_duplicates(["dataset", "algorithm", "test_env", "trial_seed", "hparams_seed"]))
    best = cheapest_faithful(summary)
    conclusion = f"{best} is the cheapest policy that never changed" if best else "Every policy at times changed"
    conclusion += f" which differences from {options.baseline} are significant."
    if not n_compared:
        conclusion = (
            f"Cannot compare with {options.baseline}: this requires two trials with runs of both algorithms "
            "on every test environment."
        )
    notes = [
        f"{n_runs:,} finished runs, {n_updates:,} updates and {n_evaluations:,} evaluations; model selection: "
        "training-domain.",
        "Updates, Evaluations, Cost: in percent of the complete sweep. An evaluation counts as "
        f"{options.updates_per_evaluation:g} updates.",
        "Cells: mean absolute change, in percentage points; Largest: that of the cell that changes most.",
        "Swapped: pairs of algorithms whose order by a dataset's average changes, in percent.",
        f"Changed: differences from {options.baseline}, of {n_compared} (each dataset and the average), that lose "
        "significance, gain it, or change sign. Significant: by the corrected p-values of collect_results "
        "--significance; with a single trial, none is.",
        f"Means and [95% intervals] over {options.resamples} random orders and draws.",
        conclusion,
    ]
    return "\n".join([tabulate(rows, headers, disable_numparse=True), "", *notes]) + "\n"


def write_summary(folder: Path, text: str, summary: "pd.DataFrame", options: ReplayOptions) -> None:
    """Write the text, the summary as CSV and JSON, and the plot. Raises UsageError if the folder cannot be created."""
    from domainbed.replay.plots import plot_fidelity
    from domainbed.reporting.frames import to_csv
    from domainbed.reporting.plots import save_figure

    make_folder(folder)
    shown = {name: getattr(options, name) for name in ("baseline", "resamples", "updates_per_evaluation")}
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
