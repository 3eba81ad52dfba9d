"""A worker of the local launcher that measures the parts of its jobs, and runs the bare loop of each next to it."""

import functools
import importlib
import inspect
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

TIMES_FILE = "DOMAINBED_BENCHMARK_TIMES"  # environment variable: the file that receives a line of JSON per job
BARE_LOOP = "bare loop"
BETWEEN_JOBS = "between jobs"
REST = "rest"

# Part -> the functions whose time it is, without the time in functions of other parts that they call.
PARTS = {
    "updates": ["engine.steps:EagerSteps.update"],
    "batches": ["engine.data:Batches.steps"],
    "evaluations": ["engine.recorder:make_record"],
    "checkpoints": [
        *("engine.checkpoint:Checkpointer.resume", "engine.checkpoint:Checkpointer.save"),
        "engine.train:remove_checkpoints",
    ],
    "records": [
        *("engine.recorder:append_record", "engine.train:read_job", "engine.train:mark_done"),
        "engine.job_record:read_job",
        *("sweep.run:begin_attempt", "sweep.run:remove_failure_files"),
    ],
    "data": ["engine.setup:load_inputs", "engine.setup:open_feed"],
    "model": ["engine.setup:make_algorithm", "engine.setup:to_device", "engine.setup:fuse_adam"],
    "lock": [
        *("engine.lock:_create_lock", "engine.lock:Lock.start_from", "engine.lock:Lock.check"),
        "engine.lock:Lock.release",
    ],
}


class Stopwatch:
    """Wall and CPU time by part, each without the parts that run within it."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._parts = [BETWEEN_JOBS]
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _add(self) -> None:
        now, times = self._now(), self._times[self._parts[-1]]
        for i in range(2):
            times[i] += now[i] - self._last[i]
        self._last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Attribute the time within a `with` block to a part."""
        self._add()
        self._parts.append(name)
        try:
            yield
        finally:
            self._add()
            self._parts.pop()

    def read(self) -> dict[str, list[float]]:
        """Return wall and CPU time in seconds by part since the last call."""
        self._add()
        times, self._times = dict(self._times), defaultdict(lambda: [0.0, 0.0])
        return times

    def measure(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function or generator function whose time is a part's."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            iterator = function(*args, **kwargs)
            while True:
                with self.part(name):
                    try:
                        value = next(iterator)
                    except StopIteration:
                        return
                yield value

        return generate if inspect.isgeneratorfunction(function) else run

    def install(self, parts: Mapping[str, list[str]]) -> None:
        """Replace the functions of each part, given as "module:name" in this package, by measured ones."""
        for part, functions in parts.items():
            for function in functions:
                module, _, path = function.partition(":")
                *owners, name = path.split(".")
                owner = functools.reduce(getattr, owners, importlib.import_module(f"domainbed.{module}"))
                setattr(owner, name, self.measure(part, getattr(owner, name)))


def serve(connection: Connection, environ: Mapping[str, str]) -> None:
    """Serve a launcher as `domainbed.sweep.worker.serve` does, and write the times of each job."""
    os.environ.update(environ)  # before torch is imported
    from domainbed.sweep import worker

    stopwatch = Stopwatch()
    stopwatch.install(PARTS)
    run_job = stopwatch.measure(REST, worker.run_job)

    def run_both(job: Any, *args: Any) -> Any:
        event = run_job(job, *args)
        with stopwatch.part(BARE_LOOP):
            run_bare_loop(job.config)
        with open(os.environ[TIMES_FILE], "a") as file:
            file.write(json.dumps(stopwatch.read()) + "\n")
        return event

    worker.run_job = run_both
    worker.serve(connection, environ)


def run_bare_loop(config: Any) -> None:
    """Train the network of a job of ERM as many steps as the job, with Adam, on random batches, and do nothing else."""
    import torch
    from torch.nn import functional as F

    from domainbed.engine.data import load_data
    from domainbed.networks import Classifier, Featurizer

    hparams = config.resolved_hparams()
    dataset, splits = load_data(config, hparams)
    environments = [
        (torch.from_numpy(dataset[i].images[split.in_]).float() / 255, torch.from_numpy(dataset[i].labels[split.in_]))
        for i, split in enumerate(splits)
        if i not in config.test_envs
    ]
    featurizer = Featurizer(dataset.input_shape, hparams)
    network = torch.nn.Sequential(featurizer, Classifier(featurizer.n_outputs, dataset.num_classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=hparams["lr"], fused=True)
    for _ in range(config.steps):
        batches = [(x[i], y[i]) for x, y in environments for i in [torch.randint(len(y), (hparams["batch_size"],))]]
        loss = F.cross_entropy(network(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
