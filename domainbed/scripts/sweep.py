"""Many jobs: `python -m domainbed.scripts.sweep launch --output_dir my_sweep …`, `status`, `cancel`, and so on."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import BENCHMARK, DATASETS
from domainbed.engine.lock import TakenError, locked
from domainbed.errors import UsageError
from domainbed.files import make_folder
from domainbed.registry import import_modules
from domainbed.scripts.config_file import add_launcher_options, with_config_file
from domainbed.sweep import progress
from domainbed.sweep.archive import export_jobs, import_jobs
from domainbed.sweep.cancel import cancel_jobs, delete_jobs
from domainbed.sweep.check import check_jobs
from domainbed.sweep.failures import clear_failure, let_go
from domainbed.sweep.follow import launch_and_follow
from domainbed.sweep.grid import make_jobs
from domainbed.sweep.job import Job, absolute_paths
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.sweep.log import log_launch, requested_jobs
from domainbed.sweep.order import launch_order
from domainbed.sweep.queue import ends_of, queue_if_it_answers, read_queue
from domainbed.sweep.status import JobState, Status, survey, tally

PASSED_ON = ("data_dir", "steps", "hparams", "holdout_fraction", "skip_model_save")
LONGEST_WATCH = 86_400  # seconds
STATUS = (
    "Exit status: 0 when every job is done, 1 when some failed (or could not be stopped), 3 when some are yet to be "
    "done, 2 for a mistake in the command, 128 + n when signal n stopped it."
)


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m domainbed.scripts.sweep", description="Run the jobs of a benchmark.", epilog=STATUS)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> cli.Parser:
        c = commands.add_parser(
            name, help=text, prog=f"{p.prog} {name}", description=f"{text}.".capitalize(), epilog=STATUS
        )
        c.add_argument("--output_dir", required=True, help="the sweep's folder, which holds one folder a job")
        return c

    add_launch_options(command("launch", "run every job that is not done, or go on with it"))
    status = command("status", "tell how far the jobs are")
    status.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=10.0,
        metavar="SECONDS",
        help="tell again every so many seconds (10), until nothing is running or queued any more",
    )
    status.add_argument("--failed", action="store_true", help="tell what failed, why, and where the logs are")
    cancel = command("cancel", "stop what is running or queued; what is running saves its state first")
    delete = command("delete_incomplete", "delete the folders of incomplete jobs, never of running or queued ones")
    delete.add_argument("--failed", action="store_true", help="those of failed jobs as well")
    export = command("export", "keep the records of all jobs that are done in one archive")
    export.add_argument("--archive", required=True, metavar="FILE", help="the file to write, a .tar.xz")
    for c in (cancel, delete):
        c.add_argument("--skip_confirmation", action="store_true", help="don't ask before")
    return p


def add_launch_options(launch: cli.Parser) -> None:
    launch.add_argument("--data_dir", help="folder that holds the datasets (the digits need none)")
    launch.add_argument(
        "--datasets", nargs="+", default=BENCHMARK, metavar="NAME", help=f"any of {', '.join(DATASETS)}, or your own"
    )
    launch.add_argument(
        "--algorithms", nargs="+", default=list(ALGORITHMS), metavar="NAME", help="any of these, or your own"
    )
    launch.add_argument("--n_hparams_from", type=int, default=0, help="leave out the draws below this number")
    launch.add_argument("--n_hparams", type=int, default=20, help="number of draws; draw 0 is the defaults")
    launch.add_argument("--n_trials", type=int, default=3, help="repetitions with other splits and seeds")
    launch.add_argument("--steps", type=int, help="updates a job (default: each dataset's own)")
    launch.add_argument("--hparams", help="hyperparameters to set in every job, such as '{\"batch_size\": 16}'")
    launch.add_argument("--holdout_fraction", type=float, default=0.2, help="part of each environment held out")
    which = launch.add_mutually_exclusive_group()
    which.add_argument("--single_test_envs", action="store_true", help="one test environment a job (the default)")
    which.add_argument(
        "--leave_one_out",
        action="store_true",
        help="each pair of test environments as well, for leave-one-domain-out selection",
    )
    launch.add_argument(
        "--import_results",
        metavar="ARCHIVE",
        help="take the jobs of which nothing is there yet from here (see export), as far as it has them",
    )
    launch.add_argument("--retry_failed", action="store_true", help="give failed jobs another try")
    launch.add_argument("--skip_model_save", action="store_true", help="let the jobs leave no model.pkl")
    cli.add_job_options(launch)
    launch.add_argument("--skip_confirmation", action="store_true", help="don't ask before starting")
    cli.add_import_option(launch)
    add_launcher_options(launch)


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(with_config_file(argv, p.command("launch")))
    commands = {
        "launch": launch,
        "status": status,
        "cancel": cancel,
        "delete_incomplete": delete_incomplete,
        "export": export,
    }
    return commands[args.command](args)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """The jobs that `launch` is asked for."""
    return make_jobs(output_dir=args.output_dir, **grid_of(args))


def grid_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `make_jobs`, but for the sweep's folder. They hold wherever they are read again."""
    names = ("datasets", "algorithms", "n_hparams_from", "n_hparams", "n_trials", "leave_one_out")
    grid = {name: getattr(args, name) for name in (*names, *PASSED_ON, *cli.JOB_OPTIONS)}
    return grid | absolute_paths(grid) | {"imports": tuple(args.imports)}


