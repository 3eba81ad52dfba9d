"""The training loop of a job."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tqdm import tqdm

from domainbed.engine.algorithm_errors import locate_errors, step_place
from domainbed.engine.checkpoint import Checkpointer, Progress, check_records
from domainbed.engine.checkpoint_files import PREVIOUS_FILE, remove_checkpoints
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Pruned
from domainbed.engine.lock import Lock, TakenError, is_locked, lock_owner, locked
from domainbed.engine.loggers.base import JobLoggers
from domainbed.engine.messages import print_header
from domainbed.engine.recorder import Recorder
from domainbed.engine.setup import set_up
from domainbed.engine.steps import make_steps
from domainbed.files import make_folder
from domainbed.loading.device_memory import explain_out_of_memory
from domainbed.loading.photo_feed import explain_dead_worker
from domainbed.records import CHECKPOINT_FILE, clear_pruned, is_done, mark_done, mark_pruned, read_job, records_length
from domainbed.registry import import_modules


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
        checkpointer = Checkpointer(config, setup, lock, control.should_stop)
        recorder = Recorder(config, setup, checkpointer, lock, loggers)
        is_resumed = records_length(folder) > 0 or (folder / CHECKPOINT_FILE).exists()
        progress = checkpointer.resume()
        if is_resumed:
            recorder.check_best_model()
        clear_pruned(folder)
        print_header(config, setup)
        loggers.start(read_job(folder)[0] if records_length(folder) else [])
        steps = make_steps(algorithm, setup.device, setup.is_captured)
        batches = setup.batches.steps(progress.step, config.steps)
        bar.update(progress.step)
        start = progress.step
        if not progress.is_evaluated and config.is_evaluation_due(start - 1):
            start -= 1  # the run was stopped between this update and its evaluation
        if progress.step and progress.is_evaluated:  # the job may have been killed before it was compared
            stop_if_pruned(folder, control, checkpointer, progress)
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
                recorder.evaluate(progress)
                control.on_record(step)
                stop_if_pruned(folder, control, checkpointer, progress)
                progress.start_timer()
        lock.check()
        if not config.skip_model_save:
            recorder.save_final_model(progress)
        mark_done(folder)
        remove_checkpoints(folder)


def stop_if_pruned(folder: Path, control: JobControl, checkpointer: Checkpointer, progress: Progress) -> None:
    """Save a checkpoint, mark the folder and raise Pruned, if the caller of `train` prunes the job at this step."""
    if decision := control.should_prune(progress.step - 1):
        checkpointer.save(progress)
        mark_pruned(folder, decision)
        (folder / PREVIOUS_FILE).unlink(missing_ok=True)  # pruned jobs are many, and few are ever resumed
        raise Pruned(str(decision), checkpointer.updates(progress))


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
