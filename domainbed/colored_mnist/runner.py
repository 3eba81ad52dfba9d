"""Train several restarts at once. Each finished restart is appended to a file of JSON lines."""

import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from domainbed.colored_mnist.experiment import load_mnist, train
from domainbed.engine.memory import keep_freed_memory
from domainbed.errors import UsageError, one_line
from domainbed.files import read_regular
from domainbed.landscape import PREFIX
from domainbed.records import MAX_RESULTS_SIZE
from domainbed.sweep.processes import ignore_sigint
from domainbed.terminal import ProgressBar, warn

SETTINGS = ("algorithm", "label_flip", "grayscale", "steps", "seed")
ACCURACIES = ("train_acc", "test_acc", "gray_acc")  # in [0, 1], of finished restarts


def settings_of(restart: Mapping[str, Any]) -> tuple:
    """Return the settings that determine a restart."""
    return tuple(restart[name] for name in SETTINGS)


def read_restarts(path: Path) -> list[dict[str, Any]]:
    """Return the finished restarts of a file. Invalid lines, such as a truncated one, are skipped with a warning."""
    restarts = []
    data = read_regular(path, MAX_RESULTS_SIZE) if path.exists() else b""
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            restart = json.loads(line.decode())
            hash(settings_of(restart))
            is_valid = all(math.isfinite(restart[name]) for name in ACCURACIES)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            is_valid = False
        if is_valid:
            restarts.append(restart)
        else:
            warn(f"{path}: skipping line {number}, which is not a finished restart")
    return restarts


def append_restart(path: Path, restart: Mapping[str, Any]) -> None:
    """Append a finished restart on a line of its own, even if the last line was truncated, and flush it to disk."""
    with open(path, "ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        is_truncated = file.read() not in (b"", b"\n")
        file.write(b"\n" * is_truncated + json.dumps(restart).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def train_restarts(
    pending: Sequence[Mapping[str, Any]], data_dir: str, workers: int | None, path: Path, track: bool = False
) -> int:
    """Train restarts in worker processes and append each one to a file when it is finished.

    Args:
        pending: the SETTINGS of each restart.
        data_dir: the folder of MNIST.
        workers: number of restarts to train at once; None for one per CPU core or, with a GPU, one.
        path: the file.
        track: whether to record the loss landscape.

    Returns:
        The number of failed restarts. Their errors are printed to stderr.

    Raises:
        UsageError: a worker process died. Finished restarts are in the file.
    """
    cores = cpu_count()  # respects the limits of batch systems and containers
    workers = min(workers or (1 if torch.cuda.is_available() else cores), len(pending))
    n_failed = 0
    task = delayed(_try_restart)
    tasks = [task(settings, data_dir, track, max(1, cores // workers), os.getpid()) for settings in pending]
    # Shown when joblib cancels tasks after Ctrl-C.
    warnings.filterwarnings("ignore", message=r"\d+ tasks which were still being processed by the workers")
    try:
        with ignore_sigint():  # starts the workers, which must leave Ctrl-C to this process
            finished = Parallel(workers, return_as="generator_unordered", batch_size=1)(tasks)
        for settings, restart, error in ProgressBar(finished, total=len(tasks), unit="restart"):
            name = f"{settings['algorithm']}, seed {settings['seed']}"
            if restart is None:
                n_failed += 1
                tqdm.write(f"FAILED {name}: {error}", file=sys.stderr)
                continue
            append_restart(path, restart)
            scores = ", ".join(f"{column} {100 * restart[f'{column}_acc']:.1f}" for column in ("train", "test", "gray"))
            tqdm.write(f"{name}: {scores} ({restart['seconds']:.0f} s)")
    except TerminatedWorkerError as error:
        raise UsageError("a worker process died; if it ran out of memory, use fewer --workers") from error
    return n_failed


def _try_restart(
    settings: Mapping[str, Any], data_dir: str, track: bool, threads: int, launcher: int
) -> tuple[Mapping[str, Any], dict[str, Any] | None, str]:
    """Train one restart in a worker process. Return its settings, the finished restart or None, and the error."""
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        keep_freed_memory()

    def exit_without_launcher() -> None:
        if launcher not in (os.getpid(), os.getppid()):
            os._exit(1)

    try:
        return settings, train_restart(settings, _load_mnist_once(data_dir), track, exit_without_launcher), ""
    except Exception as error:
        kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        return settings, None, f"{kind}{one_line(error)}"


_load_mnist_once = cache(load_mnist)


def train_restart(
    settings: Mapping[str, Any],
    mnist: tuple[torch.Tensor, torch.Tensor],
    track: bool = False,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train one restart. Return its settings, accuracies, last metrics, duration and versions.

    If `track`, `course` holds the distances along training.

    Raises:
        ArithmeticError: a metric of the last step is not finite.
    """
    start = time.perf_counter()
    metrics: dict[str, torch.Tensor] = {}
    course = []
    for step, metrics in enumerate(train(**settings, images=mnist[0], digits=mnist[1], track=track)):
        distances = {name: value.item() for name, value in metrics.items() if name.startswith(PREFIX)}
        course += [{"step": step, **distances}] if distances else []
        on_step()
    last = {name: value.item() for name, value in metrics.items()}
    invalid = [f"{name} is {value}" for name, value in last.items() if not math.isfinite(value)]
    if invalid:
        raise ArithmeticError(f"{' and '.join(invalid)} at the last step, {settings['steps'] - 1}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        **settings,
        **last,
        **({"course": course} if track else {}),
        "seconds": time.perf_counter() - start,
        "torch": torch.__version__,
        "device": device,
        "python": platform.python_version(),
    }
