"""Tests of jobs with a frozen backbone: features, jobs without images, staleness, rejected combinations."""

import copy
import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from domainbed import backbones
from domainbed.algorithms import ALGORITHMS
from domainbed.backbones import Backbone
from domainbed.engine import frozen
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.data import Batches, load_data
from domainbed.engine.ensemble import evaluate_ensemble
from domainbed.engine.export.base import export_model
from domainbed.engine.export.weights import HuggingFace, Safetensors
from domainbed.engine.feed import open_feed
from domainbed.engine.frozen import extract_features, frozen_backbone, weights_hash
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.model import load_model
from domainbed.engine.setup import set_up
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams, resolve_hparams
from domainbed.landscape.measure import measure_landscape
from domainbed.loading.augmentation import NUM_UNIFORMS, Augmentation, augment, normalize, resized_crop, to_bytes
from domainbed.loading.decode import decode
from domainbed.loading.feature_store import feature_folder
from domainbed.loading.sampling import draw_uniforms
from domainbed.records import read_job
from domainbed.seeding import seed_hash
from domainbed.sweep import preflight
from domainbed.sweep.grid import Grid
from domainbed.sweep.measurement import Timing
from tests.images import write_dataset, write_image

CPU = torch.device("cpu")
HPARAMS = {"backbone": "resnet18", "frozen": True, "batch_size": 4, "mlp_width": 8}


class TinyNetwork(nn.Module):
    """A network with the statistics of a batch norm, in place of pretrained ones."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, 6, 16, 16), nn.BatchNorm2d(6)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the backbones random weights, which depend on their names."""

    def find(name: str) -> backbones._PretrainedNetwork:
        return backbones._PretrainedNetwork(lambda _: (TinyNetwork(len(name)), 6), (0.5,) * 3, (0.25,) * 3)

    monkeypatch.setattr(backbones, "_find_network", find)
    frozen._backbone.cache_clear()
    yield
    frozen._backbone.cache_clear()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", "PACS", per_class=1)
    return tmp_path / "data"


def make_config(data_dir: Path, **changes) -> JobConfig:
    hparams = HPARAMS | changes.pop("hparams", {})
    defaults = {"steps": 3, "checkpoint_freq": 2, "test_envs": (1,), "algorithm": "ERM"}
    return JobConfig(
        dataset="PACS",
        data_dir=str(data_dir),
        output_dir=str(data_dir.parent / "job"),
        cache=str(data_dir.parent / "cache"),
        hparams=json.dumps(hparams),
        **{**defaults, **changes},
    )


def features_of(config: JobConfig):
    hparams = config.resolved_hparams()
    dataset, _ = load_data(config, hparams)
    return dataset, extract_features(config, hparams, dataset, CPU)


def plain_features(dataset, env: int, view: int) -> np.ndarray:
    """Return the features of a plain loop over the images."""
    backbone = Backbone(3, {"backbone": "resnet18"}).eval()
    rows = []
    for i, file in enumerate(dataset[env].files):
        image = torch.from_numpy(decode((dataset[env].folder / file).read_bytes(), file))
        height, width = image.shape[:2]
        if view:
            uniform = draw_uniforms(seed_hash("feature_views", view), i, i + 1, NUM_UNIFORMS)
            augmentation = Augmentation(uniform)
            crop = resized_crop(image, augmentation.crop(0, height, width), (224, 224))
            crop = to_bytes(augment(crop[None].float(), augmentation))
        else:
            crop = resized_crop(image, (0, 0, height, width), (224, 224))[None]
        with torch.no_grad():
            rows.append(backbone(normalize(crop)))
    return torch.cat(rows).numpy()


def test_features_equal_a_plain_loop_bit_for_bit(data_dir: Path):
    dataset, features = features_of(make_config(data_dir, hparams={"feature_views": 1}))
    assert features.input_shape == (6,)
    for env, environment in enumerate(features):
        assert len(environment.views) == (1 if env == 1 else 2)  # the test environment is not augmented
        assert np.array_equal(environment.labels, dataset[env].labels)
        for view, values in enumerate(environment.views):
            assert values.tobytes() == plain_features(dataset, env, view).tobytes(), (env, view)


def test_job_needs_no_image_once_the_features_are_stored(data_dir: Path):
    config = make_config(data_dir)
    train(config)
    records, _ = read_job(Path(config.output_dir))
    for file in data_dir.rglob("*.png"):  # unreadable, but with the same size and time
        stat = file.stat()
        file.write_bytes(b"x" * stat.st_size)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = make_config(data_dir, save_every=5.0)
    train(JobConfig(**{**vars(again), "output_dir": str(data_dir.parent / "again")}))
    others, _ = read_job(data_dir.parent / "again")
    ignored = ("step_time", "args")
    assert [{k: v for k, v in r.items() if k not in ignored} for r in records] == [
        {k: v for k, v in r.items() if k not in ignored} for r in others
    ]


