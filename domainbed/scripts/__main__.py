"""The console script `domainbed`: `domainbed COMMAND …` runs `domainbed.scripts.COMMAND`."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from domainbed import cli

COMMANDS = {
    "train": "train one job",
    "sweep": "launch, watch, cancel and archive the jobs of a benchmark",
    "collect_results": "print the tables of a sweep, or write its report page",
    "list_top_hparams": "list the runs behind one cell of the tables, best first",
    "recompute": "retrain the runs behind one cell and compare the records",
    "ensemble": "combine the trained models of a sweep: DiWA, EoA",
    "predict": "classify images with a trained model",
    "export_model": "write a trained model as safetensors, TorchScript, torch.export, ONNX, or for Hugging Face",
    "analyze": "analyze the predictions of a sweep: calibration, classes, agreement, ensembles",
    "plot": "draw the results of a sweep",
    "download": "download and verify datasets",
    "inspect": "show what is in a dataset: counts, images, augmented views, warnings",
    "landscape": "measure the loss landscapes of trained models",
    "replay": "estimate what a finished sweep would have cost and concluded with less compute",
    "colored_mnist": "reproduce the Colored MNIST proof of concept",
    "completion": "print the completion script of a shell",
}
ALIASES = {"collect": "collect_results"}


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="domainbed",
        description="A benchmark for domain generalization.",
        examples=(
            "train --dataset ColoredDigits --algorithm ERM --test_envs 2",
            "sweep launch --datasets ColoredDigits --algorithms ERM Fishr --output_dir runs/first",
        ),
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        aliases = [alias for alias, command in ALIASES.items() if command == name]
        commands.add_parser(name, help=text, aliases=aliases, add_help=False)
    return p


def main(argv: Sequence[str] | None = None) -> int | None:
    words = list(sys.argv[1:] if argv is None else argv)
    name = ALIASES.get(words[0], words[0]) if words else ""
    if name not in COMMANDS:
        parser().parse_args(words)  # prints --help or --version, or rejects the command
    return importlib.import_module(f"domainbed.scripts.{name}").main(words[1:])


def entry_point() -> NoReturn:
    cli.run(main)


if __name__ == "__main__":
    entry_point()
