"""Launch and manage the jobs of a benchmark: `python -m domainbed.scripts.sweep launch --output_dir my_sweep …`."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO

from domainbed import cli
from domainbed.engine.checkpoint_files import remove_checkpoints
from domainbed.engine.lock import TakenError, locked
from domainbed.errors import UsageError
from domainbed.files import make_folder
from domainbed.options import from_args
from domainbed.predictions import PREDICTIONS_FILE
from domainbed.pruning import NO_PRUNING
from domainbed.registry import import_modules
from domainbed.scripts.sweep_parser import grid_of, parse_args, parser
from domainbed.sweep import cost, json_output, progress
from domainbed.sweep.archive import export_jobs, has_known_hparams, import_jobs
from domainbed.sweep.cancel import cancel_jobs, delete_jobs
from domainbed.sweep.grid import Grid
from domainbed.sweep.job import Job
from domainbed.sweep.launch import LaunchResult, launch_order, run_launch
from domainbed.sweep.launchers import LAUNCHERS, Launcher
from domainbed.sweep.log import log_launch, requested_jobs
from domainbed.sweep.measurement import LONG_LIMIT, QUICK_LIMIT, Timing
from domainbed.sweep.preflight import CheckResult, check_jobs, describe_datasets
from domainbed.sweep.queue import read_queue, read_queue_or_warn, task_outcomes
from domainbed.sweep.status import FINISHED, JobState, Status, count_states, read_status, survey
from domainbed.sweep.step_times import recorded_step_times
from domainbed.terminal import warn

__all__ = ["main", "parser"]

MAX_WATCH = 86_400  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    import_modules(args.imports)
    commands = {
        "launch": launch,
        "status": status,
        "cancel": cancel,
        "delete_incomplete": delete_incomplete,
        "export": export,
    }
    return commands[args.command](args)


def launch(args: argparse.Namespace) -> int:
    if args.json and (args.dry_run or args.command_launcher == "dummy"):
        raise UsageError("--json cannot be combined with --dry_run, which prints commands")
    if args.json and not (args.skip_confirmation or args.estimate):
        raise UsageError("--json requires --skip_confirmation or --estimate")
    with json_output.reserved_stdout() if args.json else nullcontext() as events:
        result = launch_jobs(args, events)
        if result is None:
            return 0
        if result.stop_signal:
            status = 128 + result.stop_signal
        else:
            finished = {JobState.DONE} if args.prune == NO_PRUNING else FINISHED
            status = 1 if result.n_failed else exit_status(result.statuses, finished)
        if events:
            json_output.print_ended(events, result.statuses, status)
    return status


def launch_jobs(args: argparse.Namespace, events: IO[str] | None = None) -> LaunchResult | None:
    """Run or submit the jobs of a launch that are not done. Return None if it only printed commands or an estimate.

    Args:
        args: the arguments of `launch`.
        events: the stream to which to print the events as JSON lines, if any.
    """
    if args.unprune and args.prune != NO_PRUNING:
        raise UsageError("--unprune cannot be combined with --prune: it runs all jobs to their end")
    is_dummy = args.command_launcher == "dummy"
    is_dry_run = args.dry_run or is_dummy
    if is_dry_run and args.import_results:
        raise UsageError("--import_results cannot be combined with --dry_run")
    launcher_class = LAUNCHERS["local" if is_dummy else args.command_launcher]
    launcher = launcher_class(from_args(launcher_class.Options, args))
    sweep_dir, grid = Path(args.output_dir), grid_of(args)
    statuses = survey(grid.jobs(sweep_dir), read_queue(sweep_dir))
    if args.import_results:
        import_results(args, sweep_dir, grid, statuses)
    info = sys.stderr if is_dry_run else sys.stdout  # stdout of a dry run is a script
    print(f"{len(statuses)} jobs in {args.output_dir}: {count_states(statuses, info)}", file=info, flush=True)
    states = {JobState.NOT_LAUNCHED, JobState.INCOMPLETE}
    if args.retry_failed:
        states.add(JobState.FAILED)
    elif any(status.state == JobState.FAILED for status in statuses.values()):
        print("Skipping failed jobs (see `status --failed`; `--retry_failed` retries them)", file=info)
    if args.unprune:
        states.add(JobState.PRUNED)
    elif any(status.state == JobState.PRUNED for status in statuses.values()):
        print("Skipping pruned jobs (`--unprune` resumes them)", file=info)
    jobs = launch_order([job for job, status in statuses.items() if status.state in states], statuses)
    if events:
        json_output.print_launched(events, args.output_dir, statuses, jobs)
    if not (is_dry_run or args.estimate):
        remove_leftovers(statuses)
    if not jobs:
        if is_dry_run or args.estimate:
            return None
        if sweep_dir.is_dir():
            log_launch(sweep_dir, grid)
        return LaunchResult(statuses)
    if is_dry_run:
        if not is_dummy:  # the checks read the datasets, and download what is missing
            for note in check_jobs(jobs).notes():
                print(note, file=info)
        launcher.print_commands(jobs)
        if grid.pruning:
            warn("these commands prune nothing before a launch is in the launch log")
        return None
    checked, estimated = check_and_estimate(args, launcher, jobs, statuses)
    print(*describe_datasets(jobs), *checked.notes(), *estimated.lines(args.estimate), sep="\n", flush=True)
    if grid.pruning:
        print("  with --prune, this is an upper bound")
    if events:
        json_output.print_event(events, "estimate", **estimated.to_json())
    if args.estimate:
        return None
    launcher.check()
    if not args.skip_confirmation:
        confirm(f"Launch {len(jobs)} jobs with launcher {args.command_launcher}?", "nothing was launched")
    make_folder(sweep_dir)
    log_launch(sweep_dir, grid)
    result = run_launch(launcher, jobs, statuses, json_output.JsonDisplay(jobs, events) if events else None)
    is_waiting = any(s.state not in (*FINISHED, JobState.FAILED) for s in result.statuses.values())
    if is_waiting and not (launcher.WAITS or result.stop_signal):
        print(f"Watch the progress with `{cli.command_name('sweep')} status --output_dir {args.output_dir} --watch`")
    return result


def check_and_estimate(
    args: argparse.Namespace, launcher: Launcher, jobs: Sequence[Job], statuses: Mapping[Job, Status]
) -> tuple[CheckResult, cost.Cost]:
    """Check jobs, and return what was found and the estimated cost of running them."""
    kinds = {job.kind for job in jobs}
    recorded = recorded_step_times(statuses, kinds, Path(args.import_results) if args.import_results else None)
    limit = LONG_LIMIT if args.estimate else QUICK_LIMIT
    timing = Timing(kinds - recorded.keys(), limit, only_quick=not args.estimate)
    checked = check_jobs(jobs, timing)
    return checked, cost.estimate(jobs, statuses, recorded, checked.measurements, launcher.capacity(len(jobs)))


def import_results(args: argparse.Namespace, sweep_dir: Path, grid: Grid, statuses: dict[Job, Status]) -> None:
    """Import jobs from an archive and update their statuses; with --estimate, only the latter."""
    archive, is_estimate = Path(args.import_results), args.estimate
    result = import_jobs(archive, statuses, args.save_predictions, grid.pruning is not None, only_check=is_estimate)
    statuses.update({job: Status(JobState.DONE) if is_estimate else read_status(job.folder) for job in result.jobs})
    if result.jobs and not is_estimate:
        log_launch(sweep_dir, grid)  # even if the launch is not confirmed
    pruned = f", {result.n_pruned} that are pruned (`--prune` imports them)" if result.n_pruned else ""
    print(
        f"{len(result.jobs)} jobs {'can be ' * is_estimate}imported from {archive}; skipped {result.n_not_requested} "
        f"that were not requested, {result.n_existing} that already exist" + pruned
    )
    n_without = sum(not (job.folder / PREDICTIONS_FILE).exists() for job in result.jobs)
    if args.save_predictions and n_without and not is_estimate:
        print(f"{n_without} of the imported jobs have no predictions in the archive (see export --predictions)")


def status(args: argparse.Namespace) -> int:
    if args.watch is not None and not 0 < args.watch <= MAX_WATCH:
        raise UsageError(f"--watch must be above 0 and at most {MAX_WATCH:,} seconds, not {args.watch}")
    sweep_dir = Path(args.output_dir)
    jobs = requested_jobs(sweep_dir)
    is_active = False
    while True:
        statuses = survey(jobs, queue := read_queue_or_warn(sweep_dir))
        outcomes = {}
        if args.failed and queue:
            incomplete = [job.folder.name for job, s in statuses.items() if s.state == JobState.INCOMPLETE]
            outcomes = task_outcomes(sweep_dir, incomplete)
        if args.json:
            print(json_output.to_line(json_output.status_object(sweep_dir, statuses, outcomes)))
        else:
            print_status(statuses, outcomes if args.failed else None, is_screen=bool(args.watch))
        was_active = is_active
        is_active = any(s.state in (JobState.RUNNING, JobState.QUEUED) for s in statuses.values())
        # A launch that is between two jobs is inactive for a moment.
        if not args.watch or not (is_active or was_active) or exit_status(statuses) == 0:
            return exit_status(statuses)
        sys.stdout.flush()
        time.sleep(args.watch)


def print_status(statuses: Mapping[Job, Status], task_outcomes: Mapping[str, str] | None, is_screen: bool) -> None:
    """Print the status of a sweep for people.

    Args:
        statuses: the status of each job.
        task_outcomes: as in `progress.failure_lines`, or None to leave out why jobs failed.
        is_screen: whether to clear the terminal first.
    """
    if is_screen and sys.stdout.isatty():
        print("\033[H\033[2J", end="")  # clear the screen
    print(progress.status_table(statuses))
    print(progress.summary_line(statuses))
    lines = [*progress.blocked_lines(statuses), *progress.running_lines(statuses)]
    if task_outcomes is not None:
        lines += progress.failure_lines(statuses, task_outcomes)
    for line in lines:
        print(line)


def cancel(args: argparse.Namespace) -> int:
    sweep_dir = Path(args.output_dir)
    statuses = survey(requested_jobs(sweep_dir), queue := read_queue(sweep_dir))
    print(f"{len(statuses)} jobs in {args.output_dir}: {count_states(statuses)}")
    n = sum(s.state in (JobState.RUNNING, JobState.QUEUED) for s in statuses.values())
    if n and not args.skip_confirmation:
        confirm(f"Stop {n} jobs?", "nothing was stopped")
    problems = cancel_jobs(statuses, queue) if n else []
    for problem in problems:
        print(problem, file=sys.stderr)
    statuses = survey(statuses, read_queue(sweep_dir))
    print(f"Now: {count_states(statuses)}")
    return 1 if problems else exit_status(statuses)


def delete_incomplete(args: argparse.Namespace) -> int:
    sweep_dir = Path(args.output_dir)
    jobs = requested_jobs(sweep_dir)
    if args.names_launch:
        n, of_launch = len(jobs), set(grid_of(args).jobs(sweep_dir))
        jobs = [job for job in jobs if job in of_launch]
        print(f"The options select {len(jobs)} of the {n} jobs in {args.output_dir}")
        if not jobs:
            raise UsageError("nothing was deleted; repeat the options of the launch, or omit them to select all jobs")
    statuses = survey(jobs, read_queue(sweep_dir))
    print(f"{len(statuses)} jobs in {args.output_dir}: {count_states(statuses)}")
    states = {JobState.INCOMPLETE}
    states |= {JobState.FAILED} if args.failed else set()
    states |= {JobState.PRUNED} if args.pruned else set()
    # The jobs of a SLURM task that failed before it started Python have no folder; a launch retries them.
    to_delete = [job for job, s in statuses.items() if s.state in states and job.folder.exists()]
    if to_delete and not args.skip_confirmation:
        confirm(f"Delete the folders of {len(to_delete)} jobs, including their checkpoints?", "nothing was deleted")
    queue = read_queue(sweep_dir)  # after the question; failed jobs may be part of a queued task as well
    to_delete = [job for job in to_delete if not (queue and queue.has(job.folder.name))]
    for job in delete_jobs(to_delete, sweep_dir, {*FINISHED, JobState.FAILED} - states):
        print(f"{job} was resumed in the meantime; not deleted", file=sys.stderr)
    statuses = survey(statuses, read_queue(sweep_dir))
    print(f"Now: {count_states(statuses)}")
    return exit_status(statuses)


def export(args: argparse.Namespace) -> int:
    cli.check_output(args.archive, "--archive")
    if not args.archive.endswith(".tar.xz"):
        raise UsageError(f"--archive {args.archive}: the name must end in .tar.xz")
    sweep_dir, archive = Path(args.output_dir), Path(args.archive)
    statuses = survey(requested_jobs(sweep_dir), read_queue_or_warn(sweep_dir))
    done = [job for job, s in statuses.items() if s.state in FINISHED]
    if unknown := sorted({job.kind for job in done if not has_known_hparams(job)}):
        kinds = ", ".join(f"{algorithm} on {dataset}" for dataset, algorithm in unknown)
        warn(f"not registered (see --import), so hyperparameters are not verified: {kinds}")
    export_jobs(done, sweep_dir, archive, args.predictions)
    left_out = len(statuses) - len(done)
    n_pruned = sum(s.state == JobState.PRUNED for s in statuses.values())
    pruned = f", {n_pruned} of them pruned" if n_pruned else ""
    size = f"{archive.stat().st_size:,} bytes"
    print(f"{len(done)} jobs written to {archive} ({size}){pruned}; {left_out} jobs are not done")
    return exit_status(statuses)


def exit_status(statuses: Mapping[Job, Status], finished: Set[JobState] = FINISHED) -> int:
    """Return the status described by EXIT_STATUS, given the states that count as finished."""
    states = {s.state for s in statuses.values()}
    return 0 if states <= finished else 1 if JobState.FAILED in states else 3


def remove_leftovers(statuses: Mapping[Job, Status]) -> None:
    """Remove the lock and checkpoints of jobs that were killed when they were done but had not yet removed them."""
    for job in (job for job, s in statuses.items() if s.has_leftovers):
        with suppress(TakenError), locked(job.folder):
            remove_checkpoints(job.folder)


def confirm(question: str, outcome: str) -> None:
    """Ask a question on the terminal. Raises UsageError with the outcome if the answer is not yes."""
    try:
        answer = input(f"{question} [y/N] ")
    except (EOFError, RuntimeError):  # RuntimeError: stdin is closed
        raise UsageError(f"{outcome}: stdin is not interactive; pass --skip_confirmation") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError(outcome)


if __name__ == "__main__":
    cli.run(main)
