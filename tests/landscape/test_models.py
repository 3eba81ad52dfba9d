"""The models of selected runs."""

import json
from pathlib import Path

import pandas as pd
import pytest

from domainbed.errors import UsageError
from domainbed.landscape.models import check_classes, find_models

SELECTED, LAST = 3, 9
RECORDS = pd.DataFrame({"folder": ["job"] * 3, "step": [0, SELECTED, LAST]})


def find(sweep_dir: Path, files: list[str], selection: str, step: int) -> tuple[str | None, list[str]]:
    """Return the name of the model of a run of this folder, and the warnings."""
    (sweep_dir / "job").mkdir()
    for name in files:
        (sweep_dir / "job" / name).touch()
    warnings: list[str] = []
    runs = pd.DataFrame([{"algorithm": "ERM", "trial_seed": 2, "folder": "job", "step": step}])
    models = find_models(sweep_dir, RECORDS, runs, selection, warnings.append)
    assert set(models) <= {2}
    return (models[2].name if models else None), warnings


@pytest.mark.parametrize(
    ("files", "selection", "step", "expected"),
    [
        (["model.pkl", "model_best.pkl", "model_step3.pkl"], "training-domain", SELECTED, "model_step3.pkl"),
        (["model.pkl", "model_best.pkl"], "training-domain", SELECTED, "model_best.pkl"),
        (["model_best.pkl"], "training-domain", SELECTED, "model_best.pkl"),
        (["model.pkl", "model_best.pkl"], "training-domain", LAST, "model.pkl"),
        (["model_best.pkl"], "training-domain", LAST, "model_best.pkl"),
        (["model.pkl", "model_best.pkl"], "test-domain", LAST, "model.pkl"),
    ],
)
def test_model_of_the_selected_step(files: list[str], selection: str, step: int, expected: str, tmp_path: Path):
    assert find(tmp_path, files, selection, step) == (expected, [])


@pytest.mark.parametrize(
    ("selection", "option"),
    [("training-domain", "--save_best_model"), ("leave-one-domain-out", "--save_model_every_checkpoint")],
)
def test_last_model_with_a_warning(selection: str, option: str, tmp_path: Path):
    files = ["model.pkl"] if selection == "training-domain" else ["model.pkl", "model_best.pkl"]
    model, (warning,) = find(tmp_path, files, selection, SELECTED)
    assert model == "model.pkl"
    assert warning == (
        "ERM, trial 2: using the weights of the last step, 9; those of the selected step, 3, were not saved "
        f"(see `launch {option}`)"
    )


@pytest.mark.parametrize("files", [[], ["model_best.pkl"]])
def test_missing_model_is_skipped_with_a_warning(files: list[str], tmp_path: Path):
    model, (warning,) = find(tmp_path, files, "test-domain", LAST)
    assert model is None
    assert warning == f"ERM, trial 2: no model in {tmp_path / 'job'} (launched with --skip_model_save?); skipped"


def test_unregistered_classes_raise(tmp_path: Path):
    (tmp_path / "job").mkdir()
    args = {"algorithm": "Theirs", "dataset": "ColoredDigits", "imports": ["their_module"]}
    (tmp_path / "job" / "results.jsonl").write_text(json.dumps({"step": 0, "args": args}) + "\n")
    runs = pd.DataFrame({"folder": ["no such job", "job"]})
    with pytest.raises(UsageError, match="requires the algorithm 'Theirs', which is not registered"):
        check_classes(tmp_path, runs, trust_imports=False)
