"""Classes in the style of DomainBed's run as jobs, and a resumed job equals an uninterrupted one bit for bit."""

from pathlib import Path

import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.model import MODEL_FILE, load_model
from domainbed.engine.train import train
from domainbed.records import read_job
from tests.lib.their_algorithms import CLASSES

INCIDENTAL = ("step_time", "mem_gb", "args")
STEPS = 9


def run(folder: Path, is_stopped: bool = False) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Train a job, perhaps stopped after six updates and resumed. Return its records and its model's state."""
    config = JobConfig(
        *("ColoredDigits", "Theirs", (2,)),
        steps=STEPS,
        checkpoint_freq=4,
        hparams='{"batch_size": 8}',
        output_dir=str(folder),
    )
    if is_stopped:
        evaluated: list[int] = []
        with pytest.raises(Interrupted, match="stopped after 6 of 9"):
            train(config, JobControl(should_stop=lambda: 4 in evaluated, on_record=evaluated.append))
    train(config)
    records = [{k: v for k, v in r.items() if k not in INCIDENTAL} for r in read_job(folder)[0]]
    return records, torch.load(folder / MODEL_FILE, weights_only=True)["model_dict"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_resumed_job_equals_an_uninterrupted_one(cls: type, tmp_path: Path):
    with ALGORITHMS.temporarily("Theirs", cls):
        records, weights = run(tmp_path / "whole")
        assert len(records) == 3
        resumed_records, resumed_weights = run(tmp_path / "resumed", is_stopped=True)
        assert resumed_records == records
        assert resumed_weights.keys() == weights.keys()
        for name, value in weights.items():
            assert torch.equal(resumed_weights[name], value), name
        logits = load_model(tmp_path / "whole" / MODEL_FILE).predict(torch.rand(3, 2, 8, 8))
        assert logits.shape == (3, 2)
