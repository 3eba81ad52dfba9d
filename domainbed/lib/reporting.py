"""The records of a sweep as lists: `get_grouped_records(load_records("my_sweep"))`."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from domainbed.lib.query import Q
from domainbed.records import RESULTS_FILE, algorithm_name, read_job


def load_records(path: str | Path) -> Q:
    """Return the records of all jobs in a sweep's folder."""
    folders = [folder for folder in sorted(Path(path).iterdir()) if (folder / RESULTS_FILE).is_file()]
    return Q([record for folder in folders for record in read_job(folder)[0]])


def get_grouped_records(records: Q) -> Q:
    """Group records by trial_seed, dataset, algorithm and test environment.

    Records with two test environments belong to two groups. Algorithms have their names in tables, such as "ERM+SWAD".

    Returns:
        Dicts with the keys "trial_seed", "dataset", "algorithm", "test_env" and "records".
    """
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for record in records:
        args = record["args"]
        for test_env in args["test_envs"]:
            groups[args["trial_seed"], args["dataset"], algorithm_name(args), test_env].append(record)
    names = ("trial_seed", "dataset", "algorithm", "test_env")
    return Q([{**dict(zip(names, key, strict=True)), "records": Q(members)} for key, members in groups.items()])
