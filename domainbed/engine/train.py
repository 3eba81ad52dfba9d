"""The training of one job, from its first step to its last."""

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from domainbed import __version__
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches, evaluation_requests, load_data
from domainbed.engine.evaluate import accuracies
from domainbed.engine.feed import open_feed
from domainbed.engine.figures import Figures, check_weights
from domainbed.engine.lock import TakenError, locked
from domainbed.engine.model import make_algorithm, save_model
from domainbed.errors import UsageError
from domainbed.loading.photographs import dead_worker_told
from domainbed.loading.residence import full_device_told
from domainbed.records import RESULTS_FILE, append_record, is_done, mark_done, read_job
from domainbed.registry import import_modules
from domainbed.seeding import seed_everything


def train(config: JobConfig, on_record: Callable[[int], None] = lambda step: None) -> None:
    """Train one job and leave its folder: records, the model unless unwanted, and `done` at the end.

    A folder that holds an unfinished run of this job is begun anew. Nothing is written before the arguments and the
    data have proved good.

    Args:
        config: the job.
        on_record: called with the step after each record.

    Raises:
        UsageError: the folder holds a finished run, or another job's, or another process trains there; or the data
            can't be used.
        NonFiniteError: training went astray; the records before stay.
    """
    import_modules(config.imports)
    folder = Path(config.output_dir)
    refuse_finished(folder)
    dataset, splits = load_data(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of the job before this one in the same process
    seed_everything(config.seed)
    algorithm = make_algorithm(config, dataset).to(device)
    feed = open_feed(config, dataset, splits, device)
    names = config.environment_names()
    batches = Batches(config, dataset, splits, feed).steps(0, config.steps)
    steps_per_epoch = min(len(split.in_) for split in splits) / algorithm.hparams["batch_size"]

    make_folder(folder)
    algorithm.train()
    with (
        locked(folder),
        full_device_told(),
        dead_worker_told(),
        tqdm(total=config.steps, unit="step", disable=None) as bar,
    ):
        begin(folder, config)
        tqdm.write(f"domainbed {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {device}")
        tqdm.write(f"args: {config.args()}\nhparams: {algorithm.hparams}")
        tqdm.write("accuracies in percent: trained on / held out, [test environment]")
        for start, stop in stretches(config.steps, config.checkpoint_freq):
            told = Figures(start)
            began = time.perf_counter()
            for minibatches, unlabeled in islice(batches, stop - start):
                told.add(algorithm.update(minibatches, unlabeled))
                bar.update()
            figures = told.read()  # waits for the device, so that the time is right
            step_time = (time.perf_counter() - began) / (stop - start)

            step = stop - 1
            check_weights(algorithm, step)
            record = {
                "step": step,
                "epoch": step / steps_per_epoch,
                **figures,
                **accuracies(algorithm, feed, evaluation_requests(config, dataset, splits, step, feed.batch_size)),
                "bad_images": len(feed.bad_images),
                "step_time": step_time,
                "mem_gb": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
                "environments": names,
                "args": config.args(),
                "hparams": algorithm.hparams,
            }
            append_record(folder, record)
            if config.save_model_every_checkpoint:
                save_model(folder / f"model_step{step}.pkl", config, dataset, algorithm)
            tqdm.write(progress_line(record, config.test_envs))
            on_record(step)
        if not config.skip_model_save:
            save_model(folder / "model.pkl", config, dataset, algorithm)
        mark_done(folder)


def refuse_finished(folder: Path) -> None:
    if is_done(folder):
        raise TakenError(f"{folder} holds a finished run; delete it or choose another --output_dir")


def make_folder(folder: Path) -> None:
    """Make the job's folder where there is none, and see that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--output_dir {folder}: {error.strerror}") from error


def begin(folder: Path, config: JobConfig) -> None:
    """Clear the folder of the records of this job that did not get to its end; those of another job are kept."""
    refuse_finished(folder)  # another process may have been faster
    results = folder / RESULTS_FILE
    if not results.exists():
        return
    for record in read_job(folder)[0][:1]:
        theirs, ours = record.get("args", {}), config.args()
        telling = [f for f in fields(config) if f.compare or (f.name == "data_dir" and config.is_own_tree())]
        # An argument that a record does not have was not there yet, and stood at its default.
        other = [f"{f.name} {theirs.get(f.name, f.default)}" for f in telling]
        if other != [f"{f.name} {ours[f.name]}" for f in telling]:
            raise UsageError(
                f"{folder} holds another, unfinished run ({', '.join(other)}); choose another --output_dir"
            )
    results.unlink()
    tqdm.write("An unfinished run of this job was here; it is begun anew.")


def stretches(steps: int, checkpoint_freq: int) -> Iterator[tuple[int, int]]:
    """The steps start, …, stop - 1 up to each evaluation: after every step that checkpoint_freq divides, and the last.

    >>> list(stretches(12, 5))
    [(0, 1), (1, 6), (6, 11), (11, 12)]
    """
    start = 0
    while start < steps:
        stop = min(-(-start // checkpoint_freq) * checkpoint_freq + 1, steps)
        yield start, stop
        start = stop


def progress_line(record: Mapping[str, Any], test_envs: tuple[int, ...]) -> str:
    """One evaluation for people: accuracies in percent, *in* and *out* split, test environments in brackets."""
    parts = [f"step {record['step']:>5}"]
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    for i, name in enumerate(record["environments"]):
        measured = [record.get(f"env{i}_{part}_acc") for part in ("in", "out")]
        scores = "/".join("-" if accuracy is None else f"{100 * accuracy:.1f}" for accuracy in measured)
        parts.append(f"[{name} {scores}]" if i in test_envs else f"{name} {scores}")
    return "  ".join([*parts, f"{1000 * record['step_time']:.1f} ms/step"])