def launch(args: argparse.Namespace) -> int:
    if args.dry_run and args.command_launcher != "slurm":
        raise UsageError("--dry_run is for --command_launcher slurm; dummy prints the jobs' commands")
    import_modules(args.imports)
    jobs = jobs_of(args)
    launcher = LAUNCHERS[args.command_launcher](vars(args))
    sweep_dir = Path(args.output_dir)
    if args.import_results:
        if not launcher.RUNS_JOBS:
            raise UsageError(
                "--import_results is for launches that run their jobs: not for launcher dummy, or --dry_run"
            )
        imported = import_jobs(Path(args.import_results), survey(jobs, read_queue(sweep_dir)))
        if imported.jobs:
            log_launch(sweep_dir, grid_of(args))  # whatever the answer to what is asked below
        print(
            f"{imported.jobs} jobs imported from {args.import_results}; of others that it holds, "
            f"{imported.not_asked_for} are not asked for and {imported.there_already} there already"
        )
    statuses = survey(jobs, read_queue(sweep_dir))
    # Commands that are only printed shall stand alone on stdout, and need no leave.
    chatter = sys.stdout if launcher.RUNS_JOBS else sys.stderr
    print(f"{len(jobs)} jobs in {args.output_dir}: {tally(statuses)}", file=chatter, flush=True)
    failed = [job for job, status in statuses.items() if status.state == JobState.FAILED]
    if failed and not args.retry_failed:
        print("What failed is left alone: status --failed tells why, --retry_failed tries again.", file=chatter)
    wanted = {JobState.NOT_LAUNCHED, JobState.INCOMPLETE} | ({JobState.FAILED} if args.retry_failed else set())
    to_launch = launch_order([job for job, status in statuses.items() if status.state in wanted], jobs)
    if launcher.RUNS_JOBS:
        remove_leftovers(statuses)
    if not to_launch:
        if launcher.RUNS_JOBS and sweep_dir.is_dir():
            log_launch(sweep_dir, grid_of(args))
        return exit_status(statuses)
    check_jobs(to_launch)
    launcher.check()
    if launcher.RUNS_JOBS:
        if not args.skip_confirmation:
            question = f"Launch {len(to_launch)} jobs with launcher {args.command_launcher}?"
            confirm(question, "nothing was launched")
        make_folder(sweep_dir)
        log_launch(sweep_dir, grid_of(args))
        for job in to_launch if args.retry_failed else ():
            clear_failure(job.folder)
            let_go(job)  # that failed, or whose kind is held back for others that are deleted by now
    began = time.monotonic()
    asked_to_stop, failures = launch_and_follow(launcher, to_launch)
    if not launcher.RUNS_JOBS:
        return 0
    statuses = survey(jobs, read_queue(sweep_dir))
    print(f"{tally(statuses)} after {time.monotonic() - began:.0f} s")
    if asked_to_stop():
        print("Stopped. The same command goes on with what is not done.", file=sys.stderr)
        return 128 + asked_to_stop.signals[0]
    if not launcher.RUNS_HERE:
        print(f"{parser().prog} status --output_dir {args.output_dir} --watch  tells how it goes on")
    return 1 if failures else exit_status(statuses)  # a failure that could be noted nowhere is one, too


