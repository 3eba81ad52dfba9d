"""The command line of `sweep`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.engine.config import JobConfig
from domainbed.engine.digest import init_digest
from domainbed.options import add_options, from_args, option
from domainbed.pruning import NO_PRUNING, PruneOptions
from domainbed.registry import import_modules
from domainbed.scripts import config_file
from domainbed.sweep.grid import NOT_SHARED, Grid
from domainbed.sweep.job import absolute_paths
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.terminal import warn

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
        help="check the launch, estimate its cost, and exit. Updates of built-in algorithms without records are "
        "timed even if that takes a while",
    )
    json: bool = option(
        False,
        help="print events as JSON lines on stdout, and everything else on stderr; requires --skip_confirmation or "
        "--estimate",
    )
    skip_confirmation: bool = option(False, help="do not ask for confirmation")


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("sweep"),
        description="Launch the jobs of a benchmark, and manage them.",
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
        "delete the folders of incomplete jobs, never those of running or queued ones; with the options of a launch, "
        "only those of its jobs",
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
        add_options(
            launch.add_argument_group(f"options of the {' and '.join(names)} launcher{'s' * (len(names) > 1)}"),
            options,
            skip=declared,
        )
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


def grid_of(args: argparse.Namespace) -> Grid:
    """Return the grid of a launch, with groups of algorithms expanded. Its paths are absolute."""
    names = [f.name for f in fields(Grid) if f.name not in ("job_args", "specs", "pruning", "left_out")]
    names += [f.name for f in fields(JobConfig) if f.name not in NOT_SHARED]
    values = {name: getattr(args, name) for name in names}
    if args.init_from:  # so that the launch is known by its content once the file is gone
        values["init_digest"] = init_digest(args.init_from)
    pruning = from_args(PruneOptions, args)
    values["pruning"] = None if pruning.prune == NO_PRUNING else pruning
    grid, skipped = Grid.from_args(values | absolute_paths(values)).expand_groups()
    warn(*(text for name in args.algorithms if (text := ALGORITHMS.homonym_warning(name))))
    for line in skipped:
        print(line, file=sys.stderr)
    return grid
