"""One job of a sweep: its folder, and its command line."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from domainbed.engine.config import JobConfig

LOG_FILE = "log.txt"
SWEEP_FOLDER = ".sweep"  # in the sweep's folder, beside the jobs': what concerns them together


def absolute_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a job's arguments that are paths to what it reads, as they hold wherever they are read."""
    given = {name: arguments[name] for name in ("data_dir", "weights_dir", "cache")}
    return {name: str(Path(path).absolute()) for name, path in given.items() if path}


@dataclass(frozen=True, eq=False)
class Job:
    """A job and its place in a sweep, by which it is known: two jobs are the same if their folders are."""

    config: JobConfig

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self.config.output_dir == other.config.output_dir

    def __hash__(self) -> int:
        return hash(self.config.output_dir)

    @classmethod
    def in_sweep(cls, config: JobConfig, sweep_dir: Path) -> "Job":
        """The job whose folder in `sweep_dir` is named by what determines its result.

        Its paths are absolute: it may run from another folder.
        """

        folder = str(sweep_dir.absolute() / config.name())
        return cls(replace(config, output_dir=folder, **absolute_paths(vars(config))))

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def kind(self) -> tuple[str, str]:
        """The dataset and the algorithm."""
        return self.config.dataset, self.config.algorithm

    def command(self) -> list[str]:
        """The words of the command line that trains this job alone."""
        words = [sys.executable, "-m", "domainbed.scripts.train"]
        for f in fields(self.config):
            value = getattr(self.config, f.name)
            if value is None or value == f.default:
                continue
            words.append("--import" if f.name == "imports" else f"--{f.name}")
            if isinstance(value, tuple):
                words += map(str, value)
            elif value is not True:
                words.append(str(value))
        return words

    def __str__(self) -> str:
        c = self.config
        environments = c.environment_names()
        names = " and ".join(environments[i] for i in c.test_envs)
        return f"{c.algorithm} on {c.dataset}, test {names}, hparams {c.hparams_seed}, trial {c.trial_seed}"
