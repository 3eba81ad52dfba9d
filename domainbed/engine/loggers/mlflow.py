"""MLflow: the database mlflow.db in the sweep's folder, unless MLFLOW_TRACKING_URI says otherwise."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed.engine.config import JobConfig
from domainbed.engine.loggers.base import Logger, group_name, metrics, parameters, sweep_folder
from domainbed.files import atomic_write, file_lock

RUN_FILE = "mlflow_run.txt"  # in the job's folder: the identifier of its run
DATABASE = "mlflow.db"
STATUSES = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflowLogger(Logger):
    """Adds a run to the experiment of the sweep. Runs cannot lose metrics; those that are repeated are skipped."""

    PACKAGE = "mlflow"

    def start(self, config: JobConfig, records: Sequence[Mapping[str, Any]]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
        from mlflow.tracking import MlflowClient

        folder = sweep_folder(config)
        local = f"sqlite:///{folder / DATABASE}?timeout=60"  # seconds to wait for other jobs
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local))
        run_file = Path(config.output_dir) / RUN_FILE
        self._logged: set[tuple[str, int]] = set()
        with file_lock(folder / f"{DATABASE}.lock", "Waiting for another job to open the MLflow database"):
            if run_file.is_file():
                self._resume(run_file.read_text())
            else:
                self._create(config)
                with atomic_write(run_file) as file:
                    file.write(self._run_id.encode())
        for record in records:
            self.log(record)

    def _create(self, config: JobConfig) -> None:
        from mlflow.entities import Param

        name = group_name(config)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run_id = self._client.create_run(experiment_id, run_name=config.title()).info.run_id
        params = [Param(_valid(key), str(value)) for key, value in parameters(config).items()]
        self._client.log_batch(self._run_id, params=params)

    def _resume(self, run_id: str) -> None:
        self._run_id = run_id
        for key in self._client.get_run(run_id).data.metrics:
            self._logged |= {(key, metric.step) for metric in self._client.get_metric_history(run_id, key)}
        self._client.update_run(run_id, status="RUNNING")

    def log(self, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), record["step"]
        values = {_valid(name): value for name, value in metrics(record).items()}
        new = {name: value for name, value in values.items() if (name, step) not in self._logged}
        if new:
            self._client.log_batch(self._run_id, [Metric(name, float(value), now, step) for name, value in new.items()])
            self._logged |= {(name, step) for name in new}

    def end(self, status: str) -> None:
        if status != "taken":
            self._client.set_terminated(self._run_id, STATUSES[status])


def _valid(name: str) -> str:
    """Return a name without characters that MLflow rejects."""
    return re.sub(r"[^\w. /:-]", "_", name, flags=re.ASCII)
