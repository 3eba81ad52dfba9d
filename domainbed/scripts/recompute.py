"""Train the runs behind one cell of the tables again, and compare.

`python -m domainbed.scripts.recompute --input_dir my_sweep --dataset PACS --algorithm Fishr --test_env 2
--output_dir again`
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed.errors import UsageError
from domainbed.model_selection import method_named
from domainbed.registry import import_modules
from domainbed.reporting.load import load_sweep
from domainbed.reporting.recomputed import as_text, difference, jobs_of_cell
from domainbed.scripts import cli
from domainbed.scripts.cell import add_cell_options, cell_of
from domainbed.sweep.check import check_jobs
from domainbed.sweep.failures import forgive, let_go
from domainbed.sweep.follow import launch_and_follow
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.sweep.states import JobState, survey, tally


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.recompute",
        description="Train all runs that compete for one cell of the tables again, from the arguments in their "
        "records, and tell whether they give the same records, bit for bit, and the same cell.",
        epilog="Exit status: 0 when all records are the same, 1 when some differ or a run failed, 3 when some runs are "
        "yet to be done, 2 for a mistake in the command, 128 + n when signal n stopped it.",
    )
    add_cell_options(p)
    p.add_argument(
        "--output_dir",
        required=True,
        help="a folder for the runs that are trained again; those that are done there (by a launch, say) are compared",
    )
    p.add_argument("--data_dir", help="where the images are, if not where the runs found them")
    p.add_argument(
        "--workers",
        type=int,
        help="runs at once (default: one a GPU or, without GPU, one a core); they share the cores out as threads, and "
        "the last digits depend on how many of these a run has",
    )
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    which = (args.dataset, args.algorithm, args.test_env, method_named(args.selection))
    output_dir = Path(args.output_dir)
    kept = load_sweep(args.input_dir)
    if output_dir.resolve() == kept.folder.resolve():
        raise UsageError(f"--output_dir {output_dir} is --input_dir: the kept records lie there")
    for problem in kept.problems:
        print(f"warning: {problem}", file=sys.stderr)
    cell = cell_of(kept, *which)
    if unfinished := (~cell.runs["done"]).sum():
        print(f"warning: {unfinished} of the cell's {len(cell.runs)} runs are not done, and left out", file=sys.stderr)
    jobs = jobs_of_cell(kept, cell, output_dir, args.data_dir)
    launcher = LAUNCHERS["local"]({"workers": args.workers})

    statuses = survey(jobs.values())
    print(f"{len(jobs)} runs, trained again in {output_dir}: {tally(statuses)}", flush=True)
    to_launch = [job for job, status in statuses.items() if status.state != JobState.DONE]
    if to_launch:
        check_jobs(to_launch)
        for job in to_launch:  # what failed is tried again
            forgive(job.folder)
            let_go(job)
        asked_to_stop = launch_and_follow(launcher, to_launch)
        statuses = survey(jobs.values())
        if asked_to_stop():
            print(f"Stopped ({tally(statuses)}). The same command goes on.", file=sys.stderr)
            return 128 + asked_to_stop.signals[0]
    if {status.state for status in statuses.values()} != {JobState.DONE}:
        print(f"Not all runs are done ({tally(statuses)}): nothing is compared yet.", file=sys.stderr)
        return 1 if JobState.FAILED in {status.state for status in statuses.values()} else 3

    differences = {}
    for name, job in jobs.items():
        if found := difference(kept.folder / name, job.folder):
            run = job.config
            differences[run.trial_seed, run.hparams_seed, run.test_envs] = found
    print(as_text(cell, cell_of(load_sweep(args.output_dir), *which), differences, len(jobs)))
    return 1 if differences else 0


if __name__ == "__main__":
    cli.run(main)
