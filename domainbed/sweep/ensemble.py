"""Ensembles of a sweep's trained models, post hoc: averages of their weights (DiWA) or of their logits (EoA)."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from domainbed.engine.components import import_components
from domainbed.engine.config import HASHED_FIELDS, JobConfig, recorded_args
from domainbed.errors import UsageError, suggest
from domainbed.files import make_folder
from domainbed.records import (
    BEST_MODEL_FILE,
    RESULTS_FILE,
    RUN_KEYS,
    algorithm_name,
    append_record,
    is_done,
    is_pruned,
    mark_done,
    only_last_counts,
    read_job,
    validation_accuracy,
)
from domainbed.sweep.log import requested_jobs
from domainbed.terminal import ProgressBar


@dataclass(frozen=True)
class Method:
    """A way to combine models.

    Attributes:
        label: the name in tables, after that of the algorithm.
        averages_weights: whether to average weights; otherwise logits.
        is_restricted: whether to include only the models that improve the validation accuracy.
        pools_trials: whether to combine the runs of all trials; otherwise those of each trial.
        needs_average: whether the models must be averages along training.
    """

    label: str
    averages_weights: bool = False
    is_restricted: bool = False
    pools_trials: bool = False
    needs_average: bool = False


METHODS = {
    "diwa_uniform": Method("DiWA-uniform", averages_weights=True),
    "diwa_restricted": Method("DiWA-restricted", averages_weights=True, is_restricted=True),
    "diwa_all_trials": Method("DiWA†", averages_weights=True, pools_trials=True),
    "ensemble": Method("ensemble"),
    "eoa": Method("EoA", pools_trials=True, needs_average=True),
}


class Member(NamedTuple):
    """A finished run of the sweep: its folder, the arguments in its records, and its best validation accuracy."""

    folder: Path
    args: dict[str, Any]
    score: float


@dataclass(frozen=True)
class Group:
    """The runs that are combined: those of one algorithm, dataset and choice of test environments.

    Attributes:
        members: the runs, by trial and hyperparameter draw.
        trial_seed: their trial; the first one if trials are pooled.
        folder: the ensemble's folder, as that of a job.
    """

    members: list[Member]
    trial_seed: int
    folder: Path

    def __str__(self) -> str:
        args = self.members[0].args
        return f"{algorithm_name(args)} on {args['dataset']}, test {args['test_envs']}, trial {self.trial_seed}"


@dataclass(frozen=True)
class Selection:
    """The runs to combine.

    Attributes:
        datasets: their datasets; all if empty.
        algorithms: their algorithms, by their names in tables (`ERM+SMA`); all if empty.
    """

    datasets: Collection[str] = ()
    algorithms: Collection[str] = ()

    def has(self, args: Mapping[str, Any]) -> bool:
        """Return whether a run with these arguments is selected."""
        is_of_dataset = not self.datasets or args["dataset"] in self.datasets
        return is_of_dataset and (not self.algorithms or algorithm_name(args) in self.algorithms)


def find_groups(
    input_dir: Path, output_dir: Path, name: str, selection: Selection = Selection(), trust_imports: bool = False
) -> list[Group]:
    """Return the groups of a sweep's finished runs that a method combines.

    Args:
        input_dir: the sweep's folder.
        output_dir: the folder of the ensembles.
        name: the method.
        selection: the runs to combine.
        trust_imports: whether to import the modules that the runs name, which runs their code.

    Raises:
        UsageError: there are none, their classes are not registered, or their models are missing or cannot be combined.
    """
    method = METHODS[name]
    groups: dict[tuple, list[Member]] = defaultdict(list)
    datasets, algorithms = set(), set()
    for member in _finished_runs(input_dir):
        args = member.args
        datasets.add(args["dataset"])
        algorithms.add(algorithm_name(args))
        if not selection.has(args):
            continue
        import_components(args, trust_imports, ["dataset", "algorithm"], member.folder / RESULTS_FILE)
        trial = 0 if method.pools_trials else args["trial_seed"]
        groups[args["dataset"], algorithm_name(args), tuple(args["test_envs"]), trial].append(member)
    for flag, given, known in (
        ("--datasets", selection.datasets, datasets),
        ("--algorithms", selection.algorithms, algorithms),
    ):
        for unknown in (value for value in given if known and value not in known):
            raise UsageError(f"{flag} {unknown}: no finished runs; {suggest(unknown, sorted(known))}")
    if method.needs_average:
        groups = {key: members for key, members in groups.items() if _is_average(members[0].args)}
        if not groups:
            raise UsageError(
                f"--method {name} requires runs trained with weight averaging; launch with --averaging sma "
                "--save_best_model"
            )
    if not groups:
        selected = " of the given --datasets and --algorithms" if selection != Selection() else ""
        raise UsageError(f"--input_dir {str(input_dir)!r} contains no finished runs{selected}")
    _check_models([member for members in groups.values() for member in members])
    for members in groups.values():
        _check_arguments(members)
    if method.averages_weights:
        for members in groups.values():
            _check_start(name, members)
    result = []
    for key, members in sorted(groups.items()):
        members.sort(key=lambda member: (member.args["trial_seed"], member.args["hparams_seed"], member.folder.name))
        folder = hashlib.md5(json.dumps([name, *key]).encode()).hexdigest()
        result.append(Group(members, members[0].args["trial_seed"], output_dir / folder))
    return result


def count_unfinished(sweep_dir: Path, name: str, selection: Selection) -> int:
    """Return how many runs that a method combines were requested by a launch, and are neither done nor pruned."""
    try:
        jobs = requested_jobs(sweep_dir)
    except UsageError:  # no launch is known
        return 0
    needs_average, n = METHODS[name].needs_average, 0
    for job in jobs:
        args = vars(job.config)
        if selection.has(args) and (_is_average(args) or not needs_average):
            n += not (is_done(job.folder) or is_pruned(job.folder))
    return n


def _finished_runs(sweep_dir: Path) -> Iterator[Member]:
    if not sweep_dir.is_dir():
        raise UsageError(f"--input_dir {str(sweep_dir)!r} is not a folder")
    for folder in ProgressBar(sorted(sweep_dir.iterdir()), "reading", unit="job", leave=False):
        if is_done(folder) and (folder / RESULTS_FILE).exists():
            records = [record for record in read_job(folder)[0] if isinstance(record.get("args"), dict)]
            if records and "ensemble" not in records[-1]["args"]:
                args = records[-1]["args"]
                counting = records[-1:] if only_last_counts(algorithm_name(args)) else records
                yield Member(folder, args, max(map(validation_accuracy, counting)))


def _is_average(args: Mapping[str, Any]) -> bool:
    return args["algorithm"] == "SMA" or args.get("averaging") == "sma"


def _check_models(members: Sequence[Member]) -> None:
    """Raise UsageError if a run has no saved model."""
    missing = [member.folder.name for member in members if not (member.folder / BEST_MODEL_FILE).exists()]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(members)} finished runs have no {BEST_MODEL_FILE}, such as {missing[0]}; "
            "launch with --save_best_model"
        )


def _check_arguments(members: Sequence[Member]) -> None:
    """Raise UsageError if runs differ in more than their seeds and hyperparameters, such as in their splits."""
    compared = [f for f in HASHED_FIELDS if f.name not in {*RUN_KEYS, "seed", "hparams", "init_digest"}]
    first = recorded_args(members[0].args, compared)
    for member in members[1:]:
        values = recorded_args(member.args, compared)
        if different := [name for name in first if values[name] != first[name]]:
            args, name = member.args, different[0]
            raise UsageError(
                f"the runs of {algorithm_name(args)} on {args['dataset']}, test {args['test_envs']}, used different "
                f"arguments (--{name} {first[name]} and {values[name]}); combine those of one launch, from a folder "
                "of their own"
            )


def _check_start(name: str, members: Sequence[Member]) -> None:
    """Raise UsageError if the runs of an average of weights do not start from the same network."""
    digests = {member.args.get("init_digest") for member in members}
    if None in digests or len(digests) > 1:
        args = members[0].args
        raise UsageError(
            f"--method {name} averages weights, which requires that all runs start from the same network, but those of "
            f"{algorithm_name(args)} on {args['dataset']}, test {args['test_envs']}, do not; launch with --init_from "
            "MODEL.pkl"
        )


def run_ensembles(groups: Sequence[Group], name: str, data_dir: str | None) -> int:
    """Evaluate each group's ensemble, unless it exists, and write its record. Return how many were evaluated.

    Raises:
        UsageError: the data or a model cannot be used. Earlier groups are kept.
    """
    from domainbed.engine.ensemble import as_record, evaluate_ensemble  # imports torch

    method = METHODS[name]
    n_evaluated = 0
    for group in ProgressBar(groups, unit="ensemble"):
        if _exists(group):
            continue
        members = group.members
        if method.is_restricted:
            members = sorted(members, key=lambda member: -member.score)  # of equals, the first
        args = {
            **group.members[0].args,
            "output_dir": str(group.folder),
            "hparams_seed": 0,
            "cache": _existing(group.members[0].args.get("cache")),
            "log_to": (),
        }
        config = JobConfig.from_recorded_args({**args, "data_dir": data_dir or args.get("data_dir"), "eval": "splits"})
        paths = [member.folder / BEST_MODEL_FILE for member in members]
        evaluation = evaluate_ensemble(config, paths, method.averages_weights, method.is_restricted)
        record = as_record(
            config,
            evaluation,
            ensemble=method.label,
            members=[members[i].folder.name for i in evaluation.members],
            candidates=_candidates(group),
        )
        if group.folder.exists():  # an ensemble of other runs, or of a killed process
            shutil.rmtree(group.folder)
        make_folder(group.folder)
        append_record(group.folder, record)
        mark_done(group.folder)
        n_evaluated += 1
        tqdm.write(
            f"{group}: {len(evaluation.members)} of {len(members)} models, "
            f"{100 * evaluation.test_accuracy:.1f} % of all test images"
        )
    return n_evaluated


def _existing(cache: str | None) -> str | None:
    """Return the `--cache` of a job, whose features the ensemble shares, if this machine has it."""
    return cache if cache and Path(cache).is_dir() else None


def _exists(group: Group) -> bool:
    """Return whether the ensemble of these runs has been evaluated."""
    if not is_done(group.folder):
        return False
    records, _ = read_job(group.folder)
    return bool(records) and records[-1]["args"].get("candidates") == _candidates(group)


def _candidates(group: Group) -> list[str]:
    return [member.folder.name for member in group.members]
