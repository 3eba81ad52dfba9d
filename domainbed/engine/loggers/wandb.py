"""Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` uploads a run."""

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed.engine.config import JobConfig
from domainbed.engine.loggers.base import Logger, group_name, metrics, parameters


class WandbLogger(Logger):
    """Writes a run to the folder `wandb` in the job's folder, in the project WANDB_PROJECT (default: domainbed)."""

    PACKAGE = "wandb"

    def start(self, config: JobConfig, records: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        folder = Path(config.output_dir) / "wandb"
        earlier = sorted(folder.glob("*run-*-*"))  # folders named by the start and the identifier of the run
        run_id = earlier[-1].name.rpartition("-")[2] if earlier else uuid.uuid4().hex[:8]
        for run in folder.glob("offline-run-*"):  # `wandb sync` cannot append to a run
            shutil.rmtree(run)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "domainbed"),
            group=group_name(config),
            name=config.title(),
            id=run_id,
            dir=config.output_dir,
            config=parameters(config),
            resume="allow" if mode == "online" else None,
            mode=mode,
            reinit="create_new",  # a process trains several jobs
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        self._next_step = self._run.step  # not 0 if an earlier process logged online
        for record in records:
            self.log(record)

    def log(self, record: Mapping[str, Any]) -> None:
        if record["step"] >= self._next_step:
            self._run.log(metrics(record), step=record["step"], commit=True)

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "done" else 1)
