"""Whether images stay on the device for the whole job."""

from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")


def moved_if_it_fits(
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
    try:
        return move(device)
    except torch.OutOfMemoryError:
        tqdm.write(f"{n_bytes / 2**30:.2f} GiB of images did not fit onto {device} and stay in the host's memory")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def free_bytes(device: torch.device) -> int:
    """The device's free memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
