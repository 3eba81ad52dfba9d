"""Launch and manage the jobs of a benchmark: `python -m domainbed.scripts.sweep launch --output_dir my_sweep …`."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.engine.config import JobConfig, file_digest
from domainbed.engine.lock import TakenError, locked
from domainbed.errors import UsageError
from domainbed.files import make_folder
from domainbed.options import add_options, from_args, option
from domainbed.predictions import PREDICTIONS_FILE
from domainbed.pruning import NO_PRUNING, PruneOptions
from domainbed.registry import import_modules
from domainbed.scripts import config_file
from domainbed.sweep import json_output, price, progress
from domainbed.sweep.archive import export_jobs, has_known_hparams, import_jobs
from domainbed.sweep.cancel import cancel_jobs, delete_jobs
from domainbed.sweep.grid import NOT_SHARED, Grid
from domainbed.sweep.job import Job, absolute_paths
from domainbed.sweep.launch import LaunchResult, launch_order, run_launch
from domainbed.sweep.launchers import LAUNCHERS, Launcher
from domainbed.sweep.log import log_launch, requested_jobs
from domainbed.sweep.preflight import check_jobs, describe_datasets
from domainbed.sweep.queue import read_queue, read_queue_or_warn, task_outcomes
from domainbed.sweep.status import FINISHED, JobState, Status, count_states, read_status, survey

MAX_WATCH = 86_400  # seconds
# Destinations of the options that `delete_incomplete` shares with `launch` and that do not describe the launch.
NOT_OF_LAUNCH = {"help", "output_dir", "failed", "pruned", "imports", "skip_confirmation"}
EXIT_STATUS = (
    "Exit status: 0 if every job is done or pruned (for a launch without --prune: done), 1 if some failed (or could "
    "not be stopped), 2 if the command is invalid, 3 if some jobs are not done yet, 128 + n if signal n stopped the "
    "command."
)


@dataclass(frozen=True)
class LaunchOptions:
    """Options of `launch` that concern the whole launch."""

    command_launcher: str = option(
        "local",
        help=f"how to run the jobs: {', '.join(LAUNCHERS)}, or your own launcher; dummy: print the commands "
        "without checking anything",
        metavar="NAME",
    )
    launcher_config: str | None = option(
        None,
        help="a .yaml or .toml file with any options of `launch`, such as `slurm_partition: gpu`; the command line "
        "overrides it",
        metavar="FILE",
    )
    import_results: str | None = option(
        None, help="import jobs that have not been launched yet, from an archive written by `export`", metavar="ARCHIVE"
    )
    retry_failed: bool = option(False, help="retry failed jobs")
    unprune: bool = option(False, help="resume pruned jobs, and run all jobs to their end")
    dry_run: bool = option(False, help="print what would be run or submitted, without running it")
    estimate: bool = option(
        False,
        help="check and estimate the price of the launch, and exit. Updates of built-in algorithms without records are "
        "timed even if that takes a while",
    )
    json: bool = option(
        False, help="print events as JSON lines on stdout, and everything else on stderr; requires --skip_confirmation"
    )
    skip_confirmation: bool = option(False, help="do not ask for confirmation")


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("sweep"),
        description="Run the jobs of a benchmark.",
        epilog=EXIT_STATUS,
        examples=(
            "launch --datasets ColoredDigits --algorithms ERM Fishr --output_dir runs/first",
            "status --output_dir runs/first --watch",
        ),
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *options: str) -> cli.Parser:
        """Add a command with examples: its arguments in addition to --output_dir."""
        c = commands.add_parser(
            name,
            help=text,
            prog=f"{p.prog} {name}",
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=EXIT_STATUS,
            examples=[" ".join(filter(None, ["--output_dir runs/first", words])) for words in options],
        )
        c.add_argument("--output_dir", required=True, metavar="DIR", help="the sweep's folder, with one folder per job")
        return c

    launch = command(
        "launch",
        "run all jobs that are not done, and resume incomplete ones",
        "--datasets ColoredDigits --algorithms ERM Fishr --n_hparams 2 --n_trials 1 --steps 101",
        "--datasets PACS VLCS --data_dir data --launcher_config slurm.yaml --estimate",
    )
    add_launch_options(launch)
    status = command("status", "print the progress of the jobs", "--watch", "--failed --json")
    status.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=10.0,
        metavar="SECONDS",
        help="refresh at this interval (default: 10) until no job is running or queued",
    )
    status.add_argument("--failed", action="store_true", help="also print why jobs failed, and where their logs are")
    status.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, with the arguments, progress and failure of every job; with --watch, one per line",
    )
    cancel = command(
        "cancel", "stop running and queued jobs; running jobs save their state first", "", "--skip_confirmation"
    )
    delete = command(
        "delete_incomplete",
        "delete the folders of incomplete jobs, but not of running or queued ones; with options of launch, only those "
        "of the jobs of that launch",
        "",
        "--failed",
    )
    delete.add_argument("--failed", action="store_true", help="also delete the folders of failed jobs")
    delete.add_argument("--pruned", action="store_true", help="also delete the folders of pruned jobs")
    add_launch_options(delete, is_hidden=True)
    export = command(
        "export",
        "write the records of all finished and pruned jobs to an archive",
        "--archive first.tar.xz",
        "--archive first.tar.xz --import my_algorithms",
    )
    export.add_argument("--archive", required=True, metavar="FILE", help="the .tar.xz file to write")
    export.add_argument(
        "--predictions",
        action="store_true",
        help="also write the predictions of jobs with --save_predictions; a launch with that option imports them",
    )
    for c in (status, cancel, export):
        cli.add_import_option(c)
    cancel.add_argument("--skip_confirmation", action="store_true", help="do not ask for confirmation")
    return p


def add_launch_options(launch: cli.Parser, is_hidden: bool = False) -> None:
    """Add the options of `launch`; if they are hidden, --help lists only those that do not describe the launch."""
    before = len(launch._actions)
    grid = launch.add_argument_group("grid of jobs")
    add_options(grid, Grid, skip={"leave_one_out"})
    pairs = grid if is_hidden else grid.add_mutually_exclusive_group()  # argparse fails to print a hidden group
    pairs.add_argument(
        "--single_test_envs",
        "--single_test_env",
        dest="leave_one_out",
        action="store_false",
        default=False,
        help="leave out one environment at a time (the default)",
    )
    add_options(pairs, Grid, skip={f.name for f in fields(Grid)} - {"leave_one_out"})
    add_options(launch.add_argument_group("options of each job"), JobConfig, skip=NOT_SHARED)
    add_options(launch, LaunchOptions)
    add_options(launch.add_argument_group("pruning"), PruneOptions)
    declared: set[str] = set()
    for options in dict.fromkeys(LAUNCHERS[name].Options for name in LAUNCHERS):
        names = [name for name in LAUNCHERS if LAUNCHERS[name].Options is options]
        add_options(launch.add_argument_group(f"launcher {', '.join(names)}"), options, skip=declared)
        declared |= {f.name for f in fields(options)}
    for action in launch._actions[before:] if is_hidden else ():
        if action.dest not in NOT_OF_LAUNCH:
            action.help = argparse.SUPPRESS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line. The modules of `launch --import` are imported first, as they may register launchers.

    `delete_incomplete` has `names_launch` in addition: whether options of `launch` are given.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    file = None
    takes_launch = argv[:1] in (["launch"], ["delete_incomplete"])
    if takes_launch:
        early = cli.Parser(prog=f"{cli.command_name('sweep')} {argv[0]}", add_help=False)
        early.add_argument("--import", dest="imports", nargs="+", default=[])
        early.add_argument("--launcher_config", type=Path)
        known, _ = early.parse_known_args(argv)
        file = known.launcher_config
        in_file = config_file.read(file).get("import") or [] if file else []
        import_modules(known.imports or (in_file if isinstance(in_file, list) else [in_file]))
    p = parser()
    if file:
        launch_parser = p.command(argv[0])
        launch_parser.set_defaults(**config_file.load(file, launch_parser))
    args = p.parse_args(argv)
    if args.command == "delete_incomplete":
        options = [action for action in p.command(argv[0])._actions if action.dest not in NOT_OF_LAUNCH]
        flags = {flag for action in options for flag in action.option_strings}
        args.names_launch = not flags.isdisjoint(str(word).partition("=")[0] for word in argv)
    return args


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


def grid_of(args: argparse.Namespace) -> Grid:
    """Return the grid of a launch, with groups of algorithms expanded. Its paths are absolute."""
    names = [f.name for f in fields(Grid) if f.name not in ("job_args", "specs", "pruning", "left_out")]
    names += [f.name for f in fields(JobConfig) if f.name not in NOT_SHARED]
    values = {name: getattr(args, name) for name in names}
    if args.init_from:  # so that the launch is known by its content once the file is gone
        values["init_digest"] = file_digest(args.init_from)
    pruning = from_args(PruneOptions, args)
    values["pruning"] = None if pruning.prune == NO_PRUNING else pruning
    grid, skipped = Grid.from_args(values | absolute_paths(values)).expand_groups()
    warnings = [f"warning: {text}" for name in args.algorithms if (text := ALGORITHMS.homonym_warning(name))]
    for line in (*warnings, *skipped):
        print(line, file=sys.stderr)
    return grid


def launch(args: argparse.Namespace) -> int:
    if args.json and (args.dry_run or args.command_launcher == "dummy"):
        raise UsageError("--json cannot be combined with --dry_run, which prints commands")
    if args.json and not (args.skip_confirmation or args.estimate):
        raise UsageError("--json does not ask for confirmation; pass --skip_confirmation")
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
    return 0 if args.estimate else status


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
        import_results(Path(args.import_results), sweep_dir, grid, statuses, args.save_predictions)
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
        if not (is_dry_run or args.estimate) and sweep_dir.is_dir():
            log_launch(sweep_dir, grid)
        return LaunchResult(statuses)
    if is_dry_run:
        if not is_dummy:  # the checks read the datasets, and download what is missing
            check_jobs(jobs)
        launcher.print_commands(jobs)
        if grid.pruning:
            print("warning: these commands prune nothing before a launch is in the launch log", file=sys.stderr)
        return None
    estimated = check_and_estimate(args, launcher, jobs, statuses)
    print(*describe_datasets(jobs), *estimated.lines(), sep="\n", flush=True)
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
) -> price.Price:
    """Check jobs, and return the estimated price of running them."""
    kinds = {job.kind for job in jobs}
    recorded = price.recorded_step_times(statuses, kinds, Path(args.import_results) if args.import_results else None)
    limit = price.LONG_LIMIT if args.estimate else price.QUICK_LIMIT
    timing = price.Timing(kinds - recorded.keys(), limit, only_quick=not args.estimate)
    measurements = check_jobs(jobs, timing)
    return price.estimate(jobs, statuses, recorded, measurements, launcher.capacity(len(jobs)))


def import_results(
    archive: Path, sweep_dir: Path, grid: Grid, statuses: dict[Job, Status], with_predictions: bool
) -> None:
    """Import jobs from an archive and update their statuses."""
    result = import_jobs(archive, statuses, with_predictions, with_pruned=grid.pruning is not None)
    statuses.update({job: read_status(job.folder) for job in result.jobs})
    if result.jobs:
        log_launch(sweep_dir, grid)  # even if the launch is not confirmed
    pruned = f", {result.n_pruned} that are pruned (`--prune` imports them)" if result.n_pruned else ""
    print(
        f"{len(result.jobs)} jobs imported from {archive}; skipped {result.n_not_requested} that were not requested, "
        f"{result.n_existing} that already exist" + pruned
    )
    n_without = sum(not (job.folder / PREDICTIONS_FILE).exists() for job in result.jobs)
    if with_predictions and n_without:
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
    to_delete = [job for job, s in statuses.items() if s.state in states]
    if to_delete and not args.skip_confirmation:
        confirm(f"Delete the folders of {len(to_delete)} jobs, including their checkpoints?", "nothing was deleted")
    queue = read_queue(sweep_dir)  # after the question; failed jobs may be part of a queued task as well
    to_delete = [job for job in to_delete if not (queue and queue.has(job.folder.name))]
    for job in delete_jobs(to_delete, sweep_dir, FINISHED - states):
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
        print(f"warning: not registered (see --import), so hyperparameters are not verified: {kinds}", file=sys.stderr)
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
        from domainbed.engine.checkpoint import remove_checkpoints  # imports torch

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
