"""Classify images with a trained model: `python -m domainbed.scripts.predict --model model.pkl IMAGES…`."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from domainbed import cli
from domainbed.errors import UsageError, printable
from domainbed.options import add_options, check_options, from_args, option
from domainbed.registry import import_modules

if TYPE_CHECKING:  # imports torch
    from tqdm import tqdm

    from domainbed.engine.trained_model import TrainedModel

FORMATS = ("text", "csv", "json")


@dataclass(frozen=True)
class PredictOptions:
    """The options of the command."""

    model: str = option(help="a model saved by train, such as model.pkl in a job's folder", metavar="FILE")
    format: str = option("text", help="format of the output", choices=FORMATS)
    output: str | None = option(None, help="file to write", metavar="FILE", if_unset="standard output")
    top: int = option(1, help="number of most probable classes to print for each image", metavar="K", at_least=1)
    batch_size: int | None = option(
        None,
        help="images per batch",
        metavar="N",
        if_unset="as in evaluation if the algorithm requires it, else 32",
        at_least=1,
    )
    trust_imports: bool = option(False, help=cli.TRUST_IMPORTS_HELP)

    def __post_init__(self) -> None:
        check_options(self)


class Prediction(NamedTuple):
    """The most probable classes of an image and their probabilities, the most probable one first."""

    path: str
    classes: list[str]
    probabilities: list[float]


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("predict"),
        description="Classify images with a trained model. Images are decoded and resized as in evaluation. A broken "
        "image is reported and skipped; the exit status is then 1.",
        examples=(
            "--model train_output/model.pkl photos",
            "--model train_output/model.pkl photos/*.jpg --top 3 --format csv --output classes.csv",
        ),
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help="image files, and folders to search for images")
    add_options(p, PredictOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    options = from_args(PredictOptions, args)
    cli.check_output(options.output, can_stream=True)
    paths = find_images(args.images)
    import_modules(args.imports)

    import torch
    from tqdm import tqdm

    from domainbed.engine.model import load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(options.model, device, options.trust_imports)
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        predictions = list(predict(model, paths, options, bar))
    cli.write_output(format_predictions(predictions, options.format), options.output)
    return 0 if len(predictions) == len(paths) else 1


def find_images(names: Sequence[str]) -> list[str]:
    """Return the files among `names`, and the image files in the folders among them and in their subfolders, sorted.

    Raises:
        UsageError: a name does not exist, or a folder cannot be listed or has no images.
    """
    from domainbed.datasets.image_folders import is_image

    def fail(error: OSError) -> None:
        raise UsageError(f"cannot list {error.filename}: {error.strerror}") from error

    paths: list[str] = []
    for name in names:
        if not os.path.exists(name):
            raise UsageError(f"no such file or folder: {name!r}")
        if not os.path.isdir(name):
            paths.append(name)
            continue
        files = [(parent, file) for parent, _, files in os.walk(name, onerror=fail) for file in files if is_image(file)]
        if not files:
            raise UsageError(f"folder {name!r} has no images")
        paths += [os.path.join(parent, file) for parent, file in sorted(files)]
    return paths


def predict(model: "TrainedModel", paths: Sequence[str], options: PredictOptions, bar: "tqdm") -> Iterator[Prediction]:
    """Yield the prediction for each image that can be read; report the others on stderr."""
    import torch

    preprocessing = model.require_preprocessing()
    batch_size = options.batch_size or model.EVAL_BATCH_SIZE or model.BATCH_SIZE
    for start in range(0, len(paths), batch_size):
        pixels = {}
        for i, path in enumerate(paths[start : start + batch_size], start):
            try:
                pixels[i] = preprocessing.read_image(path)
            except UsageError as error:
                bar.write(f"{printable(error)}; skipped", file=sys.stderr)
            bar.update()
        if not pixels:
            continue
        top = model.class_probabilities(torch.stack(list(pixels.values()))).topk(
            min(options.top, len(model.class_names))
        )
        for i, values, classes in zip(pixels, top.values.tolist(), top.indices.tolist(), strict=True):
            yield Prediction(paths[i], [model.class_names[c] for c in classes], values)


def format_predictions(predictions: Sequence[Prediction], name: str) -> str:
    """Return predictions as a table, as CSV (both with a row per image and class), or as JSON (an object per image)."""
    if name == "json":
        content = [
            {
                "path": p.path,
                "predictions": [
                    {"class": c, "probability": v} for c, v in zip(p.classes, p.probabilities, strict=True)
                ],
            }
            for p in predictions
        ]
        return json.dumps(content, indent=1) + "\n"
    columns = ("path", "class", "probability")
    rows = [(p.path, c, v) for p in predictions for c, v in zip(p.classes, p.probabilities, strict=True)]
    if name == "csv":
        import pandas as pd

        from domainbed.reporting.frames import to_csv

        return to_csv(pd.DataFrame(rows, columns=columns))
    from tabulate import tabulate

    shown = [(printable(path), printable(c), f"{value:.4f}") for path, c, value in rows]
    return tabulate(shown, columns, colalign=["left", "left", "right"] if rows else None, disable_numparse=True) + "\n"


if __name__ == "__main__":
    cli.run(main)
