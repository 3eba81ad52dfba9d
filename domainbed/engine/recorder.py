"""Writes what the evaluations of a job leave in its folder: records, models and predictions."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainbed.engine.checkpoint import Checkpointer, Progress
from domainbed.engine.config import JobConfig
from domainbed.engine.job_record import best_earlier_record, final_images, improves_validation, make_record
from domainbed.engine.lock import Lock
from domainbed.engine.loggers.base import JobLoggers
from domainbed.engine.messages import format_progress
from domainbed.engine.model import MODEL_FILE, save_model
from domainbed.engine.model_check import describe_difference
from domainbed.engine.predictions import PredictionLog
from domainbed.engine.setup import Setup
from domainbed.records import BEST_MODEL_FILE, EVALUATED_ONCE, append_record
from domainbed.seeding import get_rng_state


class Recorder:
    """Evaluates a job and writes its records, and the models and predictions that its arguments request."""

    def __init__(
        self, config: JobConfig, setup: Setup, checkpointer: Checkpointer, lock: Lock, loggers: JobLoggers
    ) -> None:
        self._config = config
        self._setup = setup
        self._checkpointer = checkpointer
        self._lock = lock
        self._loggers = loggers
        self._folder = Path(config.output_dir)

    def check_best_model(self) -> None:
        """Remove a best model that this process does not update; print a note if an earlier one is missing.

        A job may be resumed with or without `--save_best_model`, whether or not it was started with it.
        """
        path = self._folder / BEST_MODEL_FILE
        if not self._config.save_best_model:
            if path.exists():
                path.unlink()
                tqdm.write(f"{path} was removed: the job was resumed without --save_best_model")
        elif path.exists() or self._config.averaging in EVALUATED_ONCE:  # of these, the last model is saved
            return
        elif best := best_earlier_record(self._config):
            tqdm.write(
                f"{path} lacks the model of step {best['step']}, the best by validation accuracy so far, as the job "
                "was started or resumed without --save_best_model; it will have that of the next better one"
            )

    def evaluate(self, progress: Progress) -> None:
        """Evaluate the last update. A job that is stopped meanwhile repeats the evaluation when it is resumed.

        Raises:
            NonFiniteError: training diverged.
            Interrupted: the caller of `train` requested a stop; a checkpoint has been saved.
            TakenError: another process has taken over the job.
            UsageError: the state of a user's algorithm cannot be saved.
        """
        generators = get_rng_state()
        stop = partial(self._checkpointer.stop_if_requested, progress, generators)
        earlier = best_earlier_record(self._config)
        record = make_record(self._config, self._setup, progress, earlier, before_batch=stop)
        models = self._models_to_save(record, earlier)
        predictions = self._setup.predictions
        saves_predictions = predictions is not None and self._predictions_are_due(record, earlier)
        if models or saves_predictions:
            # A job that resumes from an earlier step, such as with other threads or on a GPU, might not reach the
            # weights of these files again.
            self._checkpointer.save(progress, generators)
            self._lock.check()
        for name in models:
            with self._averaged(progress):
                self._save_model(name)
        if predictions is not None:
            if saves_predictions:
                self._save_predictions(predictions, record, earlier)
            predictions.clear()
        self._lock.check()  # large files may take a while
        append_record(self._folder, record)
        self._loggers.log(record)
        progress.finish_evaluation()
        self._checkpointer.save_if_due(progress)
        tqdm.write(format_progress(record, self._config.test_envs))

    def save_final_model(self, progress: Progress) -> None:
        """Save the model of the last update, or its average. Print a warning if the file predicts something else."""
        with self._averaged(progress):
            self._save_model(MODEL_FILE)
            path, setup = self._folder / MODEL_FILE, self._setup
            if problem := describe_difference(path, setup.algorithm, setup.dataset.input_shape):
                tqdm.write(f"warning: {problem}")
        self._lock.check()  # a large model may take a while

    def _averaged(self, progress: Progress) -> AbstractContextManager[None]:
        """Return a context in which the algorithm has the average of its weights, if they are averaged."""
        return self._setup.averaging.applied(final_images(self._config, self._setup, progress))

    def _save_model(self, name: str) -> None:
        setup = self._setup
        save_model(self._folder / name, self._config, setup.dataset, setup.environments, setup.algorithm)

    def _models_to_save(self, record: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> list[str]:
        """Return the names under which to save the model of a record, given the best earlier one."""
        config = self._config
        names = [f"model_step{record['step']}.pkl"] if config.save_model_every_checkpoint else []
        if config.save_best_model and (config.averaging in EVALUATED_ONCE or improves_validation(record, earlier)):
            names.append(BEST_MODEL_FILE)
        return names

    def _predictions_are_due(self, record: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> bool:
        """Return whether a selection method may choose a record, given the best earlier one."""
        is_last = record["step"] == self._config.steps - 1 or self._setup.averaging.has_ended
        return is_last or (self._config.averaging not in EVALUATED_ONCE and improves_validation(record, earlier))

    def _save_predictions(
        self, predictions: PredictionLog, record: Mapping[str, Any], earlier: Mapping[str, Any] | None
    ) -> None:
        """Save the predictions of a record, given the best earlier one."""
        best = record
        if earlier and self._config.averaging not in EVALUATED_ONCE and not improves_validation(record, earlier):
            best = earlier
        predictions.save(self._folder, record["step"], best["step"])
