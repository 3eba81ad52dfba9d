"""What a job prints."""

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from domainbed.compute import featurizers_of
from domainbed.engine.algorithm_checks import describe_untrained
from domainbed.engine.checkpoint import software_versions
from domainbed.engine.config import JobConfig
from domainbed.engine.frozen import is_frozen
from domainbed.engine.setup import Setup
from domainbed.errors import printable
from domainbed.warm_up import unfinished_warm_ups


def print_header(config: JobConfig, setup: Setup) -> None:
    """Print what the job runs on, its arguments, and a legend for the progress lines."""
    modes = ["captured updates"] * setup.is_captured
    modes += ["compiled featurizers"] * any(featurizer.is_compiled for featurizer in featurizers_of(setup.algorithm))
    tqdm.write(", ".join([software_versions(), str(setup.device), *modes]))
    tqdm.write(f"args: {config.args()}\nhparams: {setup.algorithm.hparams}")
    for line in [*config.dataset_class().describe(config.data_dir), *describe_groups(config, setup)]:
        tqdm.write(line)
    for name in unfinished_warm_ups(setup.algorithm.hparams, config.steps):
        value = setup.algorithm.hparams[name]
        reason = f"{name} ({value}) is not below --steps ({config.steps})"
        tqdm.write(f"note: the job ends during the warm-up of {config.algorithm}, because {reason}")
    if setup.algorithm.caveat:
        tqdm.write(f"note: {config.algorithm}: {setup.algorithm.caveat}")
    if untrained := describe_untrained(setup.algorithm):
        tqdm.write(f"note: {config.algorithm}: {untrained}")
    if is_frozen(setup.algorithm.hparams) and not setup.algorithm.hparams["feature_views"]:
        tqdm.write('note: features of images without augmentation; use {"feature_views": N} for augmented views')
    tqdm.write("accuracies in percent: in split/out split, [test environment]")


def describe_groups(config: JobConfig, setup: Setup) -> list[str]:
    """Return how many images of each environment are held out, if the job splits groups, whose sizes differ."""
    if not config.splits_groups():
        return []
    sizes = [(len(split.out), sum(map(len, split.parts().values()))) for split in setup.splits]
    shares = [
        f"{printable(name)} {out:,} of {n:,} ({out / n:.0%})"
        for name, (out, n) in zip(setup.environments, sizes, strict=True)
    ]
    return [f"split by group; images held out: {', '.join(shares)}"]


def format_progress(record: Mapping[str, Any], test_envs: tuple[int, ...]) -> str:
    """Return a line on one evaluation: accuracies on in and out splits in percent, test environments in brackets."""
    parts = [f"step {record['step']:>5}"]
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    for i, name in enumerate(map(printable, record["environments"])):
        values = [record.get(f"env{i}_{part}_acc") for part in ("in", "out")]
        scores = "/".join("-" if accuracy is None else f"{100 * accuracy:.1f}" for accuracy in values)
        parts.append(f"[{name} {scores}]" if i in test_envs else f"{name} {scores}")
    return "  ".join([*parts, f"{1000 * record['step_time']:.1f} ms/step"])
