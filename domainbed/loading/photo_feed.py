"""Environments whose images are photographs: read, cropped to one size, augmented and brought to the device.

Worker processes, shared by all environments, prepare whole requests ahead of the training loop.
"""

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.loading.augmentation import COLUMNS, Augmentation, augmented, normalised, resized_crop, to_bytes
from domainbed.loading.base import Batch, Feed, Request
from domainbed.loading.decode import BadImageError, decode, read_file
from domainbed.loading.sampling import uniforms


class Images(Protocol):
    """Images by number: uint8 [height, width, 3] of any size, or BadImageError."""

    def __getitem__(self, i: int) -> torch.Tensor: ...


class Files:
    """Images in their files."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(decode(read_file(Path(self._files[i])), self._files[i]))


class PhotoEnvironment(NamedTuple):
    """What a feed of photographs knows of an environment.

    Attributes:
        images: to read from.
        files: [n], their names.
        labels: [n].
        part: [n], the number of the part (in, out, …) that each belongs to: a broken image is replaced within it.
    """

    images: Images
    files: Sequence[str]
    labels: np.ndarray
    part: np.ndarray


class Prepared(NamedTuple):
    """A request that is met: uint8 images [n, 3, *size], and the augmentation that the device has yet to apply."""

    images: torch.Tensor
    labels: torch.Tensor
    augmentation: Augmentation | None
    replaced: list[str]


class PhotoFeed(Feed):
    """Reads photographs of any size and brings them as the network wants them.

    Args:
        environments: where the images are.
        size: (height, width) that the network wants.
        device: where batches are wanted.
        workers: processes that read ahead; 0 to read in this one.
        skip_bad: put another image of its class and part in a broken one's place.
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
        self._desk = _Desk(environments, size, augment=device.type == "cpu", skip_bad=skip_bad)

    def batches(self, requests: Iterable[Sequence[Request]]) -> Iterator[list[Batch]]:
        loader = DataLoader(
            self._desk,
            sampler=requests,  # any iterable will do, an endless one too
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._device.type == "cuda" and self._workers > 0,
            worker_init_fn=_deaf,
            generator=torch.Generator(),  # its seed for workers is drawn from here, not from the job's generator
        )
        for prepared in loader:
            if isinstance(prepared, UsageError):
                raise prepared
            yield [self._deliver(one) for one in prepared]

    def _deliver(self, prepared: Prepared) -> Batch:
        for file in prepared.replaced:
            if file not in self.bad_images:
                self.bad_images.add(file)
                tqdm.write(f"{file} is a broken image; another of its class takes its place")
        x = prepared.images.to(self._device, non_blocking=True)
        if prepared.augmentation is not None:
            x = augmented(x.float(), prepared.augmentation)
        return normalised(x), prepared.labels.to(self._device, non_blocking=True)


class _Desk(Dataset):
    """Where requests are worked on: in a worker process, or in the job's own.

    Args:
        augment: flip the crops and change their colours here; else it is left to the device.
    """

    def __init__(
        self, environments: Sequence[PhotoEnvironment], size: tuple[int, int], augment: bool, skip_bad: bool
    ) -> None:
        self._environments = environments
        self._size = size
        self._augment = augment
        self._skip_bad = skip_bad

    def __getitem__(self, requests: Sequence[Request]) -> list[Prepared] | UsageError:
        """Errors are returned: raised, they would come out of the worker wrapped in its traceback."""
        try:
            with torch.no_grad():
                return [self._prepare(request) for request in requests]
        except UsageError as error:
            return error

    def _prepare(self, request: Request) -> Prepared:
        environment = self._environments[request.env]
        n = len(request.indices)
        augmentation = None
        if request.augmentation_key is not None:
            rows = request.row, request.row + n
            augmentation = Augmentation(uniforms(request.augmentation_key, *rows, COLUMNS))
        crops: list[torch.Tensor] = []
        replaced: list[str] = []
        for i, index in enumerate(request.indices.tolist()):
            image = self._read(environment, index, replaced)
            height, width = image.shape[:2]
            box = augmentation.crop(i, height, width) if augmentation else (0, 0, height, width)
            crop = resized_crop(image, box, self._size)
            if augmentation and self._augment:  # one by one, while the image is in the CPU's cache
                # Bytes again (as in the published pipeline at every step): they are a quarter of the way.
                crop = to_bytes(augmented(crop[None].float(), augmentation[i : i + 1]))[0]
            crops.append(crop)
        labels = torch.from_numpy(environment.labels[request.indices])
        return Prepared(torch.stack(crops), labels, None if self._augment else augmentation, replaced)

    def _read(self, environment: PhotoEnvironment, index: int, replaced: list[str]) -> torch.Tensor:
        try:
            return environment.images[index]
        except BadImageError as error:
            if not self._skip_bad:
                raise UsageError(
                    f"{error}; mend it, name it in leave_out.txt (scripts.download --verify --write_leave_out finds "
                    "all such files), or give --on_bad_image skip"
                ) from error
            replaced.append(environment.files[index])
        for other in replacements(environment, index):
            try:
                return environment.images[other]
            except BadImageError:
                replaced.append(environment.files[other])
        raise UsageError(f"{environment.files[index]} is broken, and so is every other image of its class and split")


def _deaf(worker: int) -> None:
    """A signal to stop reaches a job's every process, but is its main process's to answer, which needs the others yet.

    (They end with it in any case.)
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def explain_dead_worker() -> Iterator[None]:
    """Within it, the death of a feed's process is the user's to answer.

    It stands around all that is done while a feed works: torch hears of a death by a signal, whatever runs then.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError):  # it may have died as it handed images over; then the signal ends this
            time.sleep(5)
            raise
    except RuntimeError as error:
        death: BaseException | None = error
        while death is not None and "DataLoader worker" not in str(death):
            death = death.__context__  # what it interrupts may fail in turn, as writing a checkpoint does
        if death is None:
            raise
        raise UsageError(
            f"a process that reads photographs died ({death}); memory or /dev/shm (docker run --shm-size) may be too "
            "small: give fewer --loader_workers, or 0 to read in the job's own process"
        ) from error


def replacements(environment: PhotoEnvironment, index: int) -> Iterator[int]:
    """The other images of the same class and part, from the next one on, around to the one before."""
    alike = (environment.labels == environment.labels[index]) & (environment.part == environment.part[index])
    (others,) = np.nonzero(alike)
    start = int(np.searchsorted(others, index))
    yield from np.roll(others, -start)[1:].tolist()


def _as_it_is(prepared: object) -> object:
    """In place of DataLoader's conversion of everything to tensors."""
    return prepared
