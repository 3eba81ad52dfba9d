"""Datasets, fetched and verified: `python -m domainbed.scripts.download --data_dir data --dataset PACS`."""

import os
from collections.abc import Mapping, Sequence

from domainbed import cli
from domainbed.datasets import DATASETS, MultipleDomainDataset, get_dataset_class
from domainbed.errors import UsageError


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.download",
        description="Fetch datasets from those who publish them, or tell how to get them by hand. Run again after an "
        "interruption, this goes on where it was. With --verify, look at what is there instead: environments, classes "
        "and counts beside the known ones, and whether every image decodes; the status is 1 where something differs.",
    )
    p.add_argument("--data_dir", required=True, help="folder to fetch into; for Folder, the tree itself")
    p.add_argument("--dataset", nargs="+", required=True, metavar="NAME", help=f"of {', '.join(DATASETS)}")
    p.add_argument("--verify", action="store_true", help="fetch nothing; check what is there, on all CPU cores")
    p.add_argument(
        "--write_leave_out",
        action="store_true",
        help="with --verify: add the broken images to leave_out.txt in the dataset's folder, so that they aren't read",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    datasets = {name: get_dataset_class(name) for name in args.dataset}
    if args.write_leave_out and not args.verify:
        raise UsageError("--write_leave_out needs --verify, which finds the broken images")
    if not os.path.isdir(args.data_dir):
        raise UsageError(f"--data_dir {args.data_dir!r} is not a folder; make it first")
    if args.verify:
        return verify_all(datasets, args.data_dir, args.write_leave_out)
    fetch_all(datasets, args.data_dir)
    return 0


def fetch_all(datasets: Mapping[str, type[MultipleDomainDataset]], data_dir: str) -> None:
    """Fetch each dataset; one that fails does not keep the others. Raises UsageError, in the end, where one did."""
    from domainbed.datasets.photos import Folder, PublishedDataset
    from domainbed.datasets.publishers.fetch import FetchError
    from domainbed.datasets.publishers.install import install
    from domainbed.datasets.publishers.sources import by_hand

    failed = []
    for name, dataset in datasets.items():
        try:
            if issubclass(dataset, Folder):
                raise UsageError("it is a tree of your own, there is nothing to fetch (--verify checks it)")
            if not issubclass(dataset, PublishedDataset):
                dataset.prepare(data_dir)
                print(f"{name}: ready")
            elif install(dataset, data_dir):
                print(f"{name}: fetched into {dataset.dataset_folder(data_dir)}; --verify checks it")
            else:
                print(
                    f"{name}: {dataset.dataset_folder(data_dir)} is there already and stays as it is; "
                    "--verify checks it, and without it, it is fetched again"
                )
        except UsageError as error:
            failed.append(f"{name}: {error}")
            if isinstance(error, FetchError) and issubclass(dataset, PublishedDataset):
                print(by_hand(dataset, data_dir))
    if failed:
        raise UsageError("; ".join(failed))


def verify_all(datasets: Mapping[str, type[MultipleDomainDataset]], data_dir: str, write: bool) -> int:
    """Print what is found of each dataset. Returns 0 where all is as known, else 1.

    Raises:
        UsageError: in the end, where one is not there.
    """
    from domainbed.datasets.photos import Photographs
    from domainbed.datasets.verify import verify, write_leave_out

    sound, failed = True, []
    for name, dataset in datasets.items():
        try:
            verdict = verify(dataset, data_dir)
            print(f"{name}: {'as it should be' if verdict.sound else 'NOT as it should be'}")
            for line in verdict.lines:
                print(f"  {line}")
            sound = sound and verdict.sound
            if write and verdict.broken and issubclass(dataset, Photographs):
                path = write_leave_out(dataset.dataset_folder(data_dir), verdict.broken)
                print(f"  {path} now names the broken images, which are left out")
        except UsageError as error:
            failed.append(str(error))
    if failed:
        raise UsageError("; ".join(failed))
    return 0 if sound else 1


if __name__ == "__main__":
    cli.run(main)
