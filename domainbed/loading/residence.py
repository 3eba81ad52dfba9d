"""The device's memory: whether images stay there for the whole job, and what to do where it is full."""

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
    """What `move(device)` gives, or None where the images had better stay on the host.

    Args:
        move: moves all images to a device.
        n_bytes: how large they are.
        limit_gb: the most that they may take of the device, in GiB; None for half of what is free there.
    """
    if device.type == "cpu":
        return move(device)  # they are on the host anyway
    limit = limit_gb * 2**30 if limit_gb is not None else free_bytes(device) / 2
    if n_bytes > limit:
        stay = f"{n_bytes / 2**30:.2f} GiB of images stay in the host's memory: --resident_gb allows the device"
        tqdm.write(f"{stay} {limit / 2**30:.2f}" + (" (half of what is free)" if limit_gb is None else ""))
        return None
    with suppress(torch.OutOfMemoryError):
        return move(device)
    tqdm.write(f"{n_bytes / 2**30:.2f} GiB of images did not fit onto {device} and stay in the host's memory")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # only now, when no traceback holds what was moved already
    return None


def free_bytes(device: torch.device) -> int:
    """The device's free memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@contextmanager
def explain_out_of_memory(way_out: str = "a smaller batch_size needs less") -> Iterator[None]:
    """Within it, a device whose memory is full is the user's to answer."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"the device's memory is full: --resident_gb 0 keeps images off it, {way_out} ({error})"
        ) from error
