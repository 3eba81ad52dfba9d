"""Loaded models: names, features, images, and tensors that are refused."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.sma import SMA
from domainbed.datasets import DATASETS, ArrayEnvironment, MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.model import load_model, make_algorithm, save_model
from domainbed.engine.preprocessing import Preprocessing
from domainbed.engine.trained_model import TrainedModel
from domainbed.errors import UsageError
from tests.images import write_image, write_tree

CLASSES = ["car", "tram"]


class Pooled(Algorithm):
    """A classifier of mean colors without a featurizer."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.layer = torch.nn.Linear(input_shape[0], num_classes)

    def predict(self, x):
        return self.layer(x.mean((2, 3)))


class Doubled(Pooled):
    def forward(self, x):
        return 2 * self.predict(x)


class OneLogit(Pooled):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, 1, num_domains, hparams)


class Floats(MultipleDomainDataset):
    ENVIRONMENTS = ["one", "two"]
    SMALL_IMAGES = True
    input_shape = (1, 8, 8)
    num_classes = 2

    def __init__(self, root, test_envs, hparams, trial_seed):
        self.environments = [ArrayEnvironment(np.random.rand(9, 1, 8, 8), np.zeros(9, int)) for _ in range(2)]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with (
        ALGORITHMS.temporarily("Pooled", Pooled),
        ALGORITHMS.temporarily("Doubled", Doubled),
        ALGORITHMS.temporarily("OneLogit", OneLogit),
        DATASETS.temporarily("Floats", Floats),
    ):
        yield


