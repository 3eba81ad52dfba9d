"""Download and verify datasets: `python -m domainbed.scripts.download --data_dir data --dataset PACS`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from domainbed import cli
from domainbed.datasets import DATASETS, MultipleDomainDataset, get_dataset_class
from domainbed.errors import UsageError, printable
from domainbed.files import make_folder
from domainbed.registry import import_modules


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("download"),
        description="Download datasets from their publishers, or print how to get them manually. An interrupted "
        "download is resumed by running the command again. With --verify, nothing is downloaded: environments, classes "
        "and image counts are compared with the known ones, and every image is decoded; the exit status is 1 if "
        "anything differs.",
        examples=(
            "--data_dir data --dataset PACS VLCS",
            "--data_dir data --dataset PACS --verify",
        ),
    )
    p.add_argument(
        "--data_dir",
        required=True,
        metavar="DIR",
        help="folder to download into, created if necessary; for the Folder and Table datasets, the dataset itself",
    )
    p.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"one or more of {', '.join(DATASETS)}; without it, list them with their sizes",
    )
    p.add_argument("--columns", metavar="ROLE=COLUMN,…", help="columns of the Table dataset, as in train")
    cli.add_import_option(p)
    p.add_argument(
        "--verify", action="store_true", help="check existing files, on all CPU cores, instead of downloading"
    )
    p.add_argument(
        "--write_leave_out",
        action="store_true",
        help="with --verify: list broken images in leave_out.txt in the dataset's folder, to exclude them",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    datasets = {name: get_dataset_class(name, args.columns) for name in args.dataset}
    if args.write_leave_out and not args.verify:
        raise UsageError("--write_leave_out requires --verify, which finds the broken images")
    if args.write_leave_out:
        from domainbed.datasets.photos import PhotoDataset

        for name, dataset in datasets.items():
            if not issubclass(dataset, PhotoDataset):
                raise UsageError(
                    f"--write_leave_out: {name} reads no leave_out.txt; delete the rows of a Table instead"
                )
    if args.verify and not args.dataset:
        raise UsageError("--verify requires --dataset")
    if "Table" in args.dataset and len(args.dataset) > 1:
        raise UsageError("--dataset Table must be checked by itself, because its --data_dir is a file")
    if args.dataset == ["Table"]:
        if not args.verify:
            raise UsageError("nothing to download for your own images (check them with --verify)")
    elif not os.path.isdir(args.data_dir):
        if args.verify or "Folder" in args.dataset:
            raise UsageError(f"--data_dir {args.data_dir!r} is not a folder")
        make_folder(Path(args.data_dir), "--data_dir")
    if not args.dataset:
        print("Nothing was downloaded. Choose one or more datasets with --dataset:")
        print("\n".join(list_datasets(args.data_dir)))
        return 0
    if args.verify:
        return verify_all(datasets, args.data_dir, args.write_leave_out)
    download_all(datasets, args.data_dir)
    return 0


def list_datasets(data_dir: str) -> list[str]:
    """Return a line for each dataset: its name, its number of images, and what is known about its download."""
    from domainbed.datasets.debug import N_IMAGES, Debug
    from domainbed.datasets.digits import ScannedDigits
    from domainbed.datasets.mnist import MNIST, NUM_IMAGES, raw_folder
    from domainbed.datasets.photos import Folder, PublishedDataset
    from domainbed.datasets.publishers.sources import SOURCES
    from domainbed.datasets.table import Table

    lines = []
    for name, dataset in ((name, DATASETS[name]) for name in DATASETS):
        n, note = 0, ""
        if issubclass(dataset, PublishedDataset) and dataset.source_name() in SOURCES:
            source = SOURCES[dataset.source_name()]
            n = sum(dataset.IMAGES[0]) if dataset.IMAGES else 0
            note = source.size if source.archives else "must be downloaded manually"
            if not dataset.find_problems(data_dir):
                note = f"exists: {dataset.dataset_folder(data_dir)}"
        elif issubclass(dataset, MNIST):
            n, note = NUM_IMAGES, f"exists: {raw_folder(data_dir)}"
            if dataset.find_downloads(data_dir):
                note = "12 MB to download"
        elif issubclass(dataset, ScannedDigits):
            n, note = 1797, "included in scikit-learn"
        elif issubclass(dataset, Debug):
            n, note = N_IMAGES * len(dataset.ENVIRONMENTS), "random numbers"
        elif issubclass(dataset, Folder | Table):
            note = "your own images"
        images = f"{n:,} images" if n else ""
        lines.append(f"  {name:<20}{images:>15}  {note}".rstrip())
    return lines


def download_all(datasets: Mapping[str, type[MultipleDomainDataset]], data_dir: str) -> None:
    """Download each dataset; if one fails, continue with the others.

    Raises:
        UsageError: after all downloads, if any of them failed.
    """
    from domainbed.datasets.photos import Folder, PublishedDataset
    from domainbed.datasets.publishers.fetch import FetchError
    from domainbed.datasets.publishers.install import install
    from domainbed.datasets.publishers.sources import manual_instructions

    failures = []
    for name, dataset in datasets.items():
        try:
            if issubclass(dataset, Folder):
                raise UsageError("nothing to download for your own images (check them with --verify)")
            if not issubclass(dataset, PublishedDataset):
                dataset.prepare(data_dir)
                print(f"{name}: ready")
            elif install(dataset, data_dir):
                print(f"{name}: downloaded to {dataset.dataset_folder(data_dir)}; check it with --verify")
            else:
                print(
                    f"{name}: {dataset.dataset_folder(data_dir)} already exists, skipping; check it with --verify, or "
                    "delete it to download it again"
                )
        except UsageError as error:
            failures.append(f"{name}: {error}")
            if isinstance(error, FetchError) and issubclass(dataset, PublishedDataset):
                print(manual_instructions(dataset, data_dir))
    if failures:
        raise UsageError("; ".join(failures))


def verify_all(datasets: Mapping[str, type[MultipleDomainDataset]], data_dir: str, list_broken: bool) -> int:
    """Verify each dataset, print the results, and return 0 if all are valid, else 1.

    Raises:
        UsageError: after all verifications, if a dataset does not exist.
    """
    from domainbed.datasets import verify
    from domainbed.datasets.photos import PhotoDataset

    is_valid, failures = True, []
    for name, dataset in datasets.items():
        try:
            result = verify.verify(dataset, data_dir)
            print(f"{name}: {'OK' if result.is_valid else 'NOT OK'}")
            for line in result.lines:
                print(f"  {printable(line)}")
            is_valid = is_valid and result.is_valid
            if list_broken and result.broken and issubclass(dataset, PhotoDataset):
                path = verify.write_leave_out(dataset.dataset_folder(data_dir), result.broken)
                print(f"  Added the broken images to {path}; they are excluded from now on")
        except UsageError as error:
            failures.append(str(error))
    if failures:
        raise UsageError("; ".join(failures))
    return 0 if is_valid else 1


if __name__ == "__main__":
    cli.run(main)
