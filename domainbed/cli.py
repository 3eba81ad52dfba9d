"""What the command lines share: one clear line for a mistake, and status 2."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError, one_line, suggest


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the default behind the help, where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing_to_tell = action.default is None or action.default is False or action.default == []
        if nothing_to_tell or action.help is None:
            return action.help
        if isinstance(action.default, list | tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line that names it, and flags can't be cut short."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            hint = f"; {suggest(word.split('=')[0], self.flags(parsed))}" if word.startswith("-") else ""
            prog = " ".join([self.prog, *([parsed.command] if "command" in parsed else [])])
            raise UsageError(f"unknown argument {word}{hint} (see {prog} --help)")
        return parsed

    def take_environments_for_values(self) -> None:
        """Let -90%, an environment, be a value and no flag."""
        self._negative_number_matcher = re.compile(r"-\d")

    def flags(self, parsed: argparse.Namespace) -> list[str]:
        """All flags, those of the chosen sub-command included."""
        flags: list[str] = []
        for action in self._actions:
            flags += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                flags += self.command(getattr(parsed, action.dest)).flags(parsed)
        return flags

    def command(self, name: str) -> "Parser":
        """The parser of a sub-command."""
        choices = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return choices[0][name]


# How images are read and evaluated, and what is saved when: the same for one job and for a sweep's.
JOB_OPTIONS = (
    "eval",
    "clean_evaluation",
    "on_bad_image",
    "weights_dir",
    "cache",
    "cache_gb",
    "resident_gb",
    "loader_workers",
    "save_every",
    "deterministic",
    "precision",
    "engine",
    "compile",
    "track",
    "save_model_every_checkpoint",
)


def add_job_options(p: argparse.ArgumentParser) -> None:
    """Add the flags of JOB_OPTIONS."""
    p.add_argument(
        "--eval",
        default=JobConfig.eval,
        help="all: evaluate every split; splits: leave out the training environments' in splits, which no selection "
        "method reads",
    )
    p.add_argument(
        "--clean_evaluation",
        action="store_true",
        help="evaluate training environments without augmentation (published results are with it)",
    )
    p.add_argument(
        "--on_bad_image",
        default=JobConfig.on_bad_image,
        help="error: a broken image ends the job; skip: another of its class takes its place, and records count it",
    )
    p.add_argument("--weights_dir", metavar="DIR", help="look here first for pretrained weights (then torch's cache)")
    p.add_argument("--cache", metavar="DIR", help="keep decoded photographs here, for all jobs; made when first needed")
    p.add_argument(
        "--cache_gb", type=float, default=JobConfig.cache_gb, metavar="GIB", help="the most that --cache may hold"
    )
    p.add_argument(
        "--resident_gb",
        type=float,
        metavar="GIB",
        help="the most that images may take of the GPU for the whole job (default: half of what is free)",
    )
    p.add_argument(
        "--loader_workers",
        type=int,
        metavar="N",
        help="processes that read photographs ahead (default: beside a GPU one a core of the job's, up to 8; else 0)",
    )
    p.add_argument(
        "--save_every",
        type=float,
        default=JobConfig.save_every,
        metavar="MINUTES",
        help="write a checkpoint to go on from after so many minutes, besides the one at every evaluation",
    )
    p.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU, too, the same arguments give the same bits (slower; refuses operations that can't)",
    )
    p.add_argument(
        "--precision",
        default=JobConfig.precision,
        help="tf32: float32, where convolutions on a GPU that has TF32 round their inputs to it (PyTorch's default); "
        "fp32: nothing is rounded; bf16: featurizers in bfloat16 from float32 weights, heads and penalties in float32. "
        "It is part of what names a job, for it determines results",
    )
    p.add_argument(
        "--engine",
        default=JobConfig.engine,
        help="auto: on a GPU, updates are captured, one CUDA graph for each of the algorithm's phases, if it allows; "
        "captured: the same, but an error without a GPU; eager: updates as they are written",
    )
    p.add_argument(
        "--compile",
        default=JobConfig.compile,
        help="on, off: whether featurizers are compiled by torch.compile; auto: on a GPU, in jobs of 1,000 steps and "
        "more, for the algorithms that come with this package",
    )
    p.add_argument(
        "--track",
        default=JobConfig.track,
        help="landscape: at each evaluation, also record how far apart the training domains' risks, gradients and "
        "Hessians are (of the classifier, on one batch of each); plot draws them",
    )
    p.add_argument("--save_model_every_checkpoint", action="store_true", help="leave a model at every evaluation, too")


def add_import_option(p: argparse.ArgumentParser) -> None:
    """Add --import."""
    p.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="your modules to import, such as my_algorithms",
    )


def check_output(file: str | None, flag: str = "--output") -> None:
    """See that the file of a flag, if given, can be written. Raises UsageError."""
    if file and not Path(file).absolute().parent.is_dir():
        raise UsageError(f"{flag} {file}: there is no folder {Path(file).absolute().parent}")
    if file and Path(file).is_dir():
        raise UsageError(f"{flag} {file} is a folder; name a file in it")
    if file and not os.access(Path(file).absolute().parent, os.W_OK):
        raise UsageError(f"{flag} {file}: its folder can't be written to")


def run(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run a command line. A UsageError ends it with one line and status 2, Ctrl-C with status 130."""
    if sys.stdout is None:  # `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        status = main(None)
        sys.stdout.flush()  # here, and not as Python ends, where an error would be told in Python's words
        sys.exit(status)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left (`| head`)
        _end_output()
        sys.exit(1)
    except OSError as error:  # a disk that is full, a folder that may not be read
        _end_output()
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _end_output() -> None:
    """Write what is yet to be written to stdout or, where that can't be, drop it: Python would try again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
