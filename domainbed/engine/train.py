"""The training loop of a job."""

import gc
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from domainbed.algorithms.base import Algorithm
from domainbed.compute import featurizers_of
from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.algorithm_errors import locate_errors, step_place
from domainbed.engine.averaging.base import Averaging, Images, make_averaging
from domainbed.engine.checkpoint import PREVIOUS_FILE, Checkpointer, Progress, remove_checkpoints, software_versions
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.data import Batches, evaluation_requests, validation_requests
from domainbed.engine.evaluate import cross_entropy, split_means
from domainbed.engine.feed import open_feed
from domainbed.engine.frozen import is_frozen, load_inputs
from domainbed.engine.interrupts import Interrupted, Pruned
from domainbed.engine.lock import Lock, TakenError, is_locked, lock_owner, locked
from domainbed.engine.loggers.base import JobLoggers
from domainbed.engine.memory import keep_freed_memory
from domainbed.engine.metrics import NonFiniteError, check_weights
from domainbed.engine.model import MODEL_FILE, load_initial_weights, make_algorithm, save_model, to_device
from domainbed.engine.predictions import PredictionLog
from domainbed.engine.steps import fuse_adam, make_steps, should_capture
from domainbed.engine.tracking import Tracker, make_tracker
from domainbed.errors import printable
from domainbed.files import make_folder
from domainbed.loading.base import Feed, Request
from domainbed.loading.device_memory import explain_out_of_memory
from domainbed.loading.photo_feed import explain_dead_worker
from domainbed.loading.splits import Split
from domainbed.records import (
    BEST_MODEL_FILE,
    SELECTIVE,
    append_record,
    clear_pruned,
    is_done,
    mark_done,
    mark_pruned,
    read_job,
    records_length,
    validation_accuracy,
)
from domainbed.registry import import_modules
from domainbed.seeding import get_rng_state, seed_everything


def train(config: JobConfig, control: JobControl | None = None) -> None:
    """Train a job and write its folder: records, the model unless skipped, and finally `done`.

    An unfinished run of the same job is resumed from its last checkpoint. Nothing is written before the arguments and
    the data have been validated.

    Args:
        config: the job.
        control: follows the job and stops it; by default, the job runs to its end.

    Raises:
        UsageError: the folder contains a finished run or another job's run, another process is training the job, or
            the data cannot be used.
        AlgorithmError: the code of a user's algorithm failed.
        NonFiniteError: training diverged; the records of earlier steps are kept.
        Interrupted: `control.should_stop` returned True; everything needed to resume has been saved.
        Pruned: so did `control.should_prune`; the folder is marked as pruned.
    """
    control = control or JobControl()
    import_modules(config.imports)
    folder = Path(config.output_dir)
    check_available(folder, control.lock)
    loggers = JobLoggers(config)
    setup = set_up(config, control.should_stop)
    algorithm, averaging = setup.algorithm, setup.averaging
    with hold_folder(folder, control.lock) as lock, loggers, tqdm(total=config.steps, unit="step", disable=None) as bar:
        checkpointer = Checkpointer(config, algorithm, averaging, setup.feed, lock, control.should_stop)
        progress = checkpointer.resume()
        clear_pruned(folder)

        def stop_if_pruned() -> None:
            if decision := control.should_prune(progress.step - 1):
                checkpointer.save(progress)
                mark_pruned(folder, decision)
                (folder / PREVIOUS_FILE).unlink(missing_ok=True)  # pruned jobs are many, and few are ever resumed
                raise Pruned(str(decision), checkpointer.updates(progress))

        print_header(config, setup)
        loggers.start(read_job(folder)[0] if records_length(folder) else [])
        steps = make_steps(algorithm, setup.device, setup.is_captured)
        batches = setup.batches.steps(progress.step, config.steps)
        bar.update(progress.step)
        start = progress.step
        if not progress.is_evaluated and is_evaluation_due(start - 1, config):
            start -= 1  # the run was stopped between this update and its evaluation
        if progress.step and progress.is_evaluated:  # the job may have been killed before it was compared
            stop_if_pruned()
        progress.start_timer()
        for step in range(start, config.steps):
            if averaging.has_ended and progress.is_evaluated:
                tqdm.write(f"Training ended early at step {progress.step - 1} (--averaging {config.averaging}).")
                break
            if step == progress.step:
                minibatches, unlabeled = next(batches)
                with locate_errors(type(algorithm), lambda: step_place(algorithm, progress.step)):
                    progress.add_update(steps.update(minibatches, unlabeled))
                averaging.add_update()
                bar.update()
                lock.step = progress.step
                checkpointer.stop_if_requested(progress)
                checkpointer.save_if_due(progress)
            if is_evaluation_due(step, config):
                # A job that is stopped during an evaluation repeats it when resumed.
                stop = partial(checkpointer.stop_if_requested, progress, get_rng_state())
                record = evaluate(config, setup, progress, before_batch=stop)
                lock.check()
                for name in models_to_save(config, averaging, record):  # before the checkpoint, so that none is missing
                    with averaging.applied(final_images(config, setup, progress)):
                        save_model(folder / name, config, setup.dataset, setup.environments, algorithm)
                if setup.predictions:
                    save_predictions(setup.predictions, config, averaging, record)
                append_record(folder, record)
                loggers.log(record)
                progress.finish_evaluation()
                checkpointer.save_if_due(progress)
                tqdm.write(format_progress(record, config.test_envs))
                control.on_record(step)
                stop_if_pruned()
                progress.start_timer()
        lock.check()
        if not config.skip_model_save:
            with averaging.applied(final_images(config, setup, progress)):
                save_model(folder / MODEL_FILE, config, setup.dataset, setup.environments, algorithm)
        mark_done(folder)
        remove_checkpoints(folder)


