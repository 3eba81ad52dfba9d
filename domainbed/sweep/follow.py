"""A launch as it goes: what its launcher tells of the jobs, told on."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from domainbed.engine.interrupts import StopRequest, stop_on_signals
from domainbed.sweep.job import Job
from domainbed.sweep.launchers import Launcher
from domainbed.sweep.status import JobState


def launch_and_follow(launcher: Launcher, jobs: Sequence[Job]) -> tuple[StopRequest, int]:
    """As `follow`, until the jobs end or a signal asks to stop; a second Ctrl-C ends them at once.

    Returns:
        Whether, and by which signals, it was asked to stop; and how many jobs failed.
    """
    failed = 0
    with stop_on_signals() as asked_to_stop:
        try:
            failed = follow(launcher, jobs, asked_to_stop)
        except KeyboardInterrupt:
            launcher.stop()
    return asked_to_stop, failed


def follow(launcher: Launcher, jobs: Sequence[Job], should_stop: Callable[[], bool]) -> int:
    """Have the jobs run and tell how they fare, for as long as the launcher tells. Returns how many failed."""
    began = time.monotonic()
    steps = dict.fromkeys(jobs, 0)
    ended = failed = 0
    reasons: set[tuple[tuple[str, str], str]] = set()
    is_bar_off = None if launcher.RUNS_HERE else True  # None: only where nobody watches
    with tqdm(total=sum(job.config.steps for job in jobs), unit="step", disable=is_bar_off, smoothing=0.05) as bar:
        for update in launcher.launch(jobs, should_stop):
            bar.update(update.steps - steps[update.job])
            steps[update.job] = update.steps
            if update.state == JobState.FAILED:
                failed += 1
                tqdm.write(f"FAILED {update.job}: {update.reason}", file=sys.stderr)
            elif update.reason and (update.job.kind, update.reason) not in reasons:
                reasons.add((update.job.kind, update.reason))  # of a kind that is held back, one job's will do
                tqdm.write(f"{update.job}: {update.reason}", file=sys.stderr)
            if update.state not in (JobState.DONE, JobState.FAILED, JobState.INCOMPLETE):
                continue
            ended += 1
            bar.set_postfix_str(f"{ended}/{len(jobs)} jobs, {failed} failed")
            if bar.disable:
                seconds = time.monotonic() - began
                _say(f"[{ended}/{len(jobs)}] {seconds:.0f} s: {update.state.value}: {update.job}")
    return failed


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # who read this has left (`| head`): as if asked to stop, so that what runs is saved
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)
