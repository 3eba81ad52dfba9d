"""The saved models of a sweep's selected runs."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from domainbed.engine.components import import_components
from domainbed.engine.model import MODEL_FILE
from domainbed.records import BEST_MODEL_FILE, RESULTS_FILE, last_record

BY_BEST_MODEL = "training-domain"  # the selection method by which --save_best_model saves a model


def check_classes(sweep_dir: Path, runs: pd.DataFrame, trust_imports: bool) -> None:
    """Check that the algorithms and datasets of selected runs are registered, before the first one is measured.

    Args:
        sweep_dir: the sweep's folder.
        runs: the selected runs: `folder`.
        trust_imports: whether to import the modules that the runs imported.

    Raises:
        UsageError: one is not registered.
    """
    for folder in runs["folder"]:
        record = last_record(sweep_dir / folder)
        if record and isinstance(record.get("args"), dict):
            results = sweep_dir / folder / RESULTS_FILE
            import_components(record["args"], trust_imports, ["dataset", "algorithm"], results)


def find_models(
    sweep_dir: Path, records: pd.DataFrame, runs: pd.DataFrame, selection: str, warn: Callable[[str], object]
) -> dict[int, Path]:
    """Return the models of an algorithm's selected runs, by trial.

    A model is that of the selected step if it was saved, else the last one.

    Args:
        sweep_dir: the sweep's folder.
        records: the sweep's records: `folder`, `step`.
        runs: the selected runs: `algorithm`, `trial_seed`, `folder`, `step`.
        selection: the selection method.
        warn: called with a message for each model that is missing or is not that of the selected step.
    """
    models = {}
    for run in runs.to_dict("records"):
        folder, step = sweep_dir / run["folder"], run["step"]
        last = records["step"][records["folder"] == run["folder"]].max()
        of_step = [folder / f"model_step{step}.pkl"]
        if last == step:
            of_step.append(folder / MODEL_FILE)
        if selection == BY_BEST_MODEL:  # the earliest of equals in both
            of_step.append(folder / BEST_MODEL_FILE)
        model = next((path for path in [*of_step, folder / MODEL_FILE] if path.exists()), None)
        name = f"{run['algorithm']}, trial {run['trial_seed']}"
        if model is None:
            warn(f"{name}: no model in {folder} (launched with --skip_model_save?); skipped")
            continue
        if model not in of_step:
            option = "--save_best_model" if selection == BY_BEST_MODEL else "--save_model_every_checkpoint"
            warn(
                f"{name}: using the weights of the last step, {last}; those of the selected step, {step}, were not "
                f"saved (see `launch {option}`)"
            )
        models[run["trial_seed"]] = model
    return models
