"""A job of a sweep: its folder and its command line."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from domainbed.engine.config import JobConfig
from domainbed.options import to_args
from domainbed.pruning import PruneOptions
from domainbed.records import algorithm_name

LOG_FILE = "log.txt"
SWEEP_FOLDER = ".sweep"  # in the sweep's folder, next to the folders of the jobs: files about the sweep as a whole

Kind: TypeAlias = tuple[str, str]  # (dataset, algorithm, as in tables)


def absolute_paths(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a job's arguments that are paths of its inputs, as absolute paths."""
    paths = {name: args.get(name) for name in ("data_dir", "weights_dir", "cache", "init_from")}
    return {name: str(Path(path).absolute()) for name, path in paths.items() if path}


@dataclass(frozen=True, eq=False)
class Job:
    """A job and its folder in a sweep. Two jobs are equal if they have the same folder.

    Attributes:
        config: what the job trains.
        pruning: the rule by which it may stop early, if any. It is not part of the job's configuration, so pruned and
            unpruned sweeps share their jobs.
    """

    config: JobConfig
    pruning: PruneOptions | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self.config.output_dir == other.config.output_dir

    def __hash__(self) -> int:
        return hash(self.config.output_dir)

    @classmethod
    def in_sweep(cls, config: JobConfig, sweep_dir: Path, pruning: PruneOptions | None = None) -> "Job":
        """Return the job whose folder in `sweep_dir` is named by a hash of all that determines its records.

        Its paths are absolute, so that it can run from any folder.
        """
        folder = str(sweep_dir.absolute() / config.name())
        paths = absolute_paths(vars(config))
        if any(getattr(config, name) != path for name, path in paths.items()):
            config = replace(config, **paths)
        return cls(config.with_output_dir(folder), pruning)

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def kind(self) -> Kind:
        return self.config.dataset, algorithm_name(vars(self.config))

    def command(self) -> list[str]:
        """Return the command line that trains this job alone."""
        pruning = to_args(self.pruning) if self.pruning else []
        return [sys.executable, "-m", "domainbed.scripts.train", *to_args(self.config), *pruning]

    def __str__(self) -> str:
        return self.config.title()
