"""Inspect a dataset: `python -m domainbed.scripts.inspect --dataset PACS --data_dir data`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed import cli
from domainbed.datasets import DATASETS
from domainbed.engine.config import JobConfig
from domainbed.files import atomic_write, make_folder
from domainbed.options import add_options, check_options, from_args, option
from domainbed.registry import import_modules

if TYPE_CHECKING:  # imports torch
    from domainbed.inspection.contents import DatasetContents


@dataclass(frozen=True)
class InspectOptions:
    """The options of the command."""

    dataset: str = option(help="dataset to inspect", metavar="NAME", choices=DATASETS)
    data_dir: str | None = option(
        None,
        help="folder that contains the datasets (not required for the digits); for the dataset Folder, the dataset "
        "itself; for Table, the table",
        metavar="DIR",
    )
    columns: str | None = option(
        None, help="columns of the Table dataset by their roles, as in train", metavar="ROLE=COLUMN,…"
    )
    output_dir: str = option(
        "inspect_output",
        help="folder for the page and the PNG files, whose names begin with that of the dataset",
        metavar="DIR",
    )
    images_per_class: int = option(
        8, help="images of each class to show, per environment", metavar="N", at_least=1, at_most=50
    )
    sample: int = option(
        500,
        help="number of randomly drawn images per environment whose pixels are measured; 0: all",
        metavar="N",
        at_least=0,
    )
    seed: int = option(
        0, help="seed of all random choices, and of the augmentation, as in train", metavar="N", at_least=0, below=2**32
    )

    def __post_init__(self) -> None:
        check_options(self)


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("inspect"),
        description="Show what is in a dataset before training on it: images per environment and class, sizes, formats "
        "and color modes of files, means and standard deviations of pixels, random images of each class, the same "
        "images as training augments them, and warnings such as missing classes and duplicates. Prints tables, and "
        "writes a self-contained HTML page and PNG files.",
        examples=(
            "--dataset PACS --data_dir data",
            "--dataset Folder --data_dir path/to/tree --images_per_class 12 --output_dir inspect_output/mine",
        ),
    )
    add_options(p, InspectOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    import_modules(args.imports)
    options = from_args(InspectOptions, args)
    config = JobConfig(
        dataset=options.dataset,
        algorithm="ERM",
        test_envs=(0,),
        data_dir=options.data_dir,
        columns=options.columns,
        seed=options.seed,
        loader_workers=0,
    )

    from domainbed.inspection.measure import inspect_dataset, load_with_warnings
    from domainbed.inspection.tables import as_text

    output_dir = Path(options.output_dir)
    dataset, messages = load_with_warnings(config)
    make_folder(output_dir)
    contents = inspect_dataset(config, dataset, options.images_per_class, options.sample)
    contents.warnings[:0] = messages
    print(as_text(contents))
    print(write(contents, output_dir))
    return 0


def write(contents: "DatasetContents", output_dir: Path) -> str:
    """Write the page and the PNG files, the page last. Return a message that says where they are."""
    from domainbed.inspection.page import as_html
    from domainbed.inspection.plots import draw_sizes
    from domainbed.reporting.plots.gallery import file_stem

    sizes = draw_sizes(contents)
    files: dict[tuple[str, ...], bytes] = {("sizes",): sizes} if sizes else {}
    for env, environment in enumerate(contents.environments):
        files["images", str(env), environment.name] = environment.contact_sheet.png
        if environment.views:
            files["views", str(env), environment.name] = environment.views.png
    page = as_html(contents, sizes)
    for names, png in files.items():
        with atomic_write(output_dir / f"{file_stem([contents.name, *names])}.png") as file:
            file.write(png)
    path = output_dir / f"{file_stem([contents.name])}.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return f"Wrote {path} and {len(files)} PNG files next to it."
