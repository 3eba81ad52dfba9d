"""Sampling of the images of each batch: a function of (job seed, environment, step), independent of earlier batches.

There is therefore no state to save: a resumed job, a pool of workers and a captured graph all see the same images.
"""

import numpy as np

from domainbed.seeding import seed_hash

_WORDS_PER_COUNTER = 4  # a Philox counter yields four 64-bit words


def draw_uniforms(key: int, start: int, stop: int, columns: int) -> np.ndarray:
    """Return the rows start, …, stop - 1 of the infinite table of random numbers selected by `key`.

    Philox is counter-based, so any row can be computed without the rows before it. NumPy guarantees the stream of a bit
    generator, but not that of Generator.integers.

    Returns:
        [stop - start, columns], in [0, 1).
    """
    counters_per_row = -(-columns // _WORDS_PER_COUNTER)
    bits = np.random.Philox(key=key).advance(start * counters_per_row)
    words = bits.random_raw((stop - start) * counters_per_row * _WORDS_PER_COUNTER).reshape(stop - start, -1)
    return (words[:, :columns] >> np.uint64(11)) * 2.0**-53


class BatchSampler:
    """A sampler that draws batches with replacement from some images of one environment.

    Args:
        indices: [n], indices of the images to draw from.
        batch_size: images per batch.
        seed: the job's seed.
        env: index of the environment.
        labels: [n], labels of `indices`, to draw all classes with equal probability; None to draw all images with equal
            probability.
    """

    def __init__(
        self, indices: np.ndarray, batch_size: int, seed: int, env: int, labels: np.ndarray | None = None
    ) -> None:
        self.batch_size = batch_size
        self._key = seed_hash("batches", seed, env)
        if labels is None:
            self._groups = [indices]
        else:
            self._groups = [indices[labels == label] for label in np.unique(labels)]

    def batches(self, start: int, stop: int) -> np.ndarray:
        """Return the batches of the steps start, …, stop - 1: indices [stop - start, batch_size]."""
        uniform = draw_uniforms(self._key, start, stop, self.batch_size)
        # The first digit of `uniform` in base len(groups) selects the group, the remainder the image in it.
        scaled = uniform * len(self._groups)
        group = scaled.astype(np.int64)
        sizes = np.array([len(g) for g in self._groups])
        position = ((scaled - group) * sizes[group]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return np.concatenate(self._groups)[offsets[group] + position]
