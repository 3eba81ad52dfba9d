"""A flat table of a job's records: records.csv in its folder."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed.engine.config import JobConfig
from domainbed.engine.loggers.base import Logger, metrics
from domainbed.files import atomic_write, open_to_append
from domainbed.records import RUN_KEYS, algorithm_name

FILE = "records.csv"


class CsvLogger(Logger):
    """Writes one row per record: the run's coordinates in the sweep, the step, and all metrics."""

    def start(self, config: JobConfig, records: Sequence[Mapping[str, Any]]) -> None:
        self._path = Path(config.output_dir) / FILE
        coordinates = {name: getattr(config, name) for name in RUN_KEYS}
        coordinates["algorithm"] = algorithm_name(vars(config))
        coordinates["test_envs"] = " ".join(map(str, config.test_envs))
        self._coordinates = coordinates
        self._rows = [self._row(record) for record in records]
        self._columns: list[str] = []
        self._write_all()

    def log(self, record: Mapping[str, Any]) -> None:
        row = self._row(record)
        self._rows.append(row)
        if self._columns and row.keys() <= set(self._columns):
            with open_to_append(self._path) as file:
                file.write(self._text([row]))
        else:  # the first record, or one with a new metric
            self._write_all()

    def _row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._coordinates, "step": record["step"], **metrics(record)}

    def _write_all(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        header = [dict(zip(self._columns, self._columns, strict=True))] if self._rows else []
        with atomic_write(self._path) as file:
            file.write(self._text([*header, *self._rows]))

    def _text(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode(errors="backslashreplace")
