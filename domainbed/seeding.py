"""Seeds, and the state of the global random generators."""

import hashlib
from collections.abc import Mapping
from typing import Any


def seed_hash(*args: object) -> int:
    """Return an integer seed in [0, 2**31) derived from `args`, the same as DomainBed's.

    The hash depends on how the arguments print, so pass Python ints, strings and lists. NumPy scalars print differently
    and would yield other seeds.
    """
    return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % (2**31)


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, on all devices."""
    import random

    import numpy as np
    import torch  # imported here, so that seed_hash does not need it

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy and torch, on all devices.

    They consist of tensors and Python's own types, which `torch.load` reads with `weights_only=True`.
    """
    import random

    import numpy as np
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore the states returned by `get_rng_state`."""
    import random

    import numpy as np
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    for device, device_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(device_state.cpu(), device)
