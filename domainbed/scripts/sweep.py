"""Many jobs: `python -m domainbed.scripts.sweep launch --output_dir my_sweep …`."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import BENCHMARK, DATASETS, MultipleDomainDataset
from domainbed.errors import UsageError
from domainbed.registry import import_modules
from domainbed.scripts import cli
from domainbed.sweep.grid import make_jobs
from domainbed.sweep.job import Job, JobState
from domainbed.sweep.launchers import LAUNCHERS, Launcher

PASSED_ON = ("data_dir", "steps", "hparams", "holdout_fraction", "skip_model_save")


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m domainbed.scripts.sweep", description="Run the jobs of a benchmark.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    launch = commands.add_parser("launch", help="run every job that is not done", prog=f"{p.prog} launch")
    launch.add_argument("--output_dir", required=True, help="the sweep's folder, which holds one folder a job")
    launch.add_argument("--data_dir", help="folder that holds the datasets (the digits need none)")
    launch.add_argument(
        "--datasets", nargs="+", default=BENCHMARK, metavar="NAME", help=f"any of {', '.join(DATASETS)}, or your own"
    )
    launch.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), metavar="NAME", help="or your own")
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
    launch.add_argument("--command_launcher", default="local", help=f"who runs the jobs: {', '.join(LAUNCHERS)}")
    launch.add_argument("--workers", type=int, help="jobs at once (default: one a GPU or, without GPU, one a core)")
    launch.add_argument("--skip_model_save", action="store_true", help="let the jobs leave no model.pkl")
    cli.add_job_options(launch)
    launch.add_argument("--skip_confirmation", action="store_true", help="don't ask before starting")
    launch.add_argument(
        "--import", dest="imports", nargs="+", default=[], metavar="MODULE", help="your modules to import"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    jobs = jobs_of(args)
    launcher = LAUNCHERS[args.command_launcher](args.workers)
    states = {job: launcher.state(job) for job in jobs}
    # Commands that are only printed shall stand alone on stdout, and need no leave.
    chatter = sys.stdout if launcher.RUNS_JOBS else sys.stderr
    print(f"{len(jobs)} jobs in {args.output_dir}: {tally(states.values())}", file=chatter, flush=True)
    to_launch = [job for job, state in states.items() if state in (JobState.NOT_LAUNCHED, JobState.INCOMPLETE)]
    if not to_launch:
        return 0
    check(to_launch)
    if launcher.RUNS_JOBS and not args.skip_confirmation:
        confirm(f"Launch {len(to_launch)} jobs with launcher {args.command_launcher}?")
    try:
        return launch(launcher, to_launch)
    except KeyboardInterrupt:
        launcher.stop()
        print("\nStopped. The same command launches again what is not done.", file=sys.stderr)
        return 130


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """The jobs that the command line asks for."""
    return make_jobs(
        args.datasets,
        args.algorithms,
        args.n_hparams_from,
        args.n_hparams,
        args.n_trials,
        args.leave_one_out,
        args.output_dir,
        imports=tuple(args.imports),
        **{name: getattr(args, name) for name in (*PASSED_ON, *cli.JOB_OPTIONS)},
    )


def check(jobs: Sequence[Job]) -> None:
    """See that each dataset can be read and split, and each algorithm be made for it, before anything is started."""
    from domainbed.engine.data import load_data  # imports torch
    from domainbed.engine.model import make_algorithm

    loaded: dict[str, MultipleDomainDataset] = {}
    for config in {(job.config.dataset, job.config.algorithm): job.config for job in jobs}.values():
        if config.dataset not in loaded:
            loaded[config.dataset], _ = load_data(config)
        make_algorithm(config, loaded[config.dataset])


def confirm(question: str) -> None:
    """Ask on the terminal; anything but yes is a no."""
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        raise UsageError("nobody is there to answer; give --skip_confirmation to launch without asking") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was launched")


def launch(launcher: Launcher, jobs: Sequence[Job]) -> int:
    """Run the jobs and tell how they fare. Returns the exit status: 0 unless one failed."""
    began = time.monotonic()
    steps = dict.fromkeys(jobs, 0)
    ended: dict[Job, JobState] = {}
    failed = 0
    with tqdm(total=sum(job.config.steps for job in jobs), unit="step", disable=None, smoothing=0.05) as bar:
        for update in launcher.launch(jobs):
            bar.update(update.steps - steps[update.job])
            steps[update.job] = update.steps
            if update.state == JobState.RUNNING:
                continue
            ended[update.job] = update.state
            if update.state == JobState.FAILED:
                failed += 1
                tqdm.write(f"FAILED {update.job}: {update.reason}", file=sys.stderr)
            bar.set_postfix_str(f"{len(ended)}/{len(jobs)} jobs, {failed} failed")
            if bar.disable:
                seconds = time.monotonic() - began
                print(f"[{len(ended)}/{len(jobs)}] {seconds:.0f} s: {update.state.value}: {update.job}", flush=True)
    if ended:
        print(f"{tally(ended.get(job) or launcher.state(job) for job in jobs)} after {time.monotonic() - began:.0f} s")
    if failed:
        print("The same command launches again what is not done.")
    return 1 if failed else 0


def tally(states: Iterable[JobState]) -> str:
    """How many of each state: "30 done, 6 incomplete"."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state.value}" for state in JobState if counts[state])


if __name__ == "__main__":
    cli.run(main)
