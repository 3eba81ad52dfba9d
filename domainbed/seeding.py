"""Where every random number comes from."""

import hashlib
from collections.abc import Mapping
from typing import Any


def seed_hash(*args: object) -> int:
    """An integer seed in [0, 2**31) made from `args`, as DomainBed makes it.

    The hash is taken of the tuple's printed form, so keep Python's own ints, strings and lists inside: NumPy's
    scalars print differently and would change every number that follows.
    """
    return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % (2**31)


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, on all devices."""
    import random

    import numpy as np
    import torch  # here, so that seed_hash alone costs no import of torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generators_state() -> dict[str, Any]:
    """Where the generators of Python, NumPy and torch are, on all devices."""
    import random

    import numpy as np
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_generators(state: Mapping[str, Any]) -> None:
    """Have the generators go on from where they were when `generators_state` was called."""
    import random

    import numpy as np
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    for device, of_device in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(of_device.cpu(), device)
