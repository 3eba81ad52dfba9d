"""An algorithm that comes to grief in the way its hyperparameters say. (Imported by the workers under test.)"""

import os
import signal
import threading
import time

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.erm import ERM
from domainbed.errors import UsageError
from domainbed.hparams_registry import Hparam, register_hparams

register_hparams("Misbehaving", how=Hparam("well"))


@ALGORITHMS.register("Misbehaving")
class Misbehaving(ERM):
    def update(self, minibatches, unlabeled=None):
        how = self.hparams["how"]
        print(f"about to do {how}")
        if how == "raise":
            raise RuntimeError("out of ideas")
        if how == "usage":
            raise UsageError("not like this")
        if how == "exit":
            os._exit(3)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "leave a thread":
            threading.Thread(target=time.sleep, args=(600,)).start()
            raise RuntimeError("a thread goes on")
        if how == "leave a child":
            if os.fork() == 0:
                time.sleep(20)  # it holds all that its parent held open
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "sleep":
            time.sleep(600)
        return super().update(minibatches, unlabeled)