def test_replaced_file_is_noticed(data_dir: Path):
    config = make_config(data_dir)
    _, before = features_of(config)
    file = next(iter(sorted(data_dir.rglob("*.png"))))
    write_image(file, seed=999)
    dataset, after = features_of(config)
    assert [e.views[0].tobytes() for e in after] != [e.views[0].tobytes() for e in before]
    assert all(e.views[0].tobytes() == plain_features(dataset, i, 0).tobytes() for i, e in enumerate(after))


def test_backbones_share_a_folder(data_dir: Path):
    _, first = features_of(make_config(data_dir))
    _, second = features_of(make_config(data_dir, hparams={"backbone": "another network"}))
    _, third = features_of(make_config(data_dir))
    assert [e.views[0].tobytes() for e in first] == [e.views[0].tobytes() for e in third]
    assert [e.views[0].tobytes() for e in first] != [e.views[0].tobytes() for e in second]
    assert len(list(feature_folder(make_config(data_dir).cache).glob("*.features"))) == 8


def test_other_weights_have_other_features(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    _, first = features_of(make_config(data_dir))
    frozen._backbone.cache_clear()
    other = backbones._PretrainedNetwork(lambda _: (TinyNetwork(99), 6), (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(backbones, "_find_network", lambda name: other)
    _, second = features_of(make_config(data_dir))
    assert [e.views[0].tobytes() for e in first] != [e.views[0].tobytes() for e in second]


def test_weights_hash_covers_parameters_and_buffers():
    """Also those that are not saved: the normalization of the images."""
    backbone = frozen_backbone(default_hparams("ERM", "PACS"), None)
    tensors = [*backbone.parameters(), *backbone.buffers()]
    assert len(tensors) > len(backbone.state_dict())
    hashes = {weights_hash.__wrapped__(backbone)}
    for tensor in tensors:
        tensor.add_(1)
        hashes.add(weights_hash.__wrapped__(backbone))
    assert len(hashes) == len(tensors) + 1


def test_copy_of_the_dataset_has_the_same_features(data_dir: Path):
    """Such as on the disk of each node."""
    _, first = features_of(make_config(data_dir))
    copy = data_dir.parent / "copy"
    shutil.copytree(data_dir, copy)  # with the times of the files
    _, second = features_of(replace(make_config(data_dir), data_dir=str(copy)))
    assert [e.views[0].filename for e in first] == [e.views[0].filename for e in second]


def test_job_does_not_continue_on_features_of_other_weights(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    config = make_config(data_dir)
    with pytest.raises(Interrupted):
        train(config, JobControl(should_stop=lambda: (data_dir.parent / "job" / "results.jsonl").exists()))
    frozen._backbone.cache_clear()
    other = backbones._PretrainedNetwork(lambda _: (TinyNetwork(99), 6), (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(backbones, "_find_network", lambda name: other)
    with pytest.raises(UsageError, match="the weights of the frozen backbone are not those with which"):
        train(config)


def test_records_name_the_weights_of_the_backbone(data_dir: Path):
    config = make_config(data_dir)
    train(config)
    records, _ = read_job(Path(config.output_dir))
    assert {r["backbone_weights"] for r in records} == {weights_hash(frozen_backbone(records[0]["hparams"], None))[:16]}


def test_creating_the_backbone_does_not_advance_the_jobs_generator(data_dir: Path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    features_of(make_config(data_dir))
    assert torch.equal(torch.rand(1), expected)


def test_augmented_views_are_drawn_for_training_environments_alone(data_dir: Path):
    config = make_config(data_dir, hparams={"feature_views": 3})
    hparams = config.resolved_hparams()
    dataset, splits = load_data(config, hparams)
    features = extract_features(config, hparams, dataset, CPU)
    feed = open_feed(config, features, splits, CPU)
    seen = [set(), set(), set()]
    for minibatches, _ in Batches(config, hparams, features, splits, feed).steps(0, 50):
        for env, (x, y), found in zip((0, 2, 3), minibatches, seen, strict=True):
            for row, label in zip(x.numpy(), y.tolist(), strict=True):
                matches = [
                    (view, i)
                    for view, values in enumerate(features[env].views)
                    for i in np.nonzero((values == row).all(1))[0]
                ]
                assert matches
                assert all(features[env].labels[i] == label for _, i in matches)
                assert any(i in splits[env].in_ for _, i in matches)
                found.update(view for view, _ in matches)
    assert seen == [{1, 2, 3}] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "ARM"}, "ARM requires images, not the features of a frozen backbone"),
        ({"algorithm": "MIRO"}, "MIRO requires images, not the features of a frozen backbone"),
        ({"algorithm": "SagNet", "hparams": {"linear_probe": True}}, "SagNet requires a trained featurizer"),
        ({"algorithm": "TRM", "hparams": {"linear_probe": True}}, "TRM requires a trained featurizer"),
        ({"cache_gb": 0.0}, "increase --cache_gb"),
        ({"hparams": {"pretrained": False}}, "a frozen backbone requires pretrained weights"),
        ({"algorithm": "ADRMX", "hparams": {"linear_probe": True}}, "ADRMX requires a trained featurizer"),
        ({"algorithm": "SelfReg", "hparams": {"batch_size": 1}}, "SelfReg requires a batch_size of at least 2"),
        ({"hparams": {"feature_views": 2, "data_augmentation": False}}, '"feature_views" are augmented'),
        ({"precision": "bf16"}, "--precision bf16 does not apply to the features"),
        ({"hparams": {"linear_probe": True}, "compile": "on"}, "ERM has no featurizer that can be compiled"),
        ({"hparams": {"feature_dtype": "int8"}}, "feature_dtype must be one of float32, float16"),
        ({"on_bad_image": "skip"}, "cannot replace broken images"),
    ],
    ids=str,
)
def test_impossible_combinations_are_rejected(data_dir: Path, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        train(make_config(data_dir, **changes))
    assert not (data_dir.parent / "job").exists()
    if "compile" not in changes:
        assert not list(feature_folder(make_config(data_dir).cache).glob("*")), "nothing is extracted in vain"


def test_extraction_can_be_stopped(data_dir: Path):
    """What is stopped while it extracts features gives the same records when it is resumed."""
    config = make_config(data_dir)
    for n in (1, 10, 20):
        asked = itertools.count()
        with pytest.raises(Interrupted):
            train(config, JobControl(should_stop=lambda n=n, asked=asked: next(asked) > n))
        assert not (data_dir.parent / "job" / "results.jsonl").exists()
    train(config)
    records = read_job(data_dir.parent / "job")[0]
    train(replace(config, output_dir=str(data_dir.parent / "other"), cache=str(data_dir.parent / "other cache")))
    undisturbed = read_job(data_dir.parent / "other")[0]
    assert [record["loss"] for record in records] == [record["loss"] for record in undisturbed]
    assert [record["env0_in_acc"] for record in records] == [record["env0_in_acc"] for record in undisturbed]


def test_digits_have_no_backbone_to_freeze():
    with pytest.raises(UsageError, match="ERM has no hyperparameter 'frozen'"):
        JobConfig(
            dataset="ColoredDigits", algorithm="ERM", test_envs=(0,), hparams='{"frozen": true}'
        ).resolved_hparams()


def test_mlp_and_linear_probe(data_dir: Path):
    mlp = set_up(make_config(data_dir), lambda: False).algorithm
    assert [tuple(p.shape) for p in mlp.network.parameters() if p.ndim == 2] == [(8, 6), (8, 8), (8, 8), (7, 8)]
    probe = set_up(make_config(data_dir, hparams={"linear_probe": True}), lambda: False).algorithm
    assert [tuple(p.shape) for p in probe.network.parameters()] == [(7, 6), (7,)]


def test_model_predicts_from_images_and_from_features(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    config = make_config(data_dir)
    train(config)
    model = load_model(data_dir.parent / "job/model.pkl")
    dataset, features = features_of(config)
    image = torch.from_numpy(decode((dataset[0].folder / dataset[0].files[0]).read_bytes(), "image"))
    x = normalize(resized_crop(image, (0, 0, *image.shape[:2]), (224, 224))[None])
    with torch.no_grad():
        from_images = model.predict(x)
        from_features = model.predict(torch.from_numpy(features[0].views[0][:1]))
    assert torch.equal(from_images, from_features)
    assert from_images.shape == (1, 7)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
        assert not changed.predict(x).any(), "a copy predicts with its own weights"

    frozen._backbone.cache_clear()
    other = backbones._PretrainedNetwork(lambda _: (TinyNetwork(99), 6), (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(backbones, "_find_network", lambda name: other)
    with pytest.raises(UsageError, match="the weights of resnet18 on this machine are not those"):
        model.predict(x)
    assert torch.equal(model.predict(torch.from_numpy(features[0].views[0][:1])), from_features)  # without the backbone


def test_rounded_features_are_those_that_models_predict_from(data_dir: Path):
    config = make_config(data_dir, hparams={"feature_dtype": "float16"})
    train(config)
    model = load_model(data_dir.parent / "job/model.pkl")
    dataset, features = features_of(config)
    image = torch.from_numpy(decode((dataset[0].folder / dataset[0].files[0]).read_bytes(), "image"))
    x = normalize(resized_crop(image, (0, 0, *image.shape[:2]), (224, 224))[None])
    stored = torch.from_numpy(features[0].views[0][:1])
    assert stored.dtype == torch.float16
    with torch.no_grad():
        assert torch.equal(model.predict(x), model.predict(stored.float()))
    export_model(model, "torchscript", data_dir.parent / "torchscript")
    torch.testing.assert_close(torch.jit.load(data_dir.parent / "torchscript")(x), model.predict(x), rtol=0, atol=1e-3)


def test_models_of_other_inputs_are_not_combined(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(data_dir.parent / "home"))  # landscapes do not use the job's cache
    config = make_config(data_dir)
    train(config)
    path = data_dir.parent / "job/model.pkl"
    saved = torch.load(path)
    for weights in ("others", None):
        torch.save({**saved, "backbone_weights": weights}, path)
        with pytest.raises(UsageError, match="was trained on other inputs than those here"):
            evaluate_ensemble(config, [path], averages_weights=False, is_restricted=False)
        with pytest.raises(UsageError, match="was trained on other inputs than those here"):
            measure_landscape(path)


def test_programs_contain_the_backbone(data_dir: Path):
    """Weights are exported without it, but predict from images as well."""
    train(make_config(data_dir))
    model = load_model(data_dir.parent / "job" / "model.pkl")
    x = normalize(torch.rand(2, 3, 224, 224))
    expected = model.predict(x)
    for name in ("torchscript", "torch_export"):
        export_model(model, name, data_dir.parent / name)
    torch.testing.assert_close(torch.jit.load(data_dir.parent / "torchscript")(x), expected)
    torch.testing.assert_close(torch.export.load(data_dir.parent / "torch_export").module()(x), expected)
    for name in ("safetensors", "huggingface"):
        export_model(model, name, data_dir.parent / name)
    torch.testing.assert_close(Safetensors().read(data_dir.parent / "safetensors")(x), expected)
    torch.testing.assert_close(HuggingFace().read(data_dir.parent / "huggingface")(x), expected)


def test_ensemble_of_models_on_features(data_dir: Path):
    configs = [replace(make_config(data_dir), output_dir=str(data_dir.parent / f"job{i}"), seed=i) for i in range(2)]
    for config in configs:
        train(config)
    paths = [Path(config.output_dir, "model.pkl") for config in configs]
    evaluation = evaluate_ensemble(configs[0], paths[:1], averages_weights=False, is_restricted=False)
    last = read_job(Path(configs[0].output_dir))[0][-1]
    assert evaluation.accuracies == {name: last[name] for name in evaluation.accuracies}
    assert evaluate_ensemble(configs[0], paths, averages_weights=True, is_restricted=False).members == [0, 1]


def test_launch_checks_jobs_without_extracting_features(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frozen, "extract_features", None)
    monkeypatch.setattr(preflight, "call_with_torch", lambda function, *args: function(*args))
    configs = [make_config(data_dir, algorithm=name) for name in ("ERM", "ARM", "Fishr")]
    [error], _ = preflight.find_errors(configs, Timing(set(), 0.0, only_quick=True))
    assert error == "ARM on PACS: ARM requires images, not the features of a frozen backbone"
    assert not (data_dir.parent / "cache").exists()


def test_groups_leave_out_algorithms_that_require_images(data_dir: Path):
    grid = Grid(
        datasets=("PACS",), algorithms=("all",), job_args={"data_dir": str(data_dir), "hparams": '{"frozen": true}'}
    )
    expanded, lines = grid.expand_groups()
    assert {line.split()[1] for line in lines} == {"ARM", "MIRO"}
    assert {job.config.algorithm for job in expanded.jobs(data_dir)} == set(ALGORITHMS) - {"ARM", "MIRO"}


def test_hyperparameters_of_the_mlp_are_those_of_dann():
    draws = [resolve_hparams(name, "PACS", 3, 1, '{"frozen": true}') for name in ("ERM", "DANN")]
    erm, dann = ({k: v for k, v in draw.items() if k.startswith("mlp_")} for draw in draws)
    assert erm == dann
    assert len(erm) == 3
