"""The checks of a launch: everything that would make its jobs fail at once is reported before any of them starts."""

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.errors import AlgorithmError, UsageError, list_some, one_line
from domainbed.hparams import PROTOCOLS, SHARED, Hparams, parse_overrides
from domainbed.registry import import_modules
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.measurement import Measurement, Timing, measure
from domainbed.sweep.torch_process import call_with_torch
from domainbed.warm_up import describe_unfinished, unfinished_warm_ups

if TYPE_CHECKING:
    from domainbed.algorithms.base import Algorithm

# Weights files of the backbones of the published protocol (torchvision's IMAGENET1K_V1). Those of others are known to
# torchvision, which imports torch.
WEIGHTS_FILES = {"resnet18": "resnet18-f37072fd.pth", "resnet50": "resnet50-0676ba61.pth"}
DatasetKey: TypeAlias = tuple[str, str | None, str | None, str | None]

MAX_NAMED = 3  # kinds of jobs that a problem names


@dataclass(frozen=True)
class CheckResult:
    """What the checks of jobs found, if there are no problems.

    Attributes:
        measurements: what was measured of each kind of jobs.
        unfinished: how many jobs end during their warm-up (`warm_up.describe_unfinished`).
    """

    measurements: Mapping[Kind, Measurement] = field(default_factory=dict)
    unfinished: str = ""

    def notes(self) -> list[str]:
        """Return what users should know before they launch the jobs, one line each."""
        if not self.unfinished:
            return []
        text = (
            "jobs that end during the warm-up of their algorithm, because these hyperparameters are not below --steps"
        )
        return [f"note: {text}: {self.unfinished}"]


def check_jobs(jobs: Sequence[Job], timing: Timing | None = None) -> CheckResult:
    """Check that each dataset can be read and split, and that each algorithm can be created for it.

    Missing files are reported first, within a second or two. What remains is checked only if there are none, because
    that imports torch (in another process) and reads the datasets.

    Args:
        jobs: the jobs.
        timing: which kinds of jobs to time, and how.

    Raises:
        UsageError: there are problems; the message lists all of them, one line each.
    """
    configs = one_per_kind(jobs)
    result = CheckResult()
    problems = find_missing(configs)
    if not problems:
        problems, result = call_with_torch(_run_checks, configs, list(jobs), timing or Timing())
    if len(problems) == 1:
        raise UsageError(problems[0])
    if problems:
        raise UsageError("\n  ".join([f"{len(problems)} problems:", *problems]))
    return result


def _run_checks(configs: Sequence[JobConfig], jobs: Sequence[Job], timing: Timing) -> tuple[list[str], CheckResult]:
    """Return the problems that `find_errors` finds, and the result if there are none."""
    problems, measurements = find_errors(configs, timing)
    return problems, CheckResult() if problems else CheckResult(measurements, find_unfinished_warm_ups(jobs))


def find_unfinished_warm_ups(jobs: Iterable[Job]) -> str:
    """Return how many jobs end during their warm-up (`warm_up.describe_unfinished`). Imports torch."""
    found: dict[tuple[Kind, int, int, str | None, int], list[str]] = {}  # the other arguments are the same for a launch
    has_warm_up: dict[Kind, bool] = {}

    def unfinished(job: Job) -> list[str]:
        config = job.config
        if job.kind not in has_warm_up:
            has_warm_up[job.kind] = bool(unfinished_warm_ups(config.resolved_hparams(), steps=0))
        if not has_warm_up[job.kind]:
            return []
        key = job.kind, config.hparams_seed, config.trial_seed, config.hparams, config.steps
        if key not in found:
            found[key] = unfinished_warm_ups(config.resolved_hparams(), config.steps)
        return found[key]

    return describe_unfinished((f"{job.kind[1]} on {job.kind[0]}", unfinished(job)) for job in jobs)


def one_per_kind(jobs: Iterable[Job]) -> list[JobConfig]:
    """Return one job of each dataset and algorithm, with the fewest training environments, dataset by dataset."""
    configs: dict[tuple[DatasetKey, Kind], JobConfig] = {}
    for job in jobs:
        key = dataset_key(job.config), job.kind
        if key not in configs or len(job.config.test_envs) >= len(configs[key].test_envs):
            configs[key] = job.config
    return sorted(configs.values(), key=lambda config: [str(part) for part in dataset_key(config)])


def dataset_key(config: JobConfig) -> DatasetKey:
    """Return what determines the images of a job and their splits, apart from the trial."""
    return config.dataset, config.data_dir, config.columns, config.split_by


def describe_datasets(jobs: Iterable[Job]) -> list[str]:
    """Return what users should see of their own images before training, one line each."""
    datasets = {dataset_key(job.config): job.config for job in jobs}
    return [line for config in datasets.values() for line in config.dataset_class().describe(config.data_dir)]