def check_available(folder: Path, lock: Lock | None) -> None:
    """Raise TakenError if the run in this folder is finished or, unless the caller holds its lock, being trained."""
    if is_done(folder):
        raise TakenError(f"{folder} contains a finished run; delete it or choose another --output_dir")
    if lock is None and is_locked(folder):
        raise TakenError(f"{folder} is being trained by another process ({lock_owner(folder)})")


@contextmanager
def hold_folder(folder: Path, lock: Lock | None) -> Iterator[Lock]:
    """Create the job's folder and hold its lock, unless the caller does. Explain errors that the user can resolve."""
    make_folder(folder)
    with (
        locked(folder) if lock is None else nullcontext(lock) as lock,
        explain_out_of_memory(),
        explain_dead_worker(),
    ):
        check_available(folder, lock)  # another process may have finished the run in the meantime
        yield lock


class Setup(NamedTuple):
    """Everything that a job is trained with, created from its configuration alone."""

    dataset: MultipleDomainDataset
    environments: list[str]
    splits: list[Split]
    device: torch.device
    algorithm: Algorithm
    averaging: Averaging
    feed: Feed
    batches: Batches
    tracker: Tracker | None
    predictions: PredictionLog | None
    is_captured: bool


def set_up(config: JobConfig, should_stop: Callable[[], bool]) -> Setup:
    """Load the data, seed all random generators, and create the algorithm. Nothing is written but --cache.

    Raises:
        Interrupted: `should_stop` returned True.
    """

    def check_stop() -> None:
        if should_stop():
            raise Interrupted("stopped while preparing the data", updates=0)

    hparams = config.resolved_hparams()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with explain_out_of_memory():
        dataset, splits = load_inputs(config, hparams, device, check_stop)
    is_captured = should_capture(config.engine, device)
    set_determinism(config.deterministic)
    if device.type == "cuda":
        gc.collect()  # objects of the previous job in this process
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        keep_freed_memory()
    seed_everything(config.seed)
    with explain_out_of_memory():
        algorithm = make_algorithm(config, hparams, dataset)
        load_initial_weights(algorithm, config)
        algorithm = to_device(algorithm, config, device)
        fuse_adam(algorithm, device)
        algorithm.train()
        averaging = make_averaging(config, algorithm)
        feed = open_feed(config, dataset, splits, device, check_stop)
    batches = Batches(config, hparams, dataset, splits, feed)
    tracker = make_tracker(config, algorithm, splits, feed)
    names = config.environment_names()
    predictions = PredictionLog(dataset, names, splits) if config.save_predictions else None
    return Setup(dataset, names, splits, device, algorithm, averaging, feed, batches, tracker, predictions, is_captured)


