"""Exported models: their logits, their metadata, and what cannot be exported."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.erm import ERM
from domainbed.engine.export import EXPORT_FORMATS
from domainbed.engine.export.base import export_model
from domainbed.engine.model import load_model
from domainbed.errors import UsageError
from domainbed.scripts import export_model as command
from tests.engine.test_trained_model import save
from tests.optional import optional


class Noisy(ERM):
    """Predicts something else in each call."""

    calls = 0

    def predict(self, x):
        self.calls += 1
        return super().predict(x) + self.calls


class Branching(ERM):
    """Predicts with a branch that depends on the batch."""

    def predict(self, x):
        logits = super().predict(x)
        return logits if len(x) % 3 else -logits


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with ALGORITHMS.temporarily("Noisy", Noisy), ALGORITHMS.temporarily("Branching", Branching):
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path, "RotatedDigits", "ERM")


def run(model: Path, name: str, output: Path) -> None:
    command.main(["--model", str(model), "--format", name, "--output", str(output)])


def test_safetensors_have_each_shared_tensor_once(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    safetensors = optional("safetensors")
    run(model, "safetensors", tmp_path / "weights")
    assert "its logits agree with those of the model" in capsys.readouterr().out
    algorithm = load_model(model).algorithm
    with safetensors.safe_open(tmp_path / "weights", "pt") as file:
        metadata = json.loads(file.metadata()["domainbed.json"])
        state = algorithm.state_dict()
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in file.keys())  # noqa: SIM118
        assert len(file.keys()) == len(list(algorithm.parameters())) < len(state)
    assert metadata["class_names"] == list("0123456789")
    assert metadata["args"].keys() == {"dataset", "algorithm", "test_envs", "imports"}, "no paths"
    assert (tmp_path / "weights").stat().st_mode & 0o777 == model.stat().st_mode & 0o777


def test_hugging_face_folder(model: Path, tmp_path: Path):
    optional("huggingface_hub")
    from domainbed.engine.export.hub import HubModel

    run(model, "huggingface", tmp_path / "hub")
    assert {path.name for path in (tmp_path / "hub").iterdir()} >= {"config.json", "model.safetensors"}
    loaded, original = HubModel.from_pretrained(tmp_path / "hub"), load_model(model)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded.predict(x), original.predict(x))
    assert loaded.class_names == original.class_names
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "hub" / "config.json").read_text()
    with pytest.raises(UsageError, match=r"hub exists; delete it or choose another folder"):
        run(model, "huggingface", tmp_path / "hub")


def test_weights_of_channels_last_networks_can_be_exported(model: Path, tmp_path: Path):
    load_file = optional("safetensors.torch").load_file
    optional("huggingface_hub")
    loaded = load_model(model)
    loaded.algorithm.to(memory_format=torch.channels_last)
    expected = dict(loaded.algorithm.named_parameters())
    assert any(not tensor.is_contiguous() for tensor in expected.values())
    for name, file in (("safetensors", "safetensors"), ("huggingface", "huggingface/model.safetensors")):
        export_model(loaded, name, tmp_path / name)
        weights = {key.removeprefix("algorithm."): tensor for key, tensor in load_file(tmp_path / file).items()}
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())


def test_torchscript(model: Path, tmp_path: Path):
    run(model, "torchscript", tmp_path / "program.pt")
    extra = {"domainbed.json": ""}
    program = torch.jit.load(tmp_path / "program.pt", _extra_files=extra)
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(program(x), load_model(model).predict(x), atol=1e-5)
    assert json.loads(extra["domainbed.json"])["preprocessing"]["size"] == [8, 8]


@pytest.mark.slow
def test_torch_export(model: Path, tmp_path: Path):
    run(model, "torch_export", tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    for n in (1, 5):
        x = torch.rand(n, 1, 8, 8)
        assert torch.allclose(program(x), load_model(model).predict(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.extras
def test_onnx(model: Path, tmp_path: Path):
    optional("onnx")
    optional("onnxscript")
    onnxruntime = optional("onnxruntime")
    run(model, "onnx", tmp_path / "program.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "program.onnx")
    assert "class_names" in session.get_modelmeta().custom_metadata_map["domainbed.json"]
    x = torch.rand(5, 1, 8, 8)
    (logits,) = session.run(["logits"], {"images": x.numpy()})
    assert torch.allclose(torch.from_numpy(logits), load_model(model).predict(x), atol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("ARM", "cannot export ARM as torchscript, because its predictions depend on how images are batched"),
        ("Noisy", "cannot export Noisy as torchscript: logits differ"),
        ("Branching", "cannot export Branching as torchscript: logits differ"),
    ],
)
def test_programs_with_other_logits_are_not_kept(tmp_path: Path, algorithm: str, message: str):
    model = save(tmp_path, "RotatedDigits", algorithm)
    (tmp_path / "old.pt").write_text("previous content")
    with pytest.raises(UsageError, match=message):
        run(model, "torchscript", tmp_path / "old.pt")
    assert (tmp_path / "old.pt").read_text() == "previous content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pkl", "old.pt"]


def test_missing_packages_and_formats_are_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("domainbed.engine.export.base.find_spec", lambda name: None)
    for name in ("onnx", "safetensors", "huggingface"):
        with pytest.raises(UsageError, match=rf"--format {name} requires .*; run pip install 'domainbed\[export\]'"):
            run(model, name, tmp_path / "output")
    with pytest.raises(UsageError, match="unknown format 'onx'; did you mean onnx"):
        run(model, "onx", tmp_path / "output")
    assert not (tmp_path / "output").exists()
    assert len(EXPORT_FORMATS) == 5


def test_unwritable_outputs_are_reported(model: Path, tmp_path: Path):
    for name in ("torchscript", "huggingface"):
        with pytest.raises(UsageError, match=r"folder .*missing does not exist"):
            run(model, name, tmp_path / "missing" / "output")
    with pytest.raises(UsageError, match="is a folder; specify a file"):
        run(model, "torchscript", tmp_path)
