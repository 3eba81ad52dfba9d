"""A trained model for prediction on tensors, image files and PIL images."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.engine.evaluate import split_on_oom
from domainbed.engine.forward import recorded_outputs
from domainbed.engine.frozen import image_shape, to_inputs
from domainbed.engine.preprocessing import Preprocessing, check_input
from domainbed.errors import UsageError


class Predictions(NamedTuple):
    """The predictions for n images.

    Attributes:
        classes: [n], the name of the predicted class of each image.
        probabilities: [n, classes], float32 on the CPU; the columns have the order of `TrainedModel.class_names`.
    """

    classes: list[str]
    probabilities: torch.Tensor


class TrainedModel(Algorithm):
    """A trained algorithm in evaluation mode, with the names of its classes and the preprocessing of its images.

    In contrast to the algorithm's own `predict`, tensors of a wrong shape or range are errors.

    Attributes:
        algorithm: the algorithm itself.
        metadata: what the model's file contains besides weights (see `engine.model.save_model`).
        class_names: the names of the classes; their numbers if the model was saved without names.
        environments: the names of the dataset's environments; empty if the model was saved without them.
        preprocessing: that of images; None if it is unknown, as for datasets of floating-point arrays.
        input_shapes: the valid shapes of a tensor, without the dimension of the batch.

    Raises:
        UsageError: the metadata are invalid.
    """

    BATCH_SIZE = 32  # images per batch, if predictions do not depend on it

    def __init__(self, algorithm: Algorithm, metadata: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.algorithm = algorithm
        self.metadata = metadata
        self.hparams = metadata["model_hparams"]
        self.EVAL_BATCH_SIZE = getattr(algorithm, "EVAL_BATCH_SIZE", None)  # type: ignore[misc]
        n_classes = metadata["model_num_classes"]
        self.class_names = [str(name) for name in metadata.get("class_names") or range(n_classes)]
        if len(self.class_names) != n_classes:
            raise UsageError(f"{len(self.class_names)} class names for {n_classes} classes")
        self.environments = [str(name) for name in metadata.get("environments") or ()]
        self.preprocessing = Preprocessing.of_saved(metadata)
        # A model that was trained on features of a frozen backbone accepts these and images.
        self.input_shapes = list(dict.fromkeys([tuple(metadata["model_input_shape"]), image_shape(metadata)]))
        self.eval()

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [n, classes] of images [n, *input_shape].

        Raises:
            UsageError: the shape or the range is wrong; see `preprocessing.check_input`.
        """
        check_input(x, self.input_shapes, self.preprocessing)
        return self._predict(x)

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.algorithm.predict(to_inputs(x, self.metadata))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the algorithm's own `forward` does, or the logits if it has none."""
        if type(self.algorithm).forward is nn.Module.forward:
            return self.predict(x)
        check_input(x, self.input_shapes, self.preprocessing)
        return self.algorithm(to_inputs(x, self.metadata))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the featurizer in `predict`, [n, n_outputs].

        Raises:
            UsageError: the algorithm has no featurizer, or `predict` does not use it; or as in `predict`.
        """
        featurizer = getattr(self.algorithm, "featurizer", None)
        if not isinstance(featurizer, nn.Module):
            raise UsageError(f"{type(self.algorithm).__name__} has no module `featurizer`, so it has no features")
        with recorded_outputs(self.algorithm, featurizer) as outputs:
            self.predict(x)
        if not outputs:
            raise UsageError(f"{type(self.algorithm).__name__} does not use its featurizer in predict")
        return outputs[featurizer] if featurizer in outputs else next(iter(outputs.values()))

    @torch.no_grad()
    def predict_images(self, images: Iterable[str | Path | Image.Image], batch_size: int | None = None) -> Predictions:
        """Predict the classes of images of any size, decoded and resized as in evaluation.

        Args:
            images: files, or images opened or created with Pillow.
            batch_size: images per batch; by default EVAL_BATCH_SIZE, or 32.

        Raises:
            UsageError: an image cannot be read or decoded, or the preprocessing is unknown.
        """
        if isinstance(images, str | Path | Image.Image):
            raise UsageError("predict_images expects a list of images; pass [image] for a single one")
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        preprocessing = self.require_preprocessing()
        batch_size = batch_size or self.EVAL_BATCH_SIZE or self.BATCH_SIZE
        named = enumerate(images)
        parts = [torch.empty(0, len(self.class_names))]
        while batch := list(islice(named, batch_size)):
            pixels = [
                preprocessing.read_image(image, f"image {i}" if isinstance(image, Image.Image) else None)
                for i, image in batch
            ]
            parts.append(self.class_probabilities(torch.stack(pixels)))
        probabilities = torch.cat(parts)
        return Predictions([self.class_names[i] for i in probabilities.argmax(1).tolist()], probabilities)

    @torch.no_grad()
    def class_probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the probabilities [n, classes], on the CPU, of pixels from `preprocessing.read_image`, uint8."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        x = self.require_preprocessing().to_input(pixels.to(device))
        logits = (self._predict(x) if self.EVAL_BATCH_SIZE else split_on_oom(self._predict, x)).float()
        if logits.shape[1] == 1:  # the logit of class 1
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return logits.softmax(1).cpu()

    def require_preprocessing(self) -> Preprocessing:
        """Return the preprocessing. Raises UsageError if it is unknown."""
        if self.preprocessing is None:
            dataset = self.metadata["args"]["dataset"]
            raise UsageError(
                f"the preprocessing of {dataset} is unknown, because its images are arrays of floating-point numbers; "
                "pass tensors to predict"
            )
        return self.preprocessing
