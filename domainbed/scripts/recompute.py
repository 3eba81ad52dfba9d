"""Train the runs behind one cell of the tables again, and compare.

`python -m domainbed.scripts.recompute --input_dir my_sweep --dataset PACS --algorithm Fishr --test_env 2
--output_dir again`
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.files import make_folder
from domainbed.model_selection import method_named
from domainbed.registry import import_modules
from domainbed.reporting.load import load_sweep
from domainbed.reporting.recomputed import among, as_text, difference, jobs_of_cell
from domainbed.reporting.top_hparams import not_ranked
from domainbed.scripts.cell import add_cell_options, cell_of
from domainbed.sweep.check import check_jobs
from domainbed.sweep.failures import clear_failure, let_go
from domainbed.sweep.follow import launch_and_follow
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.sweep.status import JobState, survey, tally


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.recompute",
        description="Train the runs that compete for one cell of the tables again, from the arguments in their "
        "records, and tell whether they give the same records, bit for bit, and the same cell. The same bits can be "
        "had on the same kind of machine with the same versions and threads, and never of DomainBed's runs, which drew "
        "other batches.",
        epilog="Exit status: 0 when all records are the same, 1 when some differ or a run failed, 3 when some runs are "
        "yet to be done, 2 for a mistake in the command, 128 + n when signal n stopped it.",
    )
    add_cell_options(p)
    p.add_argument("--output_dir", required=True, help="an empty folder, or where this very command was stopped")
    p.add_argument("--data_dir", help="where the images are, if not where the runs found them")
    p.add_argument("--workers", type=int, help="runs at once (default: one a GPU or, without GPU, one a core)")
    p.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of each run on a CPU: as many as it had in its sweep, where --workers shared the cores out",
    )
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    which = (args.dataset, args.algorithm, args.test_env, method_named(args.selection))
    output_dir = Path(args.output_dir)
    kept = load_sweep(args.input_dir)
    if kept.folder.resolve() in (output_dir.resolve(), *output_dir.resolve().parents):
        raise UsageError(f"--output_dir {output_dir} lies in --input_dir, where the kept records are")
    for problem in kept.problems:
        print(f"warning: {problem}", file=sys.stderr)
    cell = cell_of(kept, *which)
    jobs = jobs_of_cell(kept, cell, output_dir, args.data_dir, args.imports)
    if left_out := (~cell.runs["folder"].isin(jobs)).sum():
        print(f"warning: {left_out} of the cell's {len(cell.runs)} runs are not done, and left out", file=sys.stderr)
    competing = among(cell, jobs)
    if competing.best.empty:
        raise UsageError("; ".join(not_ranked(competing)))
    launcher = LAUNCHERS["local"]({"workers": args.workers, "threads": args.threads})

    statuses = survey(jobs.values())
    print(f"{len(jobs)} runs, trained again in {output_dir}: {tally(statuses)}", flush=True)
    to_launch = [job for job, status in statuses.items() if status.state != JobState.DONE]
    failures = 0
    if to_launch:
        check_jobs(to_launch)
        make_folder(output_dir)
        for job in to_launch:  # what failed is tried again
            clear_failure(job.folder)
            let_go(job)
        asked_to_stop, failures = launch_and_follow(launcher, to_launch)
        statuses = survey(jobs.values())
        if asked_to_stop():
            print(f"Stopped ({tally(statuses)}). The same command goes on.", file=sys.stderr)
            return 128 + asked_to_stop.signals[0]

    done = {name: job for name, job in jobs.items() if statuses[job].state == JobState.DONE}
    differences = {}
    for name, job in done.items():
        if found := difference(kept.folder / name, job.folder):
            differences[job.config.trial_seed, job.config.hparams_seed, job.config.test_envs] = found
    if done:
        again = cell_of(load_sweep(args.output_dir), *which)
        folders = [job.folder.name for job in done.values()]
        print(as_text(among(cell, done), among(again, folders), differences, len(done)))
    if len(done) < len(jobs):
        print(f"Not all runs are done: {tally(statuses)}. The same command goes on.", file=sys.stderr)
    return 1 if differences or failures else 3 if len(done) < len(jobs) else 0


if __name__ == "__main__":
    cli.run(main)
