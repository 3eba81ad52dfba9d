"""The configuration of a job: the arguments of `domainbed.scripts.train`, validated."""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, ClassVar

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS, DatasetSpec, MultipleDomainDataset, dataset_spec, get_dataset_class
from domainbed.datasets.table_columns import format_columns, parse_columns
from domainbed.engine.averaging import AVERAGINGS, CHECKPOINT_FREQS, NO_AVERAGING
from domainbed.engine.digest import init_digest
from domainbed.engine.loggers import LOGGERS
from domainbed.engine.tracking import NO_TRACKER, TRACKERS
from domainbed.errors import UsageError, printable
from domainbed.hparams import PROTOCOLS, Hparams, parse_overrides
from domainbed.hparams_registry import resolve_hparams
from domainbed.options import check_options, option
from domainbed.records import SELECTIVE, algorithm_name

TASKS = ("domain_generalization", "domain_adaptation")
SPLIT_UNITS = ("image", "group")
PRECISIONS = ("tf32", "fp32", "bf16")  # see compute.set_precision
_ALWAYS_HASHED = {"dataset", "algorithm", "test_envs", "steps", "checkpoint_freq"}  # in the name of a job's folder


@dataclass(frozen=True)
class JobConfig:
    """A valid job. Equal configurations produce equal records (from the same data_dir).

    Fields with `compare=False` (paths, caches, speed, files to leave behind) do not determine the records.

    Raises:
        UsageError: on construction, if an argument is invalid; the message names it.
    """

    dataset: str = option(help="dataset to train and test on", metavar="NAME", choices=DATASETS)
    algorithm: str = option(help="algorithm to train with", metavar="NAME", choices=ALGORITHMS)
    test_envs: tuple[int, ...] = option(
        help="indices, from 0, of the environments to test on; all others are trained on",
        flags=("--test_envs", "--test_env"),  # DomainBed's users write the latter for a single environment
        metavar="N",
    )
    task: str = option(
        TASKS[0], help="domain_adaptation also trains on unlabeled images of the test environments", choices=TASKS
    )
    protocol: str = option(
        "2021",
        help="defaults of hyperparameters. 2021: those of the published tables; head: those of DomainBed's code since "
        "July 2024, a ResNet-50 with timm's AugMix weights and unfrozen batch norm. Results of the two are not "
        "comparable",
        choices=PROTOCOLS,
    )
    hparams: str | None = option(
        None, help="hyperparameters to override, as a JSON object such as '{\"batch_size\": 16}'", metavar="JSON"
    )
    hparams_seed: int = option(
        0,
        help="0: default hyperparameters; otherwise the number of a random draw",
        metavar="N",
        at_least=0,
        below=2**63,  # tables store 64-bit integers
    )
    trial_seed: int = option(
        0, help="seed of the trial: determines splits and environments", metavar="N", at_least=0, below=2**63
    )
    seed: int = option(
        0,
        help="seed of everything else: initial weights, batches, dropout",
        metavar="N",
        at_least=0,
        below=2**32,
    )
    steps: int = option(None, help="number of updates", metavar="N", if_unset="the dataset's own", at_least=1)
    checkpoint_freq: int = option(
        None, help="number of updates between evaluations", metavar="N", if_unset="the dataset's own", at_least=1
    )
    holdout_fraction: float = option(
        0.2, help="fraction of each environment to hold out for validation", metavar="FRACTION", above=0, below=1
    )
    columns: str | None = option(
        None,
        help="columns of the Table dataset, by role: path, label, environment, or group (what the images have in "
        "common, such as a patient)",
        metavar="ROLE=COLUMN,…",
        if_unset="detected by name, without group",
    )
    split_by: str | None = option(
        None,
        help="what to assign to splits at random; group: all images of a group are in the same split",
        choices=SPLIT_UNITS,
        if_unset="group if --columns names that column, otherwise image",
    )
    uda_holdout_fraction: float = option(
        0.0,
        help="fraction of the test environments to train on without labels (with --task domain_adaptation)",
        metavar="FRACTION",
        at_least=0,
        below=1,
    )
    averaging: str = option(
        NO_AVERAGING,
        help="average the weights during training, and evaluate and save the average instead of the last weights. sma: "
        "average all updates from the 99th on; swad: average the updates in a valley of the validation loss, then "
        "stop. Tables append the scheme to the algorithm, as in `ERM+SWAD`",
        choices=lambda: (NO_AVERAGING, *AVERAGINGS),
    )
    eval: str = option(
        "all",
        help="splits to evaluate. all: every split; splits: all but the in splits of training environments, which no "
        "selection method uses; leave_one_out: as splits, but the out splits of test environments only at the end; "
        "selection: as leave_one_out, but the in splits of test environments only when the validation accuracy "
        "improves, and at the end. Tables of finished jobs are the same as with all, but those with selection have no "
        "leave-one-domain-out",
        choices=("all", "splits", *SELECTIVE),
    )
    clean_evaluation: bool = option(
        False, help="evaluate training environments without augmentation (published results use augmentation)"
    )
    precision: str = option(
        PRECISIONS[0],
        help="tf32: PyTorch's default, in which convolutions on a GPU may round their inputs to TF32; fp32: no "
        "rounding; bf16: featurizers compute in bfloat16 with float32 weights, classifiers and penalties in float32. "
        "Determines results, and therefore the name of the job's folder in a sweep",
        choices=PRECISIONS,
    )
    data_dir: str | None = option(
        None,
        help="folder that contains the datasets (not required for ColoredDigits and RotatedDigits); for the Folder and "
        "Table datasets, the folder or file of the dataset itself",
        metavar="DIR",
        compare=False,
    )
    output_dir: str = option("train_output", help="the job's folder", metavar="DIR", compare=False)
    skip_model_save: bool = option(False, help="do not save model.pkl", compare=False)
    save_model_every_checkpoint: bool = option(False, help="also save a model at each evaluation", compare=False)
    save_best_model: bool = option(
        False,
        help="also save model_best.pkl, the model with the best accuracy on the training environments' out splits",
        compare=False,
    )
    save_predictions: bool = option(
        False,
        help="also save predictions.npz, which `analyze` reads: the class probabilities of every evaluated image, "
        "predicted by the best model (that of model_best.pkl) and by the last one",
        compare=False,
    )
    imports: tuple[str, ...] = option(
        (),
        help="your modules to import first, such as my_algorithms",
        flags=("--import",),
        metavar="MODULE",
        compare=False,
    )
    init_from: str | None = option(
        None,
        help="model from which to initialize the weights, saved by a job of the same algorithm and dataset. Its "
        "content affects the results, and therefore the name of the job's folder in a sweep",
        metavar="FILE",
        compare=False,
    )
    init_digest: str | None = None  # of the content of init_from; not an option
    weights_dir: str | None = option(
        None, help="folder to search for pretrained weights before torch's cache", metavar="DIR", compare=False
    )
    # A finished run without broken images is the same either way; the records of one with broken images count them.
    on_bad_image: str = option(
        "error",
        help="error: a broken image fails the job; skip: another image of its class replaces it, and records count "
        "the replaced images",
        choices=("error", "skip"),
        compare=False,
    )
    cache: str | None = option(
        None,
        help="folder in which all jobs share decoded photographs and the features of frozen backbones; created if "
        "necessary",
        metavar="DIR",
        if_unset="photographs are not shared; features in ~/.cache/domainbed",
        compare=False,
    )
    cache_gb: float = option(
        100.0,
        help="maximum size of the photographs in --cache; the features of frozen backbones there have a separate limit "
        "of the same size",
        metavar="GIB",
        at_least=0,
        below=math.inf,
        compare=False,
    )
    resident_gb: float | None = option(
        None,
        help="maximum GPU memory for images that stay on the GPU for the whole job",
        metavar="GIB",
        if_unset="half of the free memory",
        at_least=0,
        below=math.inf,
        compare=False,
    )
    loader_workers: int | None = option(
        None,
        help="number of processes that read photographs ahead",
        metavar="N",
        if_unset="with a GPU one per core of the job, at most 8; otherwise 0",
        at_least=0,
        compare=False,
    )
    save_every: float = option(
        10.0,
        help="maximum time between checkpoints; evaluations also save one, at most every 10 seconds",
        metavar="MINUTES",
        above=0,
        below=math.inf,
        compare=False,
    )
    deterministic: bool = option(
        False,
        help="make GPU results reproducible bit for bit (slower; fails on operations that cannot be deterministic)",
        compare=False,
    )
    engine: str = option(
        "auto",
        help="auto: on a GPU, capture updates as CUDA graphs (one per phase of the algorithm) if the algorithm allows "
        "it; captured: the same, but fail without a GPU; eager: run updates without capturing them. Results agree "
        "within rounding",
        choices=("auto", "eager", "captured"),
        compare=False,
    )
    compile: str = option(
        "auto",
        help="whether to compile featurizers with torch.compile; auto: on a GPU, for built-in algorithms and jobs of "
        "at least 1,000 steps, unless --deterministic is given, which excludes on. Results agree within rounding",
        choices=("auto", "on", "off"),
        compare=False,
    )
    trust_checkpoint: bool = option(
        False,
        help="resume from checkpoints with objects other than tensors, numbers and text, as some algorithms save. "
        "Loading one runs any code in it: use this only if nobody else can write to the job's folder",
        compare=False,
    )
    track: str = option(
        NO_TRACKER,
        help="additional quantities to record at each evaluation; landscape: distances between the training domains' "
        "risks, gradients and Hessians (of the classifier, on up to 512 images of each domain), which `plot` draws",
        choices=lambda: (NO_TRACKER, *TRACKERS),
        compare=False,
    )
    log_to: tuple[str, ...] = option(
        (),
        help="where to copy the records to. wandb: offline unless WANDB_MODE says otherwise; mlflow: mlflow.db next to "
        "the job's folder unless MLFLOW_TRACKING_URI says otherwise; csv: records.csv in the job's folder",
        metavar="NAME",
        choices=LOGGERS,
        compare=False,
    )

    NOT_CHECKED: ClassVar[Collection[str]] = ()  # fields that may have values that are not registered here

    def __post_init__(self) -> None:
        check_options(self, self.NOT_CHECKED)
        if self.columns is not None:
            self._set(columns=format_columns(parse_columns(self.columns)))
        if self.split_by == self._default_split_by():
            self._set(split_by=None)  # the same job, whether or not it is spelled out
        spec = self.dataset_spec()
        self._set(
            test_envs=check_test_envs(self.test_envs, self.dataset, spec),
            steps=spec.n_steps if self.steps is None else self.steps,
            checkpoint_freq=self._default_checkpoint_freq() if self.checkpoint_freq is None else self.checkpoint_freq,
        )
        if (self.task == "domain_adaptation") != (self.uda_holdout_fraction > 0):
            raise UsageError("--task domain_adaptation requires --uda_holdout_fraction above 0, and vice versa")
        if self.init_from is not None and self.init_digest is None:
            self._set(init_digest=init_digest(self.init_from))
        if self.hparams is not None:
            overrides = parse_overrides(self.hparams)  # names and types are checked when the algorithm is created
            self._set(hparams=json.dumps(overrides, sort_keys=True) if overrides else None)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def with_output_dir(self, folder: str) -> "JobConfig":
        """Return the same job in another folder, without validating its other arguments again."""
        config = copy(self)
        config._set(output_dir=folder)
        return config

    def is_evaluation_due(self, step: int) -> bool:
        """Return whether the job is evaluated after this step: every `checkpoint_freq` steps, and after the last."""
        return step % self.checkpoint_freq == 0 or step == self.steps - 1

    def evaluation_steps(self) -> list[int]:
        """Return the steps after which the job is evaluated, unless it ends early."""
        return sorted({*range(0, self.steps, self.checkpoint_freq), self.steps - 1})

    def updates_since_evaluation(self, step: int) -> int:
        """Return the number of updates between the previous evaluation and the one after this step."""
        return step % self.checkpoint_freq or min(self.checkpoint_freq, step + 1)

    def _default_checkpoint_freq(self) -> int:
        published = CHECKPOINT_FREQS.get(self.averaging, {})
        return published.get(self.dataset, self.dataset_spec().checkpoint_freq)

    def resolved_hparams(self) -> Hparams:
        """Return the hyperparameters of the job by name: defaults or a random draw, with overrides applied."""
        return resolve_hparams(
            self.algorithm, self.dataset, self.hparams_seed, self.trial_seed, self.hparams, self.protocol
        )

    def _default_split_by(self) -> str:
        return "group" if self.columns and "group" in parse_columns(self.columns) else "image"

    def splits_groups(self) -> bool:
        """Return whether all images of a group are in the same split."""
        return (self.split_by or self._default_split_by()) == "group"

    def dataset_class(self) -> type[MultipleDomainDataset]:
        """Return the class of the dataset, for a table with the job's columns."""
        return get_dataset_class(self.dataset, self.columns)

    def has_custom_environments(self) -> bool:
        """Return whether data_dir determines the environments, as for the Folder and Table datasets."""
        return self.dataset_spec().has_custom_environments

    def title(self) -> str:
        """Return a description such as "Fishr on ColoredDigits, test +90%, hparams 0, trial 0"."""
        environments = self.environment_names()
        names = " and ".join(environments[i] for i in self.test_envs)
        algorithm = algorithm_name(vars(self))
        return printable(
            f"{algorithm} on {self.dataset}, test {names}, hparams {self.hparams_seed}, trial {self.trial_seed}"
        )

    def environment_names(self) -> list[str]:
        """Return the names of the dataset's environments."""
        return list(self.dataset_spec().environments)

    def dataset_spec(self) -> DatasetSpec:
        """Return the specification of the dataset."""
        return dataset_spec(self.dataset, self.data_dir, self.columns)

    def name(self) -> str:
        """Return a hash of everything that determines the records, used as the name of the job's folder in a sweep.

        Optional arguments at their defaults are not hashed, so that arguments can be added without renaming jobs.
        """
        hashed = {
            f.name: value
            for f in HASHED_FIELDS
            if (value := getattr(self, f.name)) != f.default or f.name in _ALWAYS_HASHED
        }
        if self.has_custom_environments():
            hashed["environments"] = self.environment_names()  # the folder may move, but must hold the same ones
        return hashlib.md5(json.dumps(hashed, sort_keys=True).encode("utf-8")).hexdigest()

    def args(self) -> dict[str, Any]:
        """Return all arguments as JSON values, as stored in each record."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_recorded_args(cls, args: Mapping[str, Any]) -> "JobConfig":
        """Return the job with the arguments of a record, which another version may have written.

        Arguments that this version does not know are ignored.

        Raises:
            UsageError: an argument is invalid.
        """
        known: dict[str, Any] = {f.name: args[f.name] for f in fields(cls) if f.name in args}
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**known)


@dataclass(frozen=True)
class LoggedJobConfig(JobConfig):
    """The configuration of a job that was launched. What it names need not be registered here.

    It determines the job's folder and describes the job. Only a JobConfig can be trained.

    Attributes:
        spec: the specification of the dataset when the job was launched.
    """

    spec: DatasetSpec = field(kw_only=True, compare=False)

    NOT_CHECKED: ClassVar[Collection[str]] = ("dataset", "algorithm", "averaging", "track", "log_to")

    def dataset_spec(self) -> DatasetSpec:
        return self.spec


HASHED_FIELDS = [f for f in fields(JobConfig) if f.compare]  # the arguments that determine the records


def recorded_args(args: Mapping[str, Any], selected: Sequence[Field]) -> dict[str, Any]:
    """Return the selected arguments of a record's `args`.

    The version that wrote the record may not have had an argument yet. Its value is then the default, or None if it
    has no default.
    """
    return {f.name: args.get(f.name, None if f.default is MISSING else f.default) for f in selected}


def check_test_envs(test_envs: tuple[int, ...], dataset: str, spec: DatasetSpec) -> tuple[int, ...]:
    """Return test environments in order. Raises UsageError if the dataset cannot be divided like this."""
    environments = spec.environments
    known = ", ".join(f"{i} ({name})" for i, name in enumerate(environments))
    if not test_envs:
        raise UsageError(f"--test_envs is empty; choose from {known}")
    for env in test_envs:
        if not 0 <= env < len(environments):
            raise UsageError(f"--test_envs {env}: {dataset} has no such environment; choose from {known}")
    if len(set(test_envs)) != len(test_envs):
        raise UsageError(f"--test_envs {' '.join(map(str, test_envs))} lists an environment twice")
    if len(test_envs) == len(environments):
        raise UsageError(f"--test_envs leaves no environment of {dataset} to train on; omit one of {known}")
    if spec.n_testable is not None and min(test_envs) >= spec.n_testable:
        testable = ", ".join(f"{i} ({name})" for i, name in enumerate(environments[: spec.n_testable]))
        raise UsageError(
            f"--test_envs {' '.join(map(str, test_envs))}: {dataset} must be tested on environment {testable}; "
            "include it"
        )
    return tuple(sorted(test_envs))
