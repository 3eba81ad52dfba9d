"""TensorBoard: `tensorboard --logdir SWEEP` shows the jobs of a sweep."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed.engine.config import JobConfig
from domainbed.engine.loggers.base import Logger, metrics, parameters

FOLDER = "tensorboard"  # in the job's folder


class TensorBoardLogger(Logger):
    """Writes event files to a folder named like the job, in the job's folder."""

    PACKAGE = "tensorboard"

    def start(self, config: JobConfig, records: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(config.output_dir) / FOLDER / config.title().replace("/", "_")
        old = list(folder.glob("events.out.tfevents.*"))
        # TensorBoard may have read the old files. It discards what it read once it reads `purge_step`.
        self._writer = SummaryWriter(folder, purge_step=0 if old else None)
        for file in old:
            file.unlink()
        self._writer.add_text("parameters", f"```json\n{json.dumps(parameters(config), indent=1)}\n```")
        for record in records:
            self.log(record)
        self._writer.flush()

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in metrics(record).items():
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def end(self, status: str) -> None:
        self._writer.close()
