"""The feed of photo environments: images are read, cropped to one size, augmented and moved to the device.

Worker processes, shared by all environments, prepare complete requests ahead of the training loop.
"""

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.loading.augmentation import NUM_UNIFORMS, Augmentation, augment, normalize, resized_crop, to_bytes
from domainbed.loading.base import Batch, Feed, Request
from domainbed.loading.decode import BadImageError, decode, read_file
from domainbed.loading.sampling import draw_uniforms


class ImageSource(Protocol):
    """Images by index: uint8 [height, width, 3] of any size. Raises BadImageError for a broken image."""

    def __getitem__(self, i: int) -> torch.Tensor: ...


class FileImages:
    """Images read from their files."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(decode(read_file(Path(self._files[i])), self._files[i]))


class PhotoEnvironment(NamedTuple):
    """The images of one environment.

    Attributes:
        images: the source of the pixels.
        files: [n], file names.
        labels: [n].
        part: [n], index of the split's part (in, out, uda) that each image belongs to. A broken image is replaced
            with another one of the same part.
        is_cropped: whether the augmentation includes random crops.
        is_resized_first: whether images are resized before the augmentation, too, and not only by it.
    """

    images: ImageSource
    files: Sequence[str]
    labels: np.ndarray
    part: np.ndarray
    is_cropped: bool = True
    is_resized_first: bool = False


class PreparedBatch(NamedTuple):
    """A batch on the host: uint8 images [n, 3, *size], and the augmentation that remains for the device, if any."""

    images: torch.Tensor
    labels: torch.Tensor
    augmentation: Augmentation | None
    replaced: list[str]


class PhotoFeed(Feed):
    """A feed of photos of any size.

    Args:
        environments: the images.
        size: (height, width) of the batches.
        device: the device of the batches.
        workers: number of worker processes; with 0, images are read in this process.
        skip_bad: replace a broken image with another one of its class and part.
    """

    def __init__(
        self,
        environments: Sequence[PhotoEnvironment],
        size: tuple[int, int],
        device: torch.device,
        workers: int,
        skip_bad: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size = 32 if device.type == "cpu" else 256
        self._device = device
        self._workers = workers
        self._dataset = _RequestDataset(environments, size, augment_here=device.type == "cpu", skip_bad=skip_bad)

    def batches(self, requests: Iterable[Sequence[Request]]) -> Iterator[list[Batch]]:
        loader = DataLoader(
            self._dataset,
            sampler=requests,  # any iterable works, even an endless one
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_identity,
            pin_memory=self._device.type == "cuda" and self._workers > 0,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # for the workers' seeds, which would otherwise advance the job's generator
        )
        for prepared in loader:
            if isinstance(prepared, UsageError):
                raise prepared
            yield [self._finish(batch) for batch in prepared]

    def _finish(self, batch: PreparedBatch) -> Batch:
        for file in batch.replaced:
            if file not in self.bad_images:
                self.bad_images.add(file)
                tqdm.write(f"Replacing broken image {file} with another one of its class")
        x = batch.images.to(self._device, non_blocking=True)
        if batch.augmentation is not None:
            x = augment(x.float(), batch.augmentation)
        return normalize(x), batch.labels.to(self._device, non_blocking=True)


@dataclass(eq=False)
class _RequestDataset(Dataset):
    """A dataset of batches, indexed by requests; they are prepared in a worker process or in the job's own.

    Attributes:
        environments, size, skip_bad: as in PhotoFeed.
        augment_here: flip the crops and change their colors here rather than on the device.
    """

    environments: Sequence[PhotoEnvironment]
    size: tuple[int, int]
    augment_here: bool
    skip_bad: bool

    def __getitem__(self, requests: Sequence[Request]) -> list[PreparedBatch] | UsageError:
        """Return errors rather than raise them, because DataLoader wraps a worker's errors in its traceback."""
        try:
            with torch.no_grad():
                return [self._prepare(request) for request in requests]
        except UsageError as error:
            return error

    def _prepare(self, request: Request) -> PreparedBatch:
        environment = self.environments[request.env]
        augmentation = None
        if request.augmentation_key is not None:
            stop = request.row + len(request.indices)
            augmentation = Augmentation(draw_uniforms(request.augmentation_key, request.row, stop, NUM_UNIFORMS))
        crops: list[torch.Tensor] = []
        replaced: list[str] = []
        for i, index in enumerate(request.indices.tolist()):
            image = self._read(environment, index, replaced)
            if augmentation and environment.is_resized_first:
                image = resized_crop(image, (0, 0, *image.shape[:2]), self.size).permute(1, 2, 0)
            height, width = image.shape[:2]
            box = (0, 0, height, width)
            if augmentation and environment.is_cropped:
                box = augmentation.crop(i, height, width)
            crop = resized_crop(image, box, self.size)
            if augmentation and self.augment_here:  # one by one, while the image is in the CPU's cache
                # Rounded to uint8 (as in the published pipeline after each step), to transfer a quarter of the bytes.
                crop = to_bytes(augment(crop[None].float(), augmentation[i : i + 1]))[0]
            crops.append(crop)
        labels = torch.from_numpy(environment.labels[request.indices])
        return PreparedBatch(torch.stack(crops), labels, None if self.augment_here else augmentation, replaced)

    def _read(self, environment: PhotoEnvironment, index: int, replaced: list[str]) -> torch.Tensor:
        """Return an image or, with skip_bad, its replacement; add the broken files to `replaced`."""
        try:
            return environment.images[index]
        except BadImageError as error:
            if not self.skip_bad:
                raise UsageError(
                    f"{error}; repair it, exclude it (list it in leave_out.txt, as scripts.download --verify "
                    "--write_leave_out does; delete the row of a Table), or use --on_bad_image skip "
                    "(not with frozen features)"
                ) from error
            replaced.append(environment.files[index])
        for candidate in replacement_candidates(environment, index):
            try:
                return environment.images[candidate]
            except BadImageError:
                replaced.append(environment.files[candidate])
        raise UsageError(f"{environment.files[index]} and all other images of its class and split are broken")


