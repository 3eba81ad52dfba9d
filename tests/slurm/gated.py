"""An algorithm that trains slowly or fails while a file is missing. (Imported by the tasks under test.)"""

import os
import time
from pathlib import Path

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam

GATE = "DOMAINBED_TEST_GATE"  # environment variable with the path of the file; if unset, the gate is open


def is_open() -> bool:
    return GATE not in os.environ or Path(os.environ[GATE]).exists()


def wait_at_gate(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_open() and time.monotonic() < deadline:
        time.sleep(0.02)


@ALGORITHMS.register("Gated")
class Gated(ERM):
    """ERM. While the gate is closed, a hyperparameter makes it slow, slow to evaluate, or failing."""

    HPARAMS = {"closed": Hparam("slow", lambda r: "fail")}

    def update(self, minibatches, unlabeled=None):
        if self.hparams["closed"] == "slow":
            wait_at_gate(1)
        if self.hparams["closed"] == "fail" and not is_open():
            raise RuntimeError("the gate is closed")
        return super().update(minibatches, unlabeled)

    def predict(self, x):
        if self.hparams["closed"] == "slow to evaluate" and not self.training:
            print("at the gate")
            wait_at_gate(4)
        return super().predict(x)
