"""A trained model as a model of Hugging Face; requires huggingface_hub.

HubModel.from_pretrained("my_folder").predict_images(["cat.jpg"])
"""

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin

from domainbed.engine.export.weights import load_weights, save_weights
from domainbed.engine.model import new_algorithm
from domainbed.engine.trained_model import TrainedModel


class HubModel(TrainedModel, PyTorchModelHubMixin, library_name="domainbed"):
    """A trained model that `from_pretrained` loads from a folder or a repository on the Hugging Face Hub.

    Args:
        config: the content of config.json: what the model's file contains besides weights.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(new_algorithm(config, "config.json"), config)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(self, save_directory / "model.safetensors")

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        load_weights(model, model_file)
        return model.to(map_location).eval()
