"""Errors in users' algorithms, reported with the lines of the user's own code."""

import json
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import domainbed
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.state import is_builtin
from domainbed.errors import AlgorithmError, UsageError, one_line

_LIBRARIES = tuple(
    os.path.join(folder, "")
    for folder in (
        *(os.path.dirname(os.path.abspath(package.__file__ or "")) for package in (domainbed, torch)),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    )
)


@contextmanager
def locate_errors(algorithm_class: type[Algorithm], place: Callable[[], str]) -> Iterator[None]:
    """Turn errors of a class that is not part of this package into an AlgorithmError.

    UsageErrors and out-of-memory errors are left as they are.

    Args:
        algorithm_class: the class of the algorithm that runs within the `with` block.
        place: returns what it was doing, such as "step 3".
    """
    try:
        yield
    except (UsageError, AlgorithmError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_builtin(algorithm_class):
            raise
        report = traceback.TracebackException.from_exception(error)
        _omit_libraries(report, algorithm_class)
        message = f"{place()}: {type(error).__name__}: {one_line(error)}".removesuffix(": ")
        message += location(error, algorithm_class) + _undeclared_hparam(error, algorithm_class)
        raise AlgorithmError(message, "".join(report.format())) from error


def step_place(algorithm: Algorithm, step: int) -> str:
    """Return "step 3 (phase 'warm-up')", without the phase if the class does not define any."""
    if type(algorithm).phase is Algorithm.phase:
        return f"step {step}"
    try:
        return f"step {step} (phase {algorithm.phase!r})"
    except Exception:  # the property may be what failed
        return f"step {step}"


def location(error: BaseException, algorithm_class: type[Algorithm]) -> str:
    """Return ", in FILE line N" for the last line of the user's own code that an error passed through, if any."""
    own = _own_frames(traceback.extract_tb(error.__traceback__), algorithm_class)
    return f", in {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""


def _undeclared_hparam(error: BaseException, algorithm_class: type[Algorithm]) -> str:
    """Return how to declare a hyperparameter if the error is that of reading one that the class does not have."""
    own = _own_frames(traceback.extract_tb(error.__traceback__), algorithm_class)
    if not (isinstance(error, KeyError) and error.args and isinstance(name := error.args[0], str) and own):
        return ""
    if not re.search(rf"""hparams\[\s*['"]{re.escape(name)}['"]\s*\]""", own[-1].line or ""):
        return ""
    return (
        f"; {algorithm_class.__name__} has no hyperparameter {name!r}: declare it in the class, "
        f"HPARAMS = {{{json.dumps(name)}: Hparam(DEFAULT)}} (from domainbed.hparams import Hparam), or, if it declares "
        f"none, pass --hparams '{{{json.dumps(name)}: VALUE}}'"
    )


def _omit_libraries(report: traceback.TracebackException, algorithm_class: type[Algorithm]) -> None:
    """Keep only the frames of the user's own code, also in the errors that led to this one."""
    report.stack = traceback.StackSummary.from_list(_own_frames(report.stack, algorithm_class))
    for earlier in (report.__cause__, report.__context__):
        if earlier is not None:
            _omit_libraries(earlier, algorithm_class)


def _own_frames(frames: traceback.StackSummary, algorithm_class: type[Algorithm]) -> list[traceback.FrameSummary]:
    """Return the frames outside of this package, torch and installed packages, except for the algorithm's package."""
    packages = {c.__module__.partition(".")[0] for c in algorithm_class.__mro__} - {"builtins", "torch", "domainbed"}
    folders = tuple(f"{os.sep}{name}" + end for name in packages for end in (os.sep, ".py"))

    def is_own(file: str) -> bool:
        if not file.startswith(_LIBRARIES):
            return not file.startswith("<frozen")
        return any(folder in file for folder in folders) and not file.startswith(_LIBRARIES[:2])

    return [frame for frame in frames if is_own(frame.filename)]
