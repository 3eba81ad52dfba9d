"""Calls that need torch, in a short-lived process: a launch would hold the 0.6 GB of torch until its last job ends."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from domainbed.errors import UsageError
from domainbed.sweep.processes import describe_exit, end_with_parent, start_process

T = TypeVar("T")

# As counted by the last process; each one counts them, because importing torch takes seconds.
_n_gpus: int | None = None


def call_with_torch(function: Callable[..., T], *args: Any) -> T:
    """Return function(*args), called in a new process unless this one has imported torch already.

    Args:
        function: a function of a module.
        args: its arguments, which are pickled like its result.

    Raises:
        UsageError: the function raised it, or the process died.
    """
    global _n_gpus
    if "torch" in sys.modules:
        return function(*args)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    start_process(process)
    sender.close()
    try:
        value, error, _n_gpus = receiver.recv()
    except EOFError:
        process.join()
        raise UsageError(f"cannot run {function.__name__}: {describe_exit(process.exitcode)}") from None
    finally:
        process.kill()  # also on Ctrl-C; there is nothing to wait for once it has sent its result
        process.join()
        receiver.close()
    if error:
        raise error
    return value


def count_gpus() -> int:
    """Return the number of GPUs that torch can use."""
    if "torch" in sys.modules:
        return _count_gpus()
    return call_with_torch(_count_gpus) if _n_gpus is None else _n_gpus


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _call(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    end_with_parent()
    os.dup2(2, 1)  # stdout is for the results of the command
    value: Any = None
    error: UsageError | None = None
    try:
        value = function(*args)
    except UsageError as raised:
        error = UsageError(str(raised))  # subclasses need not survive pickling
    sender.send((value, error, _count_gpus()))
