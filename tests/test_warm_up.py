"""Notes on jobs that end during their warm-up."""

from pathlib import Path

import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.engine.config import JobConfig
from domainbed.engine.train import train
from domainbed.hparams_registry import default_hparams
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from domainbed.warm_up import describe_unfinished, is_warm_up, unfinished_warm_ups
from tests.algorithms import checks
from tests.algorithms.test_all import batches
from tests.sweep.helpers import main

WARM_UPS = [
    (algorithm, name)
    for algorithm in ALGORITHMS
    for name in default_hparams(algorithm, "ColoredDigits")
    if is_warm_up(name)
]


def test_algorithms_have_warm_ups():
    assert {"IRM", "VREx", "Fishr", "EQRM", "RDM", "TRM", "IB_ERM", "IB_IRM", "ERMPlusPlus"} <= {
        algorithm for algorithm, _ in WARM_UPS
    }


@pytest.mark.parametrize(("algorithm", "name"), WARM_UPS)
@pytest.mark.parametrize("warm_up", [1, 2, 3])
def test_weights_depend_on_penalty_unless_warm_up_is_unfinished(algorithm: str, name: str, warm_up: int):
    """Compare the weights after three updates with those of a warm-up that never ends."""
    weights = []
    for value in (warm_up, 10**6):
        others = {other: 10**6 for a, other in WARM_UPS if a == algorithm}
        torch.manual_seed(0)
        made = checks.make(algorithm, {**others, name: value})
        torch.manual_seed(0)
        for minibatches in batches(3):
            made.update(minibatches)
        weights.append(torch.nn.utils.parameters_to_vector(made.parameters()))
    is_unfinished = name in unfinished_warm_ups({name: warm_up}, steps=3)
    last = 2 if name == "linear_steps" else 3
    assert torch.equal(*weights) == is_unfinished == (warm_up >= last)


def test_jobs_are_counted_by_kind():
    jobs = [("A", ["x"]), ("A", []), ("B", []), ("C", ["y", "x"]), ("A", ["x"])]
    assert describe_unfinished(jobs) == "A 2 of 3 (x); C 1 of 1 (y and x)"
    assert describe_unfinished([("B", [])]) == describe_unfinished([]) == ""


def test_unusual_values_are_ignored():
    """Users' algorithms may have any hyperparameters."""
    assert unfinished_warm_ups({"anneal_iters": "late", "my_anneal_iters": 2.5, "anneal": 9}, 2) == ["my_anneal_iters"]


def test_launch_job_and_tables_say_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Draws 0 and 1 of IRM have warm-ups of 500 updates and 2, and ERMPlusPlus always one of 501."""
    words = ["launch", "--datasets", "ColoredDigits", "--algorithms", "ERM", "ERMPlusPlus", "IRM", "--n_hparams", "2"]
    words += ["--n_trials", "1", "--steps", "3", "--skip_model_save", "--skip_confirmation"]
    words += ["--output_dir", str(tmp_path / "sweep")]
    text = "ERMPlusPlus on ColoredDigits 6 of 6 (linear_steps); IRM on ColoredDigits 3 of 6 (irm_penalty_anneal_iters)"
    assert main([*words, "--dry_run"]) == 0
    assert capsys.readouterr().err.count(text) == 1
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.count(text) == 1
    assert text not in captured.err, "a launch that fails prints only its error there"
    (note,) = (note for note in make_report(load_sweep(tmp_path / "sweep"), ReportOptions()).notes if "penalty" in note)
    assert note.endswith(f"not below the number of steps: {text}.")


@pytest.mark.parametrize("steps", [500, 501])
def test_job_says_so(steps: int, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    config = JobConfig("ColoredDigits", "IRM", (0,), steps=steps, output_dir=str(tmp_path), skip_model_save=True)
    monkeypatch.setattr("domainbed.engine.train.make_steps", lambda *args: 1 / 0)  # after the header
    with pytest.raises(ZeroDivisionError):
        train(config)
    text = "irm_penalty_anneal_iters (500) is not below --steps (500)"
    assert (text in capsys.readouterr().out) == (steps == 500)
