"""Export a trained model: `python -m domainbed.scripts.export_model --model model.pkl --format onnx --output FILE`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from domainbed import cli
from domainbed.engine.export import EXPORT_FORMATS
from domainbed.errors import UsageError
from domainbed.options import add_options, check_options, from_args, option
from domainbed.registry import import_modules


@dataclass(frozen=True)
class ExportOptions:
    """The options of the command."""

    model: str = option(help="a model saved by train, such as model.pkl in a job's folder", metavar="FILE")
    format: str = option(
        help="safetensors, or a folder for Hugging Face: weights for the classes of this package; torchscript, "
        "torch_export or onnx: a program that runs without it",
        choices=EXPORT_FORMATS,
    )
    output: str = option(help="file to write; for huggingface, a new folder", metavar="PATH")
    trust_imports: bool = option(False, help=cli.TRUST_IMPORTS_HELP)

    def __post_init__(self) -> None:
        check_options(self)
        if self.format == "huggingface":
            if Path(self.output).exists():
                raise UsageError(f"--output {self.output} exists; delete it or choose another folder")
            if not Path(self.output).absolute().parent.is_dir():
                raise UsageError(f"--output {self.output}: folder {Path(self.output).absolute().parent} does not exist")
        else:
            cli.check_output(self.output)


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("export_model"),
        description="Write a trained model in the format of other programs, with the names of its classes and the "
        "preprocessing of its images. The result is kept only if its logits for random images agree with those of the "
        "model. Nothing is uploaded.",
        examples=(
            "--model train_output/model.pkl --format safetensors --output model.safetensors",
            "--model train_output/model.pkl --format onnx --output model.onnx",
        ),
    )
    add_options(p, ExportOptions)
    cli.add_import_option(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    options = from_args(ExportOptions, args)
    import_modules(args.imports)

    from domainbed.engine.export.base import export_model
    from domainbed.engine.model import load_model

    export_model(load_model(options.model, trust_imports=options.trust_imports), options.format, Path(options.output))
    print(f"Exported {options.model} to {options.output}; its logits agree with those of the model")


if __name__ == "__main__":
    cli.run(main)
