"""Errors in users' algorithms, reported with the lines of the user's own code."""

import json
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import domainbed
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.construction import LIBRARY_FOLDERS
from domainbed.errors import AlgorithmError, UsageError, one_line
from domainbed.loading.photo_feed import find_dead_worker
from domainbed.registry import is_builtin

_LIBRARIES = (
    *(os.path.join(os.path.dirname(os.path.abspath(package.__file__ or "")), "") for package in (domainbed, torch)),
    *LIBRARY_FOLDERS,
)


@contextmanager
def locate_errors(algorithm_class: type[Algorithm], place: Callable[[], str]) -> Iterator[None]:
    """Turn errors of a class that is not part of this package into an AlgorithmError.

    UsageErrors, out-of-memory errors and those of loader processes are left as they are.

    Args:
        algorithm_class: the class of the algorithm that runs within the `with` block.
        place: returns what it was doing, such as "step 3".
    """
    try:
        yield
    except (UsageError, AlgorithmError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_builtin(algorithm_class) or find_dead_worker(error):  # its signal may interrupt any code
            raise
        report = traceback.TracebackException.from_exception(error)
        _omit_libraries(report, algorithm_class)
        message = f"{place()}: {type(error).__name__}: {one_line(error)}".removesuffix(": ")
        message += location(error, algorithm_class) + _hint(error, algorithm_class)
        raise AlgorithmError(message, "".join(report.format())) from error


def step_place(algorithm: Algorithm, step: int) -> str:
    """Return "step 3 (phase 'warm-up')", without the phase if the class does not define any."""
    if type(algorithm).phase is Algorithm.phase:
        return f"step {step}"
    try:
        return f"step {step} (phase {algorithm.phase!r})"
    except Exception:  # the property may be what failed
        return f"step {step}"


def location(error: BaseException, user_class: type) -> str:
    """Return ", in FILE line N" for the last line of the user's own code that an error passed through, if any."""
    own = _own_frames(traceback.extract_tb(error.__traceback__), user_class)
    return f", in {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""


def _hint(error: BaseException, algorithm_class: type[Algorithm]) -> str:
    """Return how to resolve an error that common mistakes cause, or ""."""
    name = algorithm_class.__name__
    if isinstance(error, AttributeError) and re.search(r"'_(modules|parameters|buffers)'|Module\.__init__", str(error)):
        return f"; call super().__init__(input_shape, num_classes, num_domains, hparams) first in {name}.__init__"
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return _undeclared_hparam(error.args[0], traceback.extract_tb(error.__traceback__), algorithm_class)
    return ""


def _undeclared_hparam(hparam: str, frames: traceback.StackSummary, algorithm_class: type[Algorithm]) -> str:
    """Return how to declare a hyperparameter if a KeyError is that of reading one that the class does not have."""
    name, key = algorithm_class.__name__, json.dumps(hparam)
    declaring = next((base for base in algorithm_class.__mro__[1:] if hparam in vars(base).get("HPARAMS", {})), None)
    if declaring:  # its subclass replaced HPARAMS
        return (
            f"; HPARAMS of {name} lacks those of {declaring.__name__}, which it replaces: "
            f"HPARAMS = {{**{declaring.__name__}.HPARAMS, …}}"
        )
    own = _own_frames(frames, algorithm_class)
    if not own or not re.search(rf"""hparams\[\s*['"]{re.escape(hparam)}['"]\s*\]""", own[-1].line or ""):
        return ""
    return (
        f"; {name} has no hyperparameter {hparam!r}: declare it in the class, "
        f"HPARAMS = {{{key}: Hparam(DEFAULT)}} (from domainbed.hparams import Hparam), or, if it declares "
        f"none, pass --hparams '{{{key}: VALUE}}'"
    )


def _omit_libraries(report: traceback.TracebackException, algorithm_class: type[Algorithm]) -> None:
    """Keep only the frames of the user's own code, also in the errors that led to this one."""
    report.stack = traceback.StackSummary.from_list(_own_frames(report.stack, algorithm_class))
    for earlier in (report.__cause__, report.__context__):
        if earlier is not None:
            _omit_libraries(earlier, algorithm_class)


def _own_frames(frames: traceback.StackSummary, user_class: type) -> list[traceback.FrameSummary]:
    """Return the frames outside of this package, torch and installed packages, except for the package of the class."""
    packages = {c.__module__.partition(".")[0] for c in user_class.__mro__} - {"builtins", "torch", "domainbed"}
    folders = tuple(f"{os.sep}{name}" + end for name in packages for end in (os.sep, ".py"))

    def is_own(file: str) -> bool:
        if not file.startswith(_LIBRARIES):
            return not file.startswith(("<frozen", "<string>"))  # also of methods that dataclasses generate
        return any(folder in file for folder in folders) and not file.startswith(_LIBRARIES[:2])

    return [frame for frame in frames if is_own(frame.filename)]
