"""Where every random number comes from."""

import hashlib


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
