"""Measure the photographs per second that reach the training loop, with a usual PIL pipeline and with the package's.

scripts/benchmark data --data_dir data
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import joblib
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

import timing

from domainbed import cli
from domainbed.backbones import IMAGENET_MEAN, IMAGENET_STD
from domainbed.datasets import get_dataset_class
from domainbed.loading.base import Request
from domainbed.loading.image_cache import open_cached
from domainbed.loading.photo_feed import FileImages, ImageSource, PhotoEnvironment, PhotoFeed
from domainbed.loading.sampling import BatchSampler

PUBLISHED = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
        transforms.RandomGrayscale(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)


class PlainImages(Dataset):
    """A dataset that applies torchvision's transforms to single images, read from files or from a pack."""

    def __init__(self, files: list[str], labels: np.ndarray, decoded: ImageSource | None) -> None:
        self.files, self.labels, self.decoded = files, labels, decoded

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if self.decoded is not None:
            image = Image.fromarray(self.decoded[i].numpy())
        else:
            image = Image.open(self.files[i]).convert("RGB")
        return PUBLISHED(image), self.labels[i]


def plain_batches(
    files: list[str], labels: np.ndarray, decoded: ImageSource | None, batch: int, workers: int, device: str
) -> Iterable:
    """Return endless batches of a plain DataLoader, moved to the device as DomainBed does."""
    indices = itertools.chain.from_iterable(batch_indices(len(files), batch))
    data = PlainImages(files, labels, decoded)
    batches = DataLoader(data, sampler=indices, batch_size=batch, num_workers=workers)
    return ((x.to(device), y.to(device)) for x, y in batches)


def package_batches(
    files: list[str], labels: np.ndarray, images: ImageSource, batch: int, workers: int, device: str
) -> Iterable:
    """Return endless batches as in a job with three training environments, which requests three at a time."""
    environment = PhotoEnvironment(images, files, labels, np.zeros(len(files)))
    feed = PhotoFeed([environment], (224, 224), torch.device(device), workers)
    requests = (Request(0, indices, 1, batch * i) for i, indices in enumerate(batch_indices(len(files), batch)))
    return itertools.chain.from_iterable(feed.batches(zip(requests, requests, requests, strict=False)))


def batch_indices(n: int, batch: int) -> Iterator[np.ndarray]:
    sampler = BatchSampler(np.arange(n), batch, seed=0, env=0)
    return (sampler.batches(step, step + 1)[0] for step in itertools.count())


def rate(batches: Iterable, seconds: float, batch: int, device: str) -> float:
    """Return the images per second, after the workers have started and their first batches are used up."""
    iterator = iter(batches)
    for _ in range(60):
        next(iterator)
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(iterator)
        if device == "cuda":
            torch.cuda.synchronize()
        n += 1
    return n * batch / (time.perf_counter() - start)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="scripts/benchmark data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder that contains PACS, or a part of it")
    parser.add_argument("--workers", type=int, default=joblib.cpu_count(), help="number of worker processes")
    parser.add_argument("--batch", type=int, default=32, help="images per batch")
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement in seconds")
    timing.add_options(parser, repeats=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    report = timing.Report(args)
    dataset = get_dataset_class("PACS")(args.data_dir, [], {"data_augmentation": True}, 0)
    files = [str(e.folder / file) for e in dataset for file in e.files]
    labels = np.concatenate([e.labels for e in dataset])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as cache:
        (pack,) = open_cached(Path(cache), 100, {"PACS": files}) or [None]
        sides = {
            "plain: files, PIL, image by image": lambda: plain_batches(
                files, labels, None, args.batch, args.workers, device
            ),
            "cached: pack, PIL, image by image": lambda: plain_batches(
                files, labels, pack, args.batch, args.workers, device
            ),
            "batched: files, tensors": lambda: package_batches(
                files, labels, FileImages(files), args.batch, args.workers, device
            ),
            "batched and cached: pack, tensors": lambda: package_batches(
                files, labels, pack, args.batch, args.workers, device
            ),
        }
        if device == "cuda":
            resident = pack.to(torch.device("cuda"))
            sides["resident: pack on the GPU"] = lambda: package_batches(files, labels, resident, args.batch, 0, device)
        print(f"{len(files)} PACS images, {args.workers} workers, batches of {args.batch} to {device}, ", end="")
        print(f"torch {torch.__version__}, median of {args.repeats} rounds of {args.seconds:g} s", flush=True)
        measures = {
            name: lambda batches=batches: rate(batches(), args.seconds, args.batch, device)
            for name, batches in sides.items()
        }
        rates = timing.interleaved(measures, args.repeats, warm_up=False)  # each measurement has its own warm-up
        report.record("loading", "images/s", rates)
        first = statistics.median(next(iter(rates.values())))
        for name, samples in rates.items():
            median, spread = statistics.median(samples), f"({min(samples):.0f} to {max(samples):.0f})"
            print(f"{name:36s} {median:8.0f} images/s  {median / first:5.1f}x  {spread}")
    return report.finish()


if __name__ == "__main__":
    cli.run(main)
