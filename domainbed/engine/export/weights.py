"""Formats of weights, for the classes of this package."""

import contextlib
import io
import json
from pathlib import Path

from torch import nn

from domainbed.engine.export.base import METADATA, ExportFormat, Predict, public_metadata
from domainbed.engine.model import new_algorithm
from domainbed.engine.trained_model import TrainedModel


class Safetensors(ExportFormat):
    """The state of the algorithm, in which each shared tensor occurs once, and the metadata as JSON."""

    REQUIRES = ("safetensors",)

    def write(self, model: TrainedModel, path: Path) -> None:
        save_weights(model.algorithm, path, {METADATA: json.dumps(public_metadata(model))})

    def read(self, path: Path) -> Predict:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()[METADATA])
        algorithm = new_algorithm(metadata, path)
        load_weights(algorithm, path)
        return TrainedModel(algorithm, metadata).predict


class HuggingFace(ExportFormat):
    """A folder with config.json and model.safetensors, which `hub.HubModel` loads."""

    REQUIRES = ("huggingface_hub", "safetensors")
    IS_FOLDER = True

    def write(self, model: TrainedModel, path: Path) -> None:
        from domainbed.engine.export.hub import HubModel

        exported = HubModel(public_metadata(model))
        exported.algorithm = model.algorithm
        exported.save_pretrained(path)

    def read(self, path: Path) -> Predict:
        from domainbed.engine.export.hub import HubModel

        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line
            return HubModel.from_pretrained(path).predict


def save_weights(module: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Save the state of a module as safetensors. Unlike safetensors' `save_model`, supports channels_last tensors."""
    from safetensors.torch import save

    state, names = module.state_dict(), unique_names(module)
    path.write_bytes(save({name: state[name].contiguous() for name in set(names.values())}, metadata))


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load what `save_weights` saved."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    module.load_state_dict({name: tensors[first] for name, first in unique_names(module).items()})


def unique_names(module: nn.Module) -> dict[str, str]:
    """Return the first name of the tensor behind each name of a module's state, such as a layer of two networks."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}