def set_determinism(is_required: bool) -> None:
    """Make cuDNN deterministic and, if required, reject all nondeterministic operations on a GPU."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if is_required:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is initialized
    torch.use_deterministic_algorithms(is_required)


def is_evaluation_due(step: int, config: JobConfig) -> bool:
    """Return whether the protocol evaluates after this step: every `checkpoint_freq` steps, and after the last."""
    return step % config.checkpoint_freq == 0 or step == config.steps - 1


def updates_since_evaluation(step: int, checkpoint_freq: int) -> int:
    """Return the number of updates between the previous evaluation and the one after this step."""
    return step % checkpoint_freq or min(checkpoint_freq, step + 1)


def evaluate(
    config: JobConfig, setup: Setup, progress: Progress, before_batch: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the record of the last update's step. With averaging, it describes the average, except for the metrics.

    Raises:
        NonFiniteError: training diverged.
    """
    algorithm, averaging, feed, tracker = setup.algorithm, setup.averaging, setup.feed, setup.tracker
    step = progress.step - 1
    metrics = progress.metrics.mean()  # synchronizes, so that the time below includes all of the device's work
    progress.add_time()
    check_weights(algorithm, step)
    batch_size = algorithm.EVAL_BATCH_SIZE or feed.batch_size
    place = f"evaluation after {step_place(algorithm, step)}"
    losses: dict[str, float] = {}
    if averaging.NEEDS_LOSS:
        requests = validation_requests(config, setup.splits, batch_size)
        losses = split_means(algorithm, feed, requests, before_batch, cross_entropy, place)
        if infinite := {name: loss for name, loss in losses.items() if not math.isfinite(loss)}:
            raise NonFiniteError(step, " and ".join(f"{name} is {loss}" for name, loss in infinite.items()))
    averaging.end_interval(step, fmean(losses.values()) if losses else math.nan)
    requests = evaluation_requests(config, setup.dataset, setup.splits, step, batch_size)
    measure = partial(split_means, algorithm, feed, before_batch=before_batch, place=place)
    if setup.predictions:
        measure = partial(measure, observe=setup.predictions.add)
    with averaging.applied(final_images(config, setup, progress)):
        if config.eval in SELECTIVE:
            accuracies = measure_needed(config, averaging, step, list(requests), measure)
        else:
            accuracies = measure(requests)
        mem_gb = torch.cuda.max_memory_allocated() / 2**30 if setup.device.type == "cuda" else 0.0
        tracked = tracker.record() if tracker else {}
    steps_per_epoch = min(len(split.in_) for split in setup.splits) / algorithm.hparams["batch_size"]
    return {
        "step": step,
        "epoch": step / steps_per_epoch,
        **metrics,
        **losses,
        **accuracies,
        "bad_images": len(feed.bad_images),
        "step_time": progress.seconds / updates_since_evaluation(step, config.checkpoint_freq),
        "mem_gb": mem_gb,  # without the tracker's
        **tracked,
        **({"ended_early": True} if averaging.has_ended and step < config.steps - 1 else {}),
        "environments": setup.environments,
        "args": config.args(),
        "hparams": algorithm.hparams,
    }


def measure_needed(
    config: JobConfig,
    averaging: Averaging,
    step: int,
    requests: Sequence[tuple[str, Request]],
    measure: Callable[[Iterable[tuple[str, Request]]], dict[str, float]],
) -> dict[str, float]:
    """Return the accuracies that a built-in selection method can still read, whatever happens later in the job.

    Args:
        config: the job; its `eval` is one of `records.SELECTIVE`.
        averaging: the scheme, whose interval has ended.
        step: the last update's step.
        requests: those of all splits (`evaluation_requests`).
        measure: returns the accuracies on the splits of these requests.
    """
    accuracies = measure(r for r in requests if r[1].env not in config.test_envs)
    parts: tuple[str, ...] = ()
    if step == config.steps - 1 or averaging.has_ended:
        parts = ("in", "out")
    elif averaging.IS_EVALUATED_ONCE:
        pass  # only the last record counts
    elif config.eval == "leave_one_out" or improves_validation(config, {"args": config.args(), **accuracies}):
        parts = ("in",)
    names = {f"env{env}_{part}_acc" for env in config.test_envs for part in parts}
    return accuracies | measure(r for r in requests if r[0] in names)


