"""The training of one job, from its first step to its last."""

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from domainbed.compute import featurizers_of
from domainbed.engine.checkpoint import Checkpoints, remove_checkpoints, versions
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches, evaluation_requests, load_data
from domainbed.engine.evaluate import accuracies
from domainbed.engine.feed import open_feed
from domainbed.engine.lock import Lock, TakenError, is_locked, lock_owner, locked
from domainbed.engine.memory import keep_freed_memory
from domainbed.engine.metrics import check_weights
from domainbed.engine.model import MODEL, make_algorithm, save_model, to_device
from domainbed.engine.steps import are_captured, make_steps
from domainbed.files import make_folder
from domainbed.landscape.view import begin_tracking, tracked
from domainbed.loading.photo_feed import explain_dead_worker
from domainbed.loading.residence import explain_out_of_memory
from domainbed.records import append_record, is_done, mark_done
from domainbed.registry import import_modules
from domainbed.seeding import seed_everything


def train(
    config: JobConfig,
    on_record: Callable[[int], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    lock: Lock | None = None,
) -> None:
    """Train one job and leave its folder: records, the model unless unwanted, and `done` at the end.

    An unfinished run of this job goes on from its last checkpoint. Nothing is written before the arguments and the data
    have proved good.

    Args:
        config: the job.
        on_record: called with the step after each record.
        should_stop: asked after every update, and between the batches of an evaluation.
        lock: the folder's, where the caller holds it already.

    Raises:
        UsageError: the folder holds a finished run, or another job's, or another process trains there; or the data
            can't be used.
        NonFiniteError: training went astray; the records before stay.
        Interrupted: `should_stop` said so. All that is needed to go on is saved.
    """
    import_modules(config.imports)
    folder = Path(config.output_dir)
    refuse_finished(folder)
    if lock is None:
        refuse_locked(folder)
    dataset, splits = load_data(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    captured = are_captured(config.engine, device)
    set_determinism(config.deterministic)
    if device.type == "cuda":
        gc.collect()  # of the job before this one in the same process
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        keep_freed_memory()
    seed_everything(config.seed)
    with explain_out_of_memory():
        algorithm = to_device(make_algorithm(config, dataset), config, device)
        feed = open_feed(config, dataset, splits, device)
    is_tracked = begin_tracking(config, algorithm)
    ways = ["updates to be captured"] * captured
    ways += ["featurizers compiled"] * any(featurizer.is_compiled for featurizer in featurizers_of(algorithm))
    names = config.environment_names()
    steps_per_epoch = min(len(split.in_) for split in splits) / algorithm.hparams["batch_size"]

    make_folder(folder)
    algorithm.train()
    with (
        locked(folder) if lock is None else nullcontext(lock) as lock,
        explain_out_of_memory(),
        explain_dead_worker(),
        tqdm(total=config.steps, unit="step", disable=None) as bar,
    ):
        refuse_finished(folder)  # another process may have been faster
        checkpoints = Checkpoints(config, algorithm, feed, lock, should_stop)
        progress = checkpoints.resume()
        steps = make_steps(algorithm, device, captured)
        tqdm.write(", ".join([versions(), str(device), *ways]))
        tqdm.write(f"args: {config.args()}\nhparams: {algorithm.hparams}")
        tqdm.write("accuracies in percent: trained on / held out, [test environment]")
        bar.update(progress.step)
        batches = Batches(config, dataset, splits, feed).steps(progress.step, config.steps)
        for start, stop in evaluation_intervals(config.steps, config.checkpoint_freq):
            if progress.is_past(stop):
                continue
            progress.begin()
            for minibatches, unlabeled in islice(batches, stop - progress.step):
                progress.add(steps.update(minibatches, unlabeled))
                bar.update()
                checkpoints.after_update(progress)
            figures = progress.told.read()  # waits for the device, so that the time is right
            progress.pause()
            step_time = progress.seconds() / (stop - start)

            step = stop - 1
            check_weights(algorithm, step)
            requests = evaluation_requests(config, dataset, splits, step, feed.batch_size)
            record = {
                "step": step,
                "epoch": step / steps_per_epoch,
                **figures,
                **accuracies(algorithm, feed, requests, checkpoints.stopper(progress)),
                "bad_images": len(feed.bad_images),
                "step_time": step_time,
                "mem_gb": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
                **(tracked(config, algorithm, splits, feed) if is_tracked else {}),  # after memory is read
                "environments": names,
                "args": config.args(),
                "hparams": algorithm.hparams,
            }
            lock.check()
            if config.save_model_every_checkpoint:  # before the checkpoint, behind which nobody comes back to it
                save_model(folder / f"model_step{step}.pkl", config, dataset, algorithm)
            append_record(folder, record)
            progress.evaluated()
            checkpoints.save(progress)
            tqdm.write(progress_line(record, config.test_envs))
            on_record(step)
        lock.check()
        if not config.skip_model_save:
            save_model(folder / MODEL, config, dataset, algorithm)
        mark_done(folder)
        remove_checkpoints(folder)


def set_determinism(everywhere: bool) -> None:
    """Have convolutions give the same bits each time and, if `everywhere`, refuse operations on a GPU that don't."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if everywhere:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU's library starts
    torch.use_deterministic_algorithms(everywhere)


def refuse_finished(folder: Path) -> None:
    if is_done(folder):
        raise TakenError(f"{folder} holds a finished run; delete it or choose another --output_dir")


def refuse_locked(folder: Path) -> None:
    """Before the data are loaded for nothing."""
    if is_locked(folder):
        raise TakenError(f"{folder} is being trained by another process ({lock_owner(folder)})")


def evaluation_intervals(steps: int, checkpoint_freq: int) -> Iterator[tuple[int, int]]:
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
