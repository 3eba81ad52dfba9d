"""The command `predict`: its formats, its order, and broken images."""

import json
from pathlib import Path

import pandas as pd
import pytest

from domainbed.engine.model import load_model
from domainbed.errors import UsageError
from domainbed.scripts import predict
from tests.engine.test_trained_model import save
from tests.images import write_image


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save(tmp_path, "RotatedDigits", "ERM"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with four images, one of them in a subfolder, and other files."""
    for i, name in enumerate(("b.png", "a.jpg", "sub/c.png", "=1+2.png")):
        write_image(tmp_path / "images" / name, i)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / "._b.png").write_text("not an image either")
    return tmp_path / "images"


def test_table_csv_and_json_agree(model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    names = [str(images / name) for name in ("=1+2.png", "a.jpg", "b.png", "sub/c.png")]
    predictions = load_model(model).predict_images(names)
    top = predictions.probabilities.topk(2)
    words = ["--model", model, str(images), "--top", "2", "--batch_size", "3"]
    assert predict.main([*words, "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [entry["path"] for entry in content] == names
    for i, entry in enumerate(content):
        assert [p["class"] for p in entry["predictions"]] == [str(c) for c in top.indices[i].tolist()]
        assert [p["probability"] for p in entry["predictions"]] == pytest.approx(top.values[i].tolist(), abs=1e-6)
        assert entry["predictions"][0]["class"] == predictions.classes[i]
    output = tmp_path / "predictions.csv"
    assert predict.main([*words, "--format", "csv", "--output", str(output)]) == 0
    assert capsys.readouterr().out == ""
    frame = pd.read_csv(output)
    assert list(frame.columns) == ["path", "class", "probability"]
    assert list(frame["path"]) == [name for name in names for _ in range(2)]
    assert predict.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["path", "class", "probability"]
    assert [line.split()[0] for line in lines[2:]] == list(frame["path"])
    assert float(lines[2].split()[-1]) == pytest.approx(frame["probability"][0], abs=1e-4)


def test_broken_images_are_skipped(model: str, images: Path, capsys: pytest.CaptureFixture):
    (images / "a.jpg").write_bytes((images / "a.jpg").read_bytes()[:100])
    (images / "\x1b[31m.png").write_bytes(b"")
    assert predict.main(["--model", model, str(images), "--format", "json"]) == 1
    captured = capsys.readouterr()
    assert [Path(entry["path"]).name for entry in json.loads(captured.out)] == ["=1+2.png", "b.png", "c.png"]
    assert "a.jpg is a broken image" in captured.err
    assert "\\x1b[31m.png is a broken image (the file is empty); skipped" in captured.err
    assert predict.main(["--model", model, str(images / "a.jpg")]) == 1
    assert capsys.readouterr().out.split()[:3] == ["path", "class", "probability"]
    assert predict.main(["--model", model, str(images / "a.jpg"), "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_arguments_are_checked_first(model: str, images: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["missing.png"], "no such file or folder: 'missing.png'"),
        ([str(tmp_path / "empty")], "has no images"),
        ([str(images), "--top", "0"], "--top must be at least 1"),
        ([str(images), "--batch_size", "0"], "--batch_size must be at least 1"),
        ([str(images), "--output", str(tmp_path)], "is a folder"),
        ([str(images), "--format", "xml"], "invalid --format 'xml'"),
    ):
        with pytest.raises(UsageError, match=message):
            predict.main(["--model", model, *words])
    assert predict.main(["--model", model, str(images / "b.png"), "--top", "99"]) == 0
