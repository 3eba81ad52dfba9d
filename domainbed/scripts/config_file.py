"""The options of `sweep launch` that say how its jobs are run, and the file they may stand in."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed import cli
from domainbed.errors import UsageError, one_line, suggest
from domainbed.sweep.launchers import LAUNCHERS

WHICH_TEST_ENVS = {"--single_test_envs", "--leave_one_out"}  # of which only one may be given


def add_launcher_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--command_launcher", default="local", help=f"who runs the jobs: {', '.join(LAUNCHERS)}")
    p.add_argument("--workers", type=int, help="local: jobs at once (default: one a GPU or, without GPU, one a core)")
    p.add_argument(
        "--launcher_config",
        metavar="FILE",
        help="a .yaml or .toml file with any of these options, such as slurm_partition: gpu; the command line has "
        "the last word (but takes no flag back)",
    )
    slurm = p.add_argument_group("SLURM (--command_launcher slurm)")
    slurm.add_argument(
        "--jobs_per_task",
        type=int,
        default=1,
        metavar="N",
        help="jobs that one allocation trains one after another, without starting Python again",
    )
    slurm.add_argument("--slurm_partition", metavar="NAME", help="where to submit to (default: the cluster's)")
    slurm.add_argument(
        "--slurm_time",
        default="4:00:00",
        metavar="LIMIT",
        help="minutes, hours:minutes:seconds or days-hours for a task; what it does not get done in that, goes on in "
        "the next",
    )
    slurm.add_argument("--slurm_gpus", type=int, default=1, metavar="N", help="GPUs a task; 0 to train on the CPU")
    slurm.add_argument("--slurm_cpus", type=int, metavar="N", help="CPU cores a task (default: the cluster's)")
    slurm.add_argument("--slurm_mem", metavar="SIZE", help="memory a task, such as 32G (default: the cluster's)")
    for name in ("constraint", "qos", "account"):
        slurm.add_argument(f"--slurm_{name}", metavar="NAME", help=f"sbatch's --{name}")
    slurm.add_argument(
        "--slurm_array_parallelism", type=int, default=256, metavar="N", help="tasks of an array at once, at most"
    )
    slurm.add_argument(
        "--slurm_setup", nargs="+", default=[], metavar="LINE", help="shell lines to run first, such as 'module load x'"
    )
    slurm.add_argument(
        "--slurm_extra",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any other options of sbatch, without dashes, such as exclude=node7 mail-type=FAIL; KEY alone is a flag",
    )
    slurm.add_argument("--dry_run", action="store_true", help="submit nothing, print the scripts for sbatch")


def with_config_file(argv: Sequence[str] | None, p: cli.Parser) -> list[str]:
    """The words of the command line with those of its --launcher_config before them, so that they have the last word.

    Args:
        argv: the words behind `sweep`; None for this process's.
        p: the parser of `launch`.

    Raises:
        UsageError: there is no such file, or something in it is no option.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    finder = cli.Parser(prog=p.prog, add_help=False)
    finder.add_argument("--launcher_config")
    file = finder.parse_known_args(words)[0].launcher_config
    if not words or words[0] != "launch" or file is None:
        return words
    ours = list(_words_of(Path(file), p))
    if WHICH_TEST_ENVS & set(words):  # of two that exclude one another, the command line's
        ours = [word for word in ours if word not in WHICH_TEST_ENVS]
    return ["launch", *ours, *words[1:]]


def _words_of(file: Path, p: cli.Parser) -> Iterator[str]:
    flags = {flag.removeprefix("--"): action for action in p._actions for flag in action.option_strings}
    for name, value in _read(file).items():
        action = flags.get(name)
        if action is None or name in ("help", "launcher_config"):
            raise UsageError(f"{file}: {name!r} is no option of launch; {suggest(name, flags)}")
        if action.nargs == 0:
            if str(value).lower() not in ("true", "false"):
                raise UsageError(f"{file}: {name} must be true or false, not {value!r}")
            if str(value).lower() == "true":
                yield f"--{name}"
            continue
        if isinstance(value, dict):  # slurm_extra, say; or hparams
            value = list(_pairs(value)) if action.nargs else json.dumps({k: _typed(v) for k, v in value.items()})
        if isinstance(value, list) and not action.nargs:
            raise UsageError(f"{file}: {name} takes one value, not {value!r}")
        values = value if isinstance(value, list) else [value]
        if values and values != [""]:  # a line without a value says nothing
            yield f"--{name}"
            yield from map(str, values)


def _pairs(options: Mapping[str, Any]) -> Iterator[str]:
    """key=value; a key alone for a flag, which has no value, or is true."""
    for key, value in options.items():
        word = str(value)
        if word.lower() in ("", "true"):
            yield key
        elif word.lower() != "false":
            yield f"{key}={word}"


def _typed(value: Any) -> Any:
    """What a word of a YAML file stands for: a number, true, false, or itself; likewise within lists and mappings."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".toml":
            if sys.version_info >= (3, 11):
                import tomllib
            else:
                import tomli as tomllib
            return tomllib.loads(text)
        if file.suffix in (".yaml", ".yml"):
            import yaml

            # Words as they stand: YAML would make 5400 of the time limit 1:30:00.
            options = yaml.load(text, Loader=yaml.BaseLoader)
            if not isinstance(options, dict):
                raise ValueError("it must hold lines of the form name: value")
            return options
    except UnicodeDecodeError as error:
        raise UsageError(f"--launcher_config {file}: {error}") from error
    except OSError as error:
        raise UsageError(f"--launcher_config {file}: {error.strerror}") from error
    except Exception as error:  # of either library
        raise UsageError(f"--launcher_config {file}: {one_line(error)}") from error
    raise UsageError(f"--launcher_config {file}: its name must end in .yaml or .toml")
