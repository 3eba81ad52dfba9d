"""An algorithm that trains slowly, or fails, for as long as a file is missing. (Imported by the tasks under test.)"""

import os
import time
from pathlib import Path

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.erm import ERM
from domainbed.hparams_registry import Hparam, register_hparams

GATE = "DOMAINBED_TEST_GATE"  # an environment variable that names the file; without it the gate is open

register_hparams("Gated", closed=Hparam("slow", lambda r: "fail"))


def is_open() -> bool:
    return GATE not in os.environ or Path(os.environ[GATE]).exists()


def hold(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_open() and time.monotonic() < deadline:
        time.sleep(0.02)


@ALGORITHMS.register("Gated")
class Gated(ERM):
    """ERM but, while the gate is closed, as its hyperparameter says: slow, slow to evaluate, or failing."""

    def update(self, minibatches, unlabeled=None):
        if self.hparams["closed"] == "slow":
            hold(1)
        if self.hparams["closed"] == "fail" and not is_open():
            raise RuntimeError("the gate is closed")
        return super().update(minibatches, unlabeled)

    def predict(self, x):
        if self.hparams["closed"] == "slow to evaluate" and not self.training:
            print("at the gate")
            hold(4)
        return super().predict(x)
