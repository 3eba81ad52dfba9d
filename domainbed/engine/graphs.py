"""CUDA graphs: the device's work, captured once and replayed by one call."""

import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from domainbed.errors import UsageError

T = TypeVar("T")


class CudaGraphs:
    """Captures the work of a GPU. All graphs of a job share their memory, because they run one at a time.

    Attributes:
        adam_flags: the options with which Adam does no work on the host.
        survives_failure: whether the device is usable after a failed capture.
    """

    adam_flags = {"capturable": True}
    # Earlier versions of torch do not release the generator and the memory pool (its issues #171265 and #180395).
    survives_failure = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = _side_stream(torch.cuda.current_device())
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Run work on the stream of later captures, on which libraries must be initialized first."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            # Adam will be captured later.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    @contextmanager
    def detect_sync(self) -> Iterator[None]:
        """Raise UsageError on exit if the host has synchronized with the device."""
        # Capturing a synchronization would fail as well, but can leave the device unusable.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        messages = [str(warning.message) for warning in caught]
        for message in messages:
            if "ynchroniz" not in message and "capturable=True" not in message:
                warnings.warn(message, stacklevel=2)
        if any("called a synchronizing CUDA operation" in message for message in messages):
            raise UsageError("update synchronizes with the device (.item(), bool(tensor), .cpu() or similar)")

    def capture(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Capture the device's work in `work` without executing it.

        Returns:
            A function that executes the work, on the same memory, and the result of `work`.
        """
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()  # freeing the graphs of a previous job during the capture would be captured, too
        try:
            # thread_local: other threads, such as a loader's, may allocate memory meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        finally:
            gc.enable()
        return graph.replay, result


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Return one stream for all jobs of a process, because libraries keep a workspace per stream."""
    return torch.cuda.Stream(device)
