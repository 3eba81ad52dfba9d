"""The decision whether to prune a job, made in its process from the records of the other draws of its trial.

Nothing is stored but the decision: which jobs are compared is known from the launch log, and how good they are from
their records, so it makes no difference which launches and machines train them, and in which order.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from domainbed.errors import UsageError
from domainbed.files import read_json
from domainbed.records import PruneDecision, read_job, validation_accuracy
from domainbed.sweep.grid import Grid, RunKey
from domainbed.sweep.job import Job
from domainbed.sweep.log import launch_files


class Pruner:
    """A callable that decides after an evaluation of a job whether it stops (`JobControl.should_prune`).

    Args:
        job: a job with a rule.
    """

    def __init__(self, job: Job) -> None:
        assert job.pruning is not None
        self._job, self._options = job, job.pruning
        self._rungs = self._options.rungs(job.config.evaluation_steps())

    def __call__(self, step: int) -> PruneDecision | None:
        if step not in self._rungs:
            return None
        folder = self._job.folder
        accuracy = best_accuracy(folder, step)
        names = dict.fromkeys(name for name in find_peers(self._job) if name != folder.name)
        peers = {name: peer for name in names if (peer := best_accuracy(folder.parent / name, step)) is not None}
        if accuracy is None or not self._options.should_stop(accuracy, list(peers.values())):
            return None
        return PruneDecision(step, str(self._options), accuracy, peers)


def find_peers(job: Job) -> Iterator[str]:
    """Yield the names of the folders of all draws of a job's trial that launches with its arguments requested.

    Launches that cannot be read are skipped. Names may be repeated.
    """
    config, sweep_dir = job.config, job.folder.parent
    run = RunKey(config.dataset, config.algorithm, config.test_envs, config.trial_seed, config.hparams_seed)
    for path in launch_files(sweep_dir):
        try:
            grid = Grid.from_log(read_json(path))
            if config.dataset in grid.specs and grid.job(run, sweep_dir) == job:
                for draw in range(grid.n_hparams_from, grid.n_hparams):
                    yield grid.job(run._replace(hparams_seed=draw), sweep_dir).folder.name
        except (UsageError, ValueError, LookupError, TypeError, AttributeError, OSError):
            continue


def best_accuracy(folder: Path, step: int) -> float | None:
    """Return the best validation accuracy of a job up to a step.

    Returns:
        None if the job has not reached the step, or if a record cannot be used.
    """
    try:
        records = [record for record in read_job(folder)[0] if record["step"] <= step]
        accuracies = [validation_accuracy(record) for record in records]
    except (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None
    has_reached = bool(records) and records[-1]["step"] == step
    return max(accuracies) if has_reached and all(map(math.isfinite, accuracies)) else None