def status(args: argparse.Namespace) -> int:
    if args.watch is not None and not 0 < args.watch <= LONGEST_WATCH:
        raise UsageError(f"--watch must be above 0 seconds, and at most {LONGEST_WATCH:,}, not {args.watch}")
    sweep_dir = Path(args.output_dir)
    jobs = requested_jobs(sweep_dir)
    is_moving = False
    while True:
        statuses = survey(jobs, queue := queue_if_it_answers(sweep_dir))
        if args.watch and sys.stdout.isatty():
            print("\033[H\033[2J", end="")  # the top of an empty screen
        print(progress.table(statuses))
        print(progress.overall(statuses))
        lines = [*progress.held_back_kinds(jobs), *progress.running(statuses)]
        if args.failed:
            incomplete = [job.folder.name for job, s in statuses.items() if s.state == JobState.INCOMPLETE]
            lines += progress.failures(statuses, ends_of(sweep_dir, incomplete) if queue else {})
        for line in lines:
            print(line)
        was_moving = is_moving
        is_moving = any(s.state in (JobState.RUNNING, JobState.QUEUED) for s in statuses.values())
        # Between two jobs, nothing runs for a moment.
        if not args.watch or not (is_moving or was_moving) or exit_status(statuses) == 0:
            return exit_status(statuses)
        sys.stdout.flush()
        time.sleep(args.watch)


def cancel(args: argparse.Namespace) -> int:
    sweep_dir = Path(args.output_dir)
    jobs = requested_jobs(sweep_dir)
    statuses = survey(jobs, queue := read_queue(sweep_dir))
    print(f"{len(jobs)} jobs in {args.output_dir}: {tally(statuses)}")
    n = sum(s.state in (JobState.RUNNING, JobState.QUEUED) for s in statuses.values())
    if n and not args.skip_confirmation:
        confirm(f"Stop {n} jobs?", "nothing was stopped")
    problems = cancel_jobs(statuses, queue) if n else []
    for problem in problems:
        print(problem, file=sys.stderr)
    statuses = survey(jobs, read_queue(sweep_dir))
    print(f"Now: {tally(statuses)}")
    return 1 if problems else exit_status(statuses)


def delete_incomplete(args: argparse.Namespace) -> int:
    sweep_dir = Path(args.output_dir)
    jobs = requested_jobs(sweep_dir)
    statuses = survey(jobs, read_queue(sweep_dir))
    print(f"{len(jobs)} jobs in {args.output_dir}: {tally(statuses)}")
    wanted = {JobState.INCOMPLETE} | ({JobState.FAILED} if args.failed else set())
    to_delete = [job for job, s in statuses.items() if s.state in wanted]
    if to_delete and not args.skip_confirmation:
        confirm(f"Delete the folders of {len(to_delete)} jobs, with all they have trained?", "nothing was deleted")
    queue = read_queue(sweep_dir)  # as it is now, after the question; it may also have what failed in another task
    to_delete = [job for job in to_delete if not (queue and queue.has(job))]
    for job in delete_jobs(to_delete):
        print(f"{job} was gone on with meanwhile; it is kept", file=sys.stderr)
    for job in to_delete:
        if statuses[job].failure:
            let_go(job)
    statuses = survey(jobs, read_queue(sweep_dir))
    print(f"Now: {tally(statuses)}")
    return exit_status(statuses)


def export(args: argparse.Namespace) -> int:
    cli.check_output(args.archive, "--archive")
    if not args.archive.endswith(".tar.xz"):
        raise UsageError(f"--archive {args.archive}: its name must end in .tar.xz")
    sweep_dir, archive = Path(args.output_dir), Path(args.archive)
    statuses = survey(requested_jobs(sweep_dir), queue_if_it_answers(sweep_dir))
    done = [job for job, s in statuses.items() if s.state == JobState.DONE]
    export_jobs(done, sweep_dir, archive)
    print(
        f"{len(done)} jobs in {archive}, {archive.stat().st_size:,} bytes; "
        f"{len(statuses) - len(done)} of those asked for are not done, and so left out"
    )
    return exit_status(statuses)


def exit_status(statuses: Mapping[Job, Status]) -> int:
    """As STATUS tells."""
    states = {s.state for s in statuses.values()}
    return 0 if states == {JobState.DONE} else 1 if JobState.FAILED in states else 3


def remove_leftovers(statuses: Mapping[Job, Status]) -> None:
    """A job that was killed between its end and its tidying leaves its lock, and checkpoints that nobody needs."""
    for job in (job for job, s in statuses.items() if s.has_leftovers):
        from domainbed.engine.checkpoint import remove_checkpoints  # imports torch, and so only where there is one

        with suppress(TakenError), locked(job.folder):
            remove_checkpoints(job.folder)


def confirm(question: str, otherwise: str) -> None:
    """Ask on the terminal; anything but yes is a no."""
    try:
        answer = input(f"{question} [y/N] ")
    except (EOFError, RuntimeError):  # of which the second tells that there is no stdin at all
        raise UsageError(
            f"{otherwise}: nobody is there to answer; --skip_confirmation goes on without asking"
        ) from None
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError(otherwise)


if __name__ == "__main__":
    cli.run(main)