def save(folder: Path, dataset: str, algorithm: str, data_dir: Path | str | None = None) -> Path:
    """Save a model with random weights, and return its file."""
    job = JobConfig(dataset, algorithm, (1,), data_dir=None if data_dir is None else str(data_dir))
    hparams = job.resolved_hparams()
    data = DATASETS[dataset](job.data_dir, job.test_envs, hparams, 0)
    torch.manual_seed(0)
    model = make_algorithm(job, hparams, data)
    save_model(folder / "model.pkl", job, data, job.environment_names(), model)
    return folder / "model.pkl"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a model of photos; it is trained on nothing."""
    tree = write_tree(tmp_path / "tree", {name: dict.fromkeys(CLASSES, 2) for name in ("day", "night")})
    return save(tmp_path, "Folder", "Pooled", tree)


def published_input(image: Image.Image) -> torch.Tensor:
    """Return the input of photo networks as torchvision computes it, [1, 3, 224, 224]."""
    resized = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return TF.normalize(TF.to_tensor(resized), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]


def test_file_has_the_names_and_the_preprocessing(photos: Path):
    saved = torch.load(photos, weights_only=True)
    assert saved["class_names"] == CLASSES
    assert saved["environments"] == ["day", "night"]
    assert saved["preprocessing"]["size"] == [224, 224]
    assert saved["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    model = load_model(photos)
    assert (model.class_names, model.environments) == (CLASSES, ["day", "night"])


def test_images_are_decoded_and_resized_as_in_evaluation(photos: Path, tmp_path: Path):
    model = load_model(photos)
    names = ["a.png", "b.jpg", "c.png"]
    for i, name in enumerate(names):
        write_image(tmp_path / name, seed=i, size=(50 + i, 300 - i))
    Image.open(tmp_path / "c.png").convert("LA").save(tmp_path / "c.png")
    opened = [Image.open(tmp_path / name) for name in names]
    expected = torch.cat([model.predict(published_input(image)).softmax(1) for image in opened])
    files: list = [str(tmp_path / "a.png"), tmp_path / "b.jpg", opened[2]]
    for images, batch_size in ((files, None), (files, 2), (opened, 1)):
        predictions = model.predict_images(images, batch_size)
        assert torch.allclose(predictions.probabilities, expected, atol=2e-3)  # PIL rounds differently
        assert predictions.classes == [CLASSES[i] for i in predictions.probabilities.argmax(1)]
    assert model.predict_images([]).probabilities.shape == (0, 2)


def test_real_image_gets_the_pixels_of_evaluation(pacs_dir: str):
    from domainbed.loading.base import Request
    from domainbed.loading.photo_feed import FileImages, PhotoEnvironment, PhotoFeed

    file = str(next(Path(pacs_dir, "PACS").rglob("*.jpg")))
    environment = PhotoEnvironment(FileImages([file]), [file], np.zeros(1, int), np.zeros(1, int))
    feed = PhotoFeed([environment], (224, 224), torch.device("cpu"), 0)
    [[(x, _)]] = feed.batches([[Request(0, np.zeros(1, int))]])
    preprocessing = Preprocessing((3, 224, 224), is_normalized=True)
    for image in (file, Image.open(file)):
        assert torch.equal(preprocessing.to_input(preprocessing.read_image(image)[None]), x)


def test_gray_and_colored_images_of_digits(tmp_path: Path):
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    gray = Preprocessing((1, 8, 8), is_normalized=False)
    assert torch.equal(
        gray.to_input(gray.read_image(Image.fromarray(pixels[:, :, 0]))),
        torch.from_numpy(pixels[None, :, :, 0]).div(255),
    )
    colored = Preprocessing((2, 8, 8), is_normalized=False).read_image(Image.fromarray(pixels))
    assert torch.equal(colored, torch.from_numpy(pixels).permute(2, 0, 1)[:2])
    with pytest.raises(UsageError, match="expects 4 channels"):
        Preprocessing((4, 8, 8), is_normalized=False).read_image(Image.fromarray(pixels))


def test_broken_images_are_named(photos: Path, tmp_path: Path):
    model = load_model(photos)
    (tmp_path / "broken.png").write_bytes(b"oops")
    with pytest.raises(UsageError, match=r"broken\.png is a broken image"):
        model.predict_images([tmp_path / "broken.png"])
    with pytest.raises(UsageError, match=r"cannot read .*missing\.png: No such file"):
        model.predict_images([tmp_path / "missing.png"])
    content = write_image(tmp_path / "whole.png") is not None and (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="image 1 is a broken image"):
        model.predict_images([Image.open(tmp_path / "whole.png"), Image.open(tmp_path / "half.png")])
    with pytest.raises(UsageError, match="expects a list"):
        model.predict_images(str(tmp_path / "whole.png"))
    with pytest.raises(UsageError, match="paths or PIL images, not ndarray"):
        model.predict_images([np.zeros((8, 8, 3), np.uint8)])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        model.predict_images([], batch_size=0)


def test_tensors_of_a_wrong_shape_or_range_are_refused(photos: Path, tmp_path: Path):
    model = load_model(photos)
    valid = published_input(Image.fromarray(write_image(tmp_path / "a.png")))
    assert torch.equal(model(valid), model.predict(valid))
    assert torch.equal(model.predict(valid), model.algorithm.predict(valid))
    white = published_input(Image.new("RGB", (9, 9), "white"))
    model.predict(white)  # has no negative value either
    model.predict(published_input(Image.new("RGB", (9, 9), "black")))
    assert model.predict(valid[:0]).shape == (0, 2)
    refused = {
        r"\[n, 3, 224, 224\], got \[1, 3, 300, 300\]": torch.randn(1, 3, 300, 300),
        r"got \[1, 1, 224, 224\]": torch.randn(1, 1, 224, 224),
        r"got \[3, 224, 224\]; add a batch dimension": valid[0],
        r"got \[1, 224, 224, 3\]; move the channels": valid.permute(0, 2, 3, 1),
        r"tensor of colors in \[0, 1\] that are normalized .* values from 0.25 to 0.7": torch.full(
            (1, 3, 224, 224), 0.25
        )
        .clamp_(0, 1)
        .index_fill_(1, torch.tensor([0]), 0.7),
        "values from 0 to 255": torch.randint(0, 256, (1, 3, 224, 224)).float(),
        "floating-point tensor .*, got torch.uint8": torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
        "not finite": valid.clone().fill_(torch.nan),
        "got ndarray": valid.numpy(),
    }
    for message, x in refused.items():
        for call in (model, model.predict):
            with pytest.raises(UsageError, match=message):
                call(x)
    with pytest.raises(UsageError, match="Pooled has no module `featurizer`"):
        model.features(valid)


def test_range_of_digits(tmp_path: Path):
    model = load_model(save(tmp_path, "RotatedDigits", "Pooled"))
    assert model.class_names == list("0123456789")
    model.predict(torch.rand(2, 1, 8, 8))
    for x in (torch.randn(2, 1, 8, 8), 255 * torch.rand(2, 1, 8, 8)):
        with pytest.raises(UsageError, match=r"with values in \[0, 1\], got values from"):
            model.predict(x)


def test_features_are_those_that_predict_uses(tmp_path: Path):
    model = load_model(save(tmp_path, "RotatedDigits", "SMA"))
    assert isinstance(model.algorithm, SMA)
    with torch.no_grad():
        for parameter in model.algorithm.network.parameters():
            parameter.add_(1)  # the last weights differ from their average
        x = torch.rand(3, 1, 8, 8)
        features = model.features(x)
        assert torch.equal(model.algorithm.average.network[1](features), model.predict(x))
        assert features.shape == (3, model.algorithm.featurizer.n_outputs)
        assert not model.algorithm.average.network[0]._forward_hooks
        assert not torch.equal(features, model.algorithm.featurizer(x))
        ARM = load_model(save(tmp_path, "RotatedDigits", "ARM"))
        assert torch.equal(ARM.algorithm.classifier(ARM.features(x)), ARM(x))
        assert ARM.EVAL_BATCH_SIZE == 64


def test_own_forward_is_kept(tmp_path: Path):
    model = load_model(save(tmp_path, "ColoredDigits", "Doubled"))
    x = torch.rand(3, 2, 8, 8)
    assert torch.equal(model(x), 2 * model.predict(x))


def test_images_of_low_contrast_are_classified(photos: Path):
    """All values of a foggy image may be in [0, 1], as those of tensors that were not normalized."""
    model = load_model(photos)
    assert model.predict_images([Image.new("RGB", (64, 64), (140, 140, 140))]).probabilities.shape == (1, 2)


def test_batch_whose_size_matters_is_not_halved(photos: Path, monkeypatch: pytest.MonkeyPatch):
    """Such as ARM's, on a small GPU: the predictions of half-batches would be others."""
    model = load_model(photos)
    pixels = torch.zeros(4, 3, 224, 224, dtype=torch.uint8)
    sizes = []

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return self.layer(x.mean((2, 3)))

    monkeypatch.setattr(Pooled, "predict", predict)
    assert model.class_probabilities(pixels).shape == (4, 2)
    assert sizes == [4, 2, 2]
    model.EVAL_BATCH_SIZE = 4
    with pytest.raises(torch.OutOfMemoryError):
        model.class_probabilities(pixels)


