"""Device memory: images that stay on the device during the whole job, and readable out-of-memory errors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from tqdm import tqdm

from domainbed.errors import UsageError

T = TypeVar("T")


def move_to_device(
    move: Callable[[torch.device], T], n_bytes: int, device: torch.device, limit_gb: float | None
) -> T | None:
    """Return `move(device)`, or None if the images are too large for the device.

    Args:
        move: moves all images to a device.
        n_bytes: the size of the images.
        device: the device to move to.
        limit_gb: the maximum size in GiB; None for half of the device's free memory.
    """
    if device.type == "cpu":
        return move(device)
    limit = limit_gb * 2**30 if limit_gb is not None else free_bytes(device) / 2
    size = f"{n_bytes / 2**30:.2f} GiB of images"
    if n_bytes > limit:
        reason = "half of the free memory" if limit_gb is None else "--resident_gb"
        tqdm.write(f"{size} stay in host memory: the limit on the device is {limit / 2**30:.2f} GiB ({reason})")
        return None
    with suppress(torch.OutOfMemoryError):
        return move(device)
    tqdm.write(f"{size} do not fit on {device} and stay in host memory")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # only now, because the traceback held references to moved tensors
    return None


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@contextmanager
def explain_out_of_memory(hint: str = "reduce batch_size") -> Iterator[None]:
    """Turn the device's out-of-memory error into a UsageError that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"the device is out of memory: use --resident_gb 0 to keep images off it, or {hint} ({error})"
        ) from error
