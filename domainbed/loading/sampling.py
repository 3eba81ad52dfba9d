"""Which images make the batch of a step: a function of (job seed, environment, step), never of the batches before it.

So there is no state to save. A resumed job, a pool of workers and a captured graph all see the same images.
"""

import numpy as np

from domainbed.seeding import seed_hash

_WORDS = 4  # a Philox counter gives four 64-bit words


def uniforms(key: int, start: int, stop: int, columns: int) -> np.ndarray:
    """The rows start, …, stop - 1 of an endless table of numbers in [0, 1) that `key` names: [stop - start, columns].

    Philox is counter-based: any row can be had without the ones before, and NumPy keeps the stream of a bit generator
    the same for ever (which it does not promise of Generator.integers).
    """
    counters = -(-columns // _WORDS)  # that a row uses up
    bits = np.random.Philox(key=key).advance(start * counters)
    words = bits.random_raw((stop - start) * counters * _WORDS).reshape(stop - start, -1)
    return (words[:, :columns] >> np.uint64(11)) * 2.0**-53


class BatchSampler:
    """Draws batches with replacement from the images `indices` of one environment.

    Args:
        indices: [n], what to draw from.
        batch_size: images a batch.
        seed: the job's seed.
        env: the environment's number.
        labels: [n], the labels of `indices`, to draw each class as often as any other; None to draw every image as
            often as any other.
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
        """The batches of the steps start, …, stop - 1: indices [stop - start, batch_size]."""
        uniform = uniforms(self._key, start, stop, self.batch_size)
        # The first digit of `uniform` in base len(groups) chooses the group, the rest the image within it.
        scaled = uniform * len(self._groups)
        group = scaled.astype(np.int64)
        sizes = np.array([len(g) for g in self._groups])
        position = ((scaled - group) * sizes[group]).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return np.concatenate(self._groups)[starts[group] + position]
