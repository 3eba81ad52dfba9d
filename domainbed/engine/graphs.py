"""CUDA graphs: the device's work, recorded once and done again by one call."""

import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

import torch

from domainbed.errors import UsageError

T = TypeVar("T")


class Graphs(Protocol):
    """Records a device's work.

    Attributes:
        device: whose.
        adam_flags: the options under which Adam leaves nothing to the host.
        survives: whether the device is in order after a recording that failed.
    """

    device: torch.device
    adam_flags: dict[str, bool]
    survives: bool

    def aside(self) -> AbstractContextManager[None]:
        """Within it, work is done where it will be recorded: libraries start there, before anything is recorded."""

    def watched(self) -> AbstractContextManager[None]:
        """At its end, UsageError where the host waited for the device meanwhile."""

    def capture(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record what `work` has the device do, without doing it.

        Returns:
            a function that has it done, on the same memory, and what `work` returned.
        """


class CudaGraphs:
    """A GPU's. All graphs of a job share their working memory, for they run one at a time."""

    adam_flags = {"capturable": True}
    # Before, torch forgot to give the generator and the memory pool back (its #171265 and #180395).
    survives = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = _side_stream(torch.cuda.current_device())
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            # Adam's, who is captured later.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    @contextmanager
    def watched(self) -> Iterator[None]:
        # To capture what waits would fail, too, but can leave the device in disorder.
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        messages = [str(warning.message) for warning in told]
        for message in messages:
            if "ynchroniz" not in message and "capturable=True" not in message:
                warnings.warn(message, stacklevel=2)
        if any("called a synchronizing CUDA operation" in message for message in messages):
            raise UsageError("it waits for the device (.item(), bool(tensor), .cpu() and the like)")

    def capture(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()  # a job's before this one might be destroyed meanwhile, which is work for the device
        try:
            # Other threads may do as they like: a loader's allocates memory for the batches to come.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                returned = work()
        finally:
            gc.enable()
        return graph.replay, returned


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all jobs of a process: libraries keep a workspace for every stream that they ever met."""
    return torch.cuda.Stream(device)