def find_missing(configs: Iterable[JobConfig]) -> list[str]:
    """Return the missing files of all datasets, one line each; [] if nothing is missing but what can be downloaded.

    If something else is missing, files to download are listed as well. Does not import torch.
    """
    problems: dict[str, None] = {}
    downloads: dict[str, None] = {}
    checked: set[DatasetKey] = set()
    for config in configs:
        dataset = config.dataset_class()
        if (key := dataset_key(config)) not in checked:
            checked.add(key)
            problems |= dict.fromkeys(dataset.find_problems(config.data_dir))
            downloads |= dict.fromkeys(dataset.find_downloads(config.data_dir))
        if not dataset.SMALL_IMAGES and (line := _missing_weights(config)):
            downloads[line] = None
    hint = "it is downloaded, if possible, when nothing else is missing"
    return [*problems, *(f"{line}; {hint}" for line in downloads)] if problems else []


def _missing_weights(config: JobConfig) -> str:
    """Return which weights file of a job's backbone is missing, as far as that is known without torchvision; or ""."""
    defaults = {name: hparam.default for name, hparam in SHARED.items()}
    hparams = {**defaults, **PROTOCOLS[config.protocol], **parse_overrides(config.hparams)}
    if any(hparams[flag] is True for flag in ("resnet50_augmix", "vit", "dinov2")):
        return ""  # weights of timm
    file = WEIGHTS_FILES.get("resnet18" if hparams["resnet18"] else str(hparams["backbone"]))
    if not file or not hparams["pretrained"]:
        return ""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    hub = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"
    folders = [folder for folder in (config.weights_dir and Path(config.weights_dir), hub) if folder]
    if any((folder / file).is_file() for folder in folders):
        return ""
    return f"the pretrained weights {file} are not in {' or '.join(map(str, folders))}"


def find_errors(configs: Iterable[JobConfig], timing: Timing) -> tuple[list[str], dict[Kind, Measurement]]:
    """Return the errors of reading and splitting each dataset, and of creating each algorithm for it, one line each.

    Args:
        configs: jobs, dataset by dataset, so that only one dataset is in memory at a time.
        timing: which kinds of jobs to time, and how.

    Returns:
        The errors, and what was measured of each kind of jobs without an error.
    """
    from domainbed.engine.data import load_data  # imports torch
    from domainbed.engine.frozen import is_frozen, without_extraction
    from domainbed.engine.loggers.base import JobLoggers

    kinds_of: dict[str, list[str]] = defaultdict(list)  # the datasets, or kinds of jobs, that raise an error
    checked_weights: set[str] = set()
    measurements: dict[Kind, Measurement] = {}
    seconds = 0.0  # of the timings
    key: DatasetKey | None = None
    dataset: MultipleDomainDataset | None = None
    for config in configs:
        import_modules(config.imports)
        try:
            hparams = config.resolved_hparams()
            JobLoggers(config)
            if key != dataset_key(config):
                key, dataset = dataset_key(config), None
                try:
                    dataset, _ = load_data(config, hparams)
                except (UsageError, OSError) as error:
                    kinds_of[one_line(error)].append(config.dataset)
            if dataset is not None:
                inputs = without_extraction(config, hparams, dataset) if is_frozen(hparams) else dataset
                algorithm = _create_algorithm(config, hparams, inputs, checked_weights)
                kind, start = Job(config).kind, time.monotonic()
                is_timed = kind in timing.kinds and seconds < timing.limit
                measurements[kind] = measure(config, hparams, inputs, algorithm, timing if is_timed else None)
                seconds += time.monotonic() - start
        except (AlgorithmError, UsageError, OSError) as error:
            kinds_of[one_line(error)].append(f"{config.algorithm} on {config.dataset}")
    return [f"{list_some(kinds, MAX_NAMED)}: {error}" for error, kinds in kinds_of.items()], measurements


def _create_algorithm(
    config: JobConfig, hparams: Hparams, dataset: MultipleDomainDataset, checked_weights: set[str]
) -> "Algorithm":
    """Create a job's algorithm to see whether that succeeds, on the "meta" device if possible, which takes no memory.

    Args:
        config: the job.
        hparams: its hyperparameters.
        dataset: its dataset.
        checked_weights: the backbones whose weights have been loaded; the algorithm's are added.
    """
    import torch

    from domainbed.backbones import SELECTORS, Backbone, use_weights_dir, without_weights
    from domainbed.compute import set_precision
    from domainbed.engine.averaging.base import make_averaging
    from domainbed.engine.frozen import frozen_backbone, is_frozen
    from domainbed.engine.model import check_compilation, load_initial_weights, make_algorithm
    from domainbed.engine.tracking import check_trackable

    def create() -> "Algorithm":
        algorithm = make_algorithm(config, hparams, dataset)
        load_initial_weights(algorithm, config)
        set_precision(config.precision, algorithm)
        check_compilation(config, algorithm)
        make_averaging(config, algorithm)
        check_trackable(config, algorithm)
        return algorithm

    try:
        with torch.device("meta"), without_weights():
            algorithm = create()
    except Exception:  # a real error, or an operation that this device does not support
        return create()
    backbone = str([config.weights_dir, *(hparams.get(name) for name in SELECTORS)])
    if backbone not in checked_weights:
        if is_frozen(hparams):
            checked_weights.add(backbone)
            frozen_backbone(hparams, config.weights_dir)
        elif any(isinstance(module, Backbone) for module in algorithm.modules()):
            checked_weights.add(backbone)
            with use_weights_dir(config.weights_dir):
                Backbone(dataset.input_shape[0], hparams)
    return algorithm