def replacement_candidates(environment: PhotoEnvironment, index: int) -> Iterator[int]:
    """Yield the other images of the same class and part, starting after `index` and wrapping around."""
    is_candidate = (environment.labels == environment.labels[index]) & (environment.part == environment.part[index])
    (candidates,) = np.nonzero(is_candidate)
    start = int(np.searchsorted(candidates, index))
    yield from np.roll(candidates, -start)[1:].tolist()


def _identity(prepared: object) -> object:
    """Return the batches unchanged; DataLoader's own collate function would convert everything to tensors."""
    return prepared


def _ignore_signals(worker: int) -> None:
    """Ignore termination signals: the main process handles them, and still needs its workers, which exit with it."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def find_dead_worker(error: BaseException) -> BaseException | None:
    """Return the error that reports the death of a worker process: this one, or one that it was raised during."""
    death: BaseException | None = error
    while death is not None and "DataLoader worker" not in str(death):
        death = death.__context__  # the interrupted code may have raised too, e.g. while writing a checkpoint
    return death


@contextmanager
def explain_dead_worker() -> Iterator[None]:
    """Turn the death of a worker process into a UsageError that says what to change.

    The block must contain everything that runs while a feed is in use: DataLoader reports a dead worker from a signal
    handler, which may interrupt any code.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError):  # the worker may have died during a transfer, and the signal follows
            time.sleep(5)
            raise
    except Exception as error:
        death = find_dead_worker(error)
        if death is None:
            raise
        raise UsageError(
            f"an image loader process died ({death}); it may have run out of memory or of /dev/shm (docker run "
            "--shm-size): reduce --loader_workers, or use 0 to read images in the job's own process"
        ) from error
