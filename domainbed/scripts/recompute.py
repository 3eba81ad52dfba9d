"""Retrain the runs behind one cell of the tables, and compare their records.

`python -m domainbed.scripts.recompute --input_dir my_sweep --dataset PACS --algorithm Fishr --test_env 2
--output_dir again`
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed import cli
from domainbed.errors import UsageError, printable
from domainbed.files import make_folder
from domainbed.model_selection import resolve_method
from domainbed.options import add_options, from_args
from domainbed.registry import import_modules
from domainbed.scripts.cell import add_cell_options, find_cell
from domainbed.sweep.launch import run_launch
from domainbed.sweep.launchers.local import LocalLauncher
from domainbed.sweep.preflight import check_jobs
from domainbed.sweep.status import JobState, count_states, survey
from domainbed.terminal import warn


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("recompute"),
        description="Retrain the runs behind one cell of the tables from the arguments in their records, and report "
        "whether the records and the cell are reproduced bit for bit. This requires the same kind of machine, versions "
        "and number of threads, and runs of this package, because DomainBed draws other batches.",
        epilog="Exit status: 0 if all records are the same, 1 if some differ or a run failed, 2 if the command is "
        "invalid, 3 if some runs are not done yet, 128 + n if signal n stopped the command.",
        examples=(
            "--input_dir runs/first --dataset ColoredDigits --algorithm ERM --test_env 2 --output_dir runs/again",
            "--input_dir runs/first --dataset ColoredDigits --algorithm ERM --test_env 2 --output_dir new --threads 2",
        ),
    )
    add_cell_options(p)
    p.add_argument(
        "--output_dir",
        required=True,
        metavar="DIR",
        help="an empty folder, or that of an interrupted command to resume",
    )
    p.add_argument("--data_dir", metavar="DIR", help="folder of the datasets (default: the recorded one)")
    add_options(p, LocalLauncher.Options, skip={"threads"})
    p.add_argument(
        "--threads",
        type=int,
        default=1,  # as in a sweep with one worker per core
        metavar="N",
        help="number of CPU threads per job; it must be the original number to reproduce results bit for bit",
    )
    cli.add_import_option(p)
    p.add_argument("--trust_imports", action="store_true", help=cli.TRUST_IMPORTS_HELP)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    names = (args.dataset, args.algorithm, args.test_env, resolve_method(args.selection))
    launcher = LocalLauncher(from_args(LocalLauncher.Options, args))

    from domainbed.reporting.load import load_sweep  # imports pandas: --help and usage errors are fast
    from domainbed.reporting.recomputed import find_difference, format_comparison, jobs_of_cell, restrict_cell
    from domainbed.reporting.top_hparams import unranked_notes

    output_dir = Path(args.output_dir)
    original = load_sweep(args.input_dir)
    if original.folder.resolve() in (output_dir.resolve(), *output_dir.resolve().parents):
        raise UsageError(f"--output_dir {output_dir} is inside --input_dir; choose another folder")
    warn(*original.problems)
    cell = find_cell(original, *names)
    jobs = jobs_of_cell(original, cell, output_dir, args.data_dir, args.imports, args.trust_imports)
    if skipped := (~cell.runs["folder"].isin(jobs)).sum():
        warn(f"skipping {skipped} of the cell's {len(cell.runs)} runs, which are not done")
    competing = restrict_cell(cell, jobs)
    if competing.best.empty:
        raise UsageError("; ".join(unranked_notes(competing)))

    statuses = survey(jobs.values())
    print(f"{len(jobs)} runs to retrain in {output_dir}: {count_states(statuses)}", flush=True)
    to_launch = [job for job, status in statuses.items() if status.state != JobState.DONE]
    n_failed = 0
    if to_launch:
        check_jobs(to_launch)
        make_folder(output_dir)
        result = run_launch(launcher, to_launch, statuses)
        if result.stop_signal:
            return 128 + result.stop_signal
        statuses, n_failed = result.statuses, result.n_failed

    done = {name: job for name, job in jobs.items() if statuses[job].state == JobState.DONE}
    differences = {}
    for name, job in done.items():
        if difference := find_difference(original.folder / name, job.folder):
            differences[job.config.trial_seed, job.config.hparams_seed, job.config.test_envs] = difference
    if done:
        repeated = restrict_cell(find_cell(load_sweep(args.output_dir), *names), [j.folder.name for j in done.values()])
        print(printable(format_comparison(restrict_cell(cell, done), repeated, differences, len(done))))
    if len(done) < len(jobs):
        print(
            f"Not all runs are done ({count_states(statuses, sys.stderr)}); run the same command to resume",
            file=sys.stderr,
        )
    return 1 if differences or n_failed else 3 if len(done) < len(jobs) else 0


if __name__ == "__main__":
    cli.run(main)