def best_record(config: JobConfig, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the best record by training-domain, of the job's and one that has not been written yet."""
    folder = Path(config.output_dir)
    earlier = read_job(folder)[0] if records_length(folder) else []
    return max([*earlier, record], key=validation_accuracy)  # of equals, the earliest


def improves_validation(config: JobConfig, record: Mapping[str, Any]) -> bool:
    """Return whether a record that has not been written yet is better than all of the job's, by training-domain."""
    return best_record(config, record) is record


def models_to_save(config: JobConfig, averaging: Averaging, record: Mapping[str, Any]) -> list[str]:
    """Return the names under which to save the model of a record that has not been written yet."""
    names = [f"model_step{record['step']}.pkl"] if config.save_model_every_checkpoint else []
    if config.save_best_model and (averaging.IS_EVALUATED_ONCE or improves_validation(config, record)):
        names.append(BEST_MODEL_FILE)
    return names


def save_predictions(
    predictions: PredictionLog, config: JobConfig, averaging: Averaging, record: Mapping[str, Any]
) -> None:
    """Save the predictions of a record that has not been written yet, if a selection method may choose it."""
    step = record["step"]
    best_step = step if averaging.IS_EVALUATED_ONCE else best_record(config, record)["step"]
    if step == config.steps - 1 or averaging.has_ended or (best_step == step and not averaging.IS_EVALUATED_ONCE):
        predictions.save(Path(config.output_dir), step, best_step)
    predictions.clear()


def final_images(config: JobConfig, setup: Setup, progress: Progress) -> Images | None:
    """Return a reader of the batches after the last update, as one tensor of images each; None before the end."""
    step = progress.step
    if step < config.steps and not setup.averaging.has_ended:
        return None

    def read(n: int) -> Iterator[torch.Tensor]:
        for minibatches, _ in setup.batches.steps(step, step + n):
            yield torch.cat([x for x, _ in minibatches])

    return read


def print_header(config: JobConfig, setup: Setup) -> None:
    """Print what the job runs on, its arguments, and a legend for the progress lines."""
    modes = ["captured updates"] * setup.is_captured
    modes += ["compiled featurizers"] * any(featurizer.is_compiled for featurizer in featurizers_of(setup.algorithm))
    tqdm.write(", ".join([software_versions(), str(setup.device), *modes]))
    tqdm.write(f"args: {config.args()}\nhparams: {setup.algorithm.hparams}")
    for line in [*config.dataset_class().describe(config.data_dir), *describe_groups(config, setup)]:
        tqdm.write(line)
    if setup.algorithm.caveat:
        tqdm.write(f"note: {config.algorithm}: {setup.algorithm.caveat}")
    if is_frozen(setup.algorithm.hparams) and not setup.algorithm.hparams["feature_views"]:
        tqdm.write('note: features of images without augmentation; use {"feature_views": N} for augmented views')
    tqdm.write("accuracies in percent: in split/out split, [test environment]")


def describe_groups(config: JobConfig, setup: Setup) -> list[str]:
    """Return how many images of each environment are held out, if the job splits groups, whose sizes differ."""
    if not config.splits_groups():
        return []
    sizes = [(len(split.out), sum(map(len, split.parts().values()))) for split in setup.splits]
    shares = [
        f"{printable(name)} {out:,} of {n:,} ({out / n:.0%})"
        for name, (out, n) in zip(setup.environments, sizes, strict=True)
    ]
    return [f"split by group; images held out: {', '.join(shares)}"]


def format_progress(record: Mapping[str, Any], test_envs: tuple[int, ...]) -> str:
    """Return a line on one evaluation: accuracies on in and out splits in percent, test environments in brackets."""
    parts = [f"step {record['step']:>5}"]
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    for i, name in enumerate(map(printable, record["environments"])):
        values = [record.get(f"env{i}_{part}_acc") for part in ("in", "out")]
        scores = "/".join("-" if accuracy is None else f"{100 * accuracy:.1f}" for accuracy in values)
        parts.append(f"[{name} {scores}]" if i in test_envs else f"{name} {scores}")
    return "  ".join([*parts, f"{1000 * record['step_time']:.1f} ms/step"])
