"""The training loop of a job."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from tqdm import tqdm

from domainbed.engine.algorithm_errors import locate_errors, step_place
from domainbed.engine.checkpoint import Checkpointer, check_records
from domainbed.engine.checkpoint_files import PREVIOUS_FILE, remove_checkpoints
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Pruned
from domainbed.engine.job_record import (
    best_earlier_record,
    final_images,
    make_record,
    models_to_save,
    predictions_are_due,
    save_predictions,
)
from domainbed.engine.lock import Lock, TakenError, is_locked, lock_owner, locked
from domainbed.engine.loggers.base import JobLoggers
from domainbed.engine.messages import format_progress, print_header
from domainbed.engine.model import MODEL_FILE, save_model
from domainbed.engine.model_check import describe_difference
from domainbed.engine.setup import set_up
from domainbed.engine.steps import make_steps
from domainbed.files import make_folder
from domainbed.loading.device_memory import explain_out_of_memory
from domainbed.loading.photo_feed import explain_dead_worker
from domainbed.records import append_record, clear_pruned, is_done, mark_done, mark_pruned, read_job, records_length
from domainbed.registry import import_modules
from domainbed.seeding import get_rng_state


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
    if folder.is_dir():  # before the data, which may take long to load; again once the lock is held
        check_records(folder, config)
    loggers = JobLoggers(config)
    setup = set_up(config, control.should_stop)
    algorithm, averaging = setup.algorithm, setup.averaging
    with hold_folder(folder, control.lock) as lock, loggers, tqdm(total=config.steps, unit="step", disable=None) as bar:
        checkpointer = Checkpointer(
            config, algorithm, averaging, setup.feed, lock, control.should_stop, setup.code, setup.backbone_weights
        )
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
        if not progress.is_evaluated and config.is_evaluation_due(start - 1):
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
            if config.is_evaluation_due(step):
                # A job that is stopped during an evaluation repeats it when resumed.
                generators = get_rng_state()
                stop = partial(checkpointer.stop_if_requested, progress, generators)
                earlier = best_earlier_record(config)
                record = make_record(config, setup, progress, earlier, before_batch=stop)
                models = models_to_save(config, record, earlier)
                saves_predictions = setup.predictions and predictions_are_due(config, averaging, record, earlier)
                if models or saves_predictions:
                    # A job that resumes from an earlier step, such as with other threads or on a GPU, might not reach
                    # the weights of these files again.
                    checkpointer.save(progress, generators)
                    lock.check()
                for name in models:
                    with averaging.applied(final_images(config, setup, progress)):
                        save_model(folder / name, config, setup.dataset, setup.environments, algorithm)
                if setup.predictions:
                    if saves_predictions:
                        save_predictions(setup.predictions, config, record, earlier)
                    setup.predictions.clear()
                lock.check()  # large files may take a while
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
                if problem := describe_difference(folder / MODEL_FILE, algorithm, setup.dataset.input_shape):
                    tqdm.write(f"warning: {problem}")
            lock.check()  # a large model may take a while
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