def test_single_logit_gives_two_probabilities(tmp_path: Path):
    model = load_model(save(tmp_path, "ColoredDigits", "OneLogit"))
    image = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    predictions = model.predict_images([image])
    logit = model.predict(torch.full((1, 2, 8, 8), 200 / 255))[0, 0]
    assert torch.allclose(predictions.probabilities, torch.stack([(-logit).sigmoid(), logit.sigmoid()])[None])
    assert predictions.classes == [model.class_names[int(logit > 0)]]


def test_models_without_names_or_preprocessing(tmp_path: Path):
    """As earlier versions saved them."""
    for dataset, is_known in (("ColoredDigits", True), ("Floats", False)):
        file = save(tmp_path, dataset, "Pooled")
        saved = torch.load(file, weights_only=True)
        for name in ("class_names", "environments", "preprocessing"):
            del saved[name]
        torch.save(saved, file)
        model = load_model(file)
        assert (model.class_names, model.environments) == (["0", "1"], [])
        assert (model.preprocessing == Preprocessing((2, 8, 8), is_normalized=False)) is is_known
    model.predict(torch.randn(2, 1, 8, 8))  # any range is valid
    with pytest.raises(UsageError, match="the preprocessing of Floats is unknown"):
        model.predict_images([])


def test_invalid_names_and_preprocessing_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = save(tmp_path, "ColoredDigits", "Pooled")
    saved = torch.load(file, weights_only=True)
    changed = {
        "3 class names for 2 classes": {"class_names": ["a", "b", "c"]},
        "TypeError": {"class_names": 3},
        "unknown preprocessing": {"preprocessing": saved["preprocessing"] | {"mean": [0.5, 0.5]}},
    }
    for message, entry in changed.items():
        torch.save(saved | entry, file)
        with pytest.raises(UsageError, match=message):
            load_model(file)
    monkeypatch.setattr(Floats, "class_names", ["one"])
    with pytest.raises(UsageError, match="Floats has 2 classes, but 1 class_names"):
        save(tmp_path, "Floats", "Pooled")


def test_loaded_model_has_the_algorithms_parameters(photos: Path):
    model = load_model(photos)
    assert isinstance(model, TrainedModel)
    assert [id(p) for p in model.parameters()] == [id(p) for p in model.algorithm.parameters()]
    assert model.hparams == model.algorithm.hparams
    assert not model.training
    assert not model.algorithm.training
