"""What a job is: the arguments of `domainbed.scripts.train`, checked."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import get_dataset_class
from domainbed.errors import UsageError, suggest
from domainbed.hparams_registry import Hparams, resolve_hparams

TASKS = ("domain_generalization", "domain_adaptation")
EVALUATIONS = ("all", "splits")
BAD_IMAGES = ("error", "skip")
ENGINES = ("auto", "eager", "captured")
COMPILES = ("auto", "on", "off")
TRACKS = ("nothing", "landscape")
PRECISIONS = ("tf32", "fp32", "bf16")  # see compute.set_precision


def unhashed_option(default: Any) -> Any:
    """A field that says where data lie or what is left behind: it determines no result, so it names no folder."""
    return field(default=default, compare=False)


@dataclass(frozen=True)
class JobConfig:
    """One job. A config that exists is valid; two that compare equal give the same records (from the same data_dir).

    Attributes:
        dataset, algorithm: registered names.
        test_envs: indices of the environments that are not trained on, ascending.
        task: one of TASKS.
        hparams: overrides as a JSON object, or None.
        hparams_seed: 0 for the defaults, else the number of a random draw.
        trial_seed: the trial, which decides splits and environments.
        seed: everything else that is random (initial weights, batches, dropout).
        steps, checkpoint_freq: how many updates, and how often to evaluate; None stands for the dataset's own.
        holdout_fraction: of each environment, the part that is held out.
        uda_holdout_fraction: of a test environment's other part, what domain adaptation may see without labels.
        eval: one of EVALUATIONS: all splits, or all that a selection method reads (not the training environments' in).
        clean_evaluation: evaluate training environments without augmentation.
        data_dir, output_dir: where the images lie, where the job's folder is.
        weights_dir: where pretrained weights are looked for first.
        on_bad_image: one of BAD_IMAGES: what becomes of a broken image. (A finished run that met none is the same
            either way; one that did counts them in its records.)
        cache, cache_gb: a directory for packs of decoded photographs, or None, and the most that it may hold, in GiB.
        resident_gb: the most that images may take of the device for the whole job, in GiB; None: half of what is free.
        loader_workers: processes that read photographs ahead; None for what suits the machine.
        save_every: minutes after which a training checkpoint is due, besides the one at every evaluation.
        deterministic: only operations that always give the same bits, also on a GPU.
        precision: one of PRECISIONS.
        engine: one of ENGINES: whether updates are captured. (They are the same within rounding.)
        compile: one of COMPILES: whether featurizers are compiled. (Likewise.)
        track: one of TRACKS: what else each record tells; see engine/landscape.py.
        skip_model_save, save_model_every_checkpoint: which models to leave there.
        imports: the user's modules to import first.

    Raises:
        UsageError: on construction, naming the argument that can't be.
    """

    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    task: str = TASKS[0]
    hparams: str | None = None
    hparams_seed: int = 0
    trial_seed: int = 0
    seed: int = 0
    steps: int = None  # type: ignore[assignment]  # the dataset's own, once constructed
    checkpoint_freq: int = None  # type: ignore[assignment]  # likewise
    holdout_fraction: float = 0.2
    uda_holdout_fraction: float = 0.0
    eval: str = EVALUATIONS[0]
    clean_evaluation: bool = False
    precision: str = PRECISIONS[0]
    data_dir: str | None = unhashed_option(None)
    output_dir: str = unhashed_option("train_output")
    skip_model_save: bool = unhashed_option(False)
    save_model_every_checkpoint: bool = unhashed_option(False)
    imports: tuple[str, ...] = unhashed_option(())
    weights_dir: str | None = unhashed_option(None)
    on_bad_image: str = unhashed_option(BAD_IMAGES[0])
    cache: str | None = unhashed_option(None)
    cache_gb: float = unhashed_option(100.0)
    resident_gb: float | None = unhashed_option(None)
    loader_workers: int | None = unhashed_option(None)
    save_every: float = unhashed_option(10.0)
    deterministic: bool = unhashed_option(False)
    engine: str = unhashed_option(ENGINES[0])
    compile: str = unhashed_option(COMPILES[0])
    track: str = unhashed_option(TRACKS[0])

    def __post_init__(self) -> None:
        dataset = get_dataset_class(self.dataset)
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"unknown algorithm {self.algorithm!r}; {suggest(self.algorithm, ALGORITHMS)}")
        ALGORITHMS.import_plugin(self.algorithm)  # which registers its hyperparameters
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; {suggest(getattr(self, name), known)}")
        names = dataset.environment_names(self.data_dir)
        self._set(
            test_envs=_checked_test_envs(self.test_envs, self.dataset, names),
            steps=dataset.N_STEPS if self.steps is None else self.steps,
            checkpoint_freq=dataset.CHECKPOINT_FREQ if self.checkpoint_freq is None else self.checkpoint_freq,
        )
        for name, least in (("steps", 1), ("checkpoint_freq", 1), ("hparams_seed", 0), ("trial_seed", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("cache_gb", "resident_gb", "loader_workers"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:  # nor NaN
                raise UsageError(f"--{name} must be at least 0, not {getattr(self, name)}")
        if not self.save_every > 0:
            raise UsageError(f"--save_every must be above 0 minutes, not {self.save_every}")
        if self.seed >= 2**32:
            raise UsageError(f"--seed must be below 2**32, not {self.seed}")
        if not 0 < self.holdout_fraction < 1:
            raise UsageError(f"--holdout_fraction must lie between 0 and 1, not {self.holdout_fraction}")
        if not 0 <= self.uda_holdout_fraction < 1:
            raise UsageError(f"--uda_holdout_fraction must lie in [0, 1), not {self.uda_holdout_fraction}")
        if (self.task == "domain_adaptation") != (self.uda_holdout_fraction > 0):
            raise UsageError("--task domain_adaptation and an --uda_holdout_fraction above 0 need one another")
        if self.hparams is not None:
            self.resolved_hparams()
            overrides = json.loads(self.hparams)
            self._set(hparams=json.dumps(overrides, sort_keys=True) if overrides else None)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def resolved_hparams(self) -> Hparams:
        """The hyperparameters that the job trains with, by name."""
        return resolve_hparams(self.algorithm, self.dataset, self.hparams_seed, self.trial_seed, self.hparams)

    def is_own_tree(self) -> bool:
        """Whether the dataset is a tree of the user's own (Folder), so that data_dir says which it is."""
        return not get_dataset_class(self.dataset).ENVIRONMENTS

    def environment_names(self) -> list[str]:
        """The names of the dataset's environments."""
        return get_dataset_class(self.dataset).environment_names(self.data_dir)

    def name(self) -> str:
        """A hash of what determines the result: the name of the job's folder in a sweep.

        Optional arguments at their defaults are left out, so that a later version's new arguments rename nothing.
        """
        args = asdict(self)
        named = {
            f.name: args[f.name]
            for f in fields(self)
            if f.compare and (f.name in _ALWAYS_NAMED or args[f.name] != f.default)
        }
        if self.is_own_tree():
            named["environments"] = self.environment_names()  # it may be moved, but not become another
        return hashlib.md5(json.dumps(named, sort_keys=True).encode("utf-8")).hexdigest()

    def args(self) -> dict[str, Any]:
        """All arguments as JSON knows them, as they stand in each record."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of_args(cls, args: Mapping[str, Any]) -> "JobConfig":
        """The job of these arguments from `args`, which may be another version's.

        Raises:
            UsageError: it can't be.
        """
        known: dict[str, Any] = {f.name: args[f.name] for f in fields(cls) if f.name in args}
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**known)


def recorded_args(args: Mapping[str, Any], which: Sequence[Field]) -> dict[str, Any]:
    """Arguments as a record's `args` tell them.

    One that they lack was not there yet, and stood at its default; None where it has none.
    """
    return {f.name: args.get(f.name, None if f.default is MISSING else f.default) for f in which}


_CHOICES = {
    "task": TASKS,
    "eval": EVALUATIONS,
    "on_bad_image": BAD_IMAGES,
    "precision": PRECISIONS,
    "engine": ENGINES,
    "compile": COMPILES,
    "track": TRACKS,
}
_ALWAYS_NAMED = {"dataset", "algorithm", "test_envs", "steps", "checkpoint_freq"}


def _checked_test_envs(test_envs: tuple[int, ...], dataset: str, environments: list[str]) -> tuple[int, ...]:
    if not test_envs:
        raise UsageError(f"--test_envs names no environment of {dataset} to test on")
    known = ", ".join(f"{i} ({name})" for i, name in enumerate(environments))
    for env in test_envs:
        if not 0 <= env < len(environments):
            raise UsageError(f"--test_envs {env}: {dataset} has no such environment; choose from {known}")
    if len(set(test_envs)) != len(test_envs):
        raise UsageError(f"--test_envs {' '.join(map(str, test_envs))} names an environment twice")
    if len(test_envs) == len(environments):
        raise UsageError(f"--test_envs names all environments of {dataset}; leave one of {known} to train on")
    return tuple(sorted(test_envs))
