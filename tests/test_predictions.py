"""The file of predictions: what is written is read, and damaged or hostile files are errors of one kind."""

import io
import tracemalloc
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed import predictions
from domainbed.predictions import (
    DTYPES,
    PREDICTIONS_FILE,
    DamagedError,
    Predictions,
    load_predictions,
    read_predictions,
    save_predictions,
)


def example(n: int = 6, n_classes: int = 3) -> Predictions:
    rng = np.random.RandomState(0)
    logits = rng.randn(2, n, n_classes)
    lse = np.log(np.exp(logits).sum(-1))
    predicted, logarithms = logits.argmax(-1), logits - lse[..., None]
    predicted[0, 1], logarithms[0, 1], lse[0, 1] = -1, np.nan, np.nan
    arrays = {
        "environment": np.arange(n) // 3,
        "index": np.arange(n) % 3,
        "part": rng.randint(0, 2, n),
        "label": rng.randint(0, n_classes, n),
        "steps": np.array([3, 6]),
        "predicted": predicted,
        "log_probabilities": logarithms,
        "logsumexp": lse,
    }
    arrays = {name: array.astype(DTYPES[name]) for name, array in arrays.items()}
    images = np.array([f"dog/ü{i}.png" for i in range(n)])
    return Predictions(("a", "b"), ("dog", "cat", "cow")[:n_classes], image=images, **arrays)


def content(saved: Predictions, tmp_path: Path) -> bytes:
    save_predictions(tmp_path, saved)
    return (tmp_path / PREDICTIONS_FILE).read_bytes()


def test_what_is_saved_is_loaded(tmp_path: Path):
    saved = example()
    first = content(saved, tmp_path)
    loaded = load_predictions(tmp_path)
    for f in fields(Predictions):
        np.testing.assert_array_equal(getattr(loaded, f.name), getattr(saved, f.name))
    assert content(loaded, tmp_path) == first
    with np.load(tmp_path / PREDICTIONS_FILE) as arrays:  # as a user would
        assert arrays["log_probabilities"].shape == (2, 6, 3)


def test_missing_file_and_pipe(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_predictions(tmp_path)
    (tmp_path / PREDICTIONS_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        load_predictions(tmp_path)


BYTES = [b""]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_rejected_or_intact(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    if not BYTES[0]:
        BYTES[0] = content(example(), tmp_path_factory.mktemp("file"))
    damaged = bytearray(BYTES[0])
    kind = data.draw(st.sampled_from(["flip", "cut", "zero"]))
    at = data.draw(st.integers(0, len(damaged) - 1))
    if kind == "flip":
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del damaged[at:]
    else:
        damaged[at : at + 40] = bytes(len(damaged[at : at + 40]))
    try:
        loaded = read_predictions(io.BytesIO(bytes(damaged)))
    except DamagedError:
        return
    for f in fields(Predictions):  # what changed is not read, such as the date of a member
        np.testing.assert_array_equal(getattr(loaded, f.name), getattr(example(), f.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.array([0, 0, 0, 0, 0, 3], np.int32)}, "label is out of range"),
        ({"environment": np.array([0, 0, 0, 1, 1, 2], np.int16)}, "environment is out of range"),
        ({"predicted": np.full((2, 6), -2, np.int32)}, "predicted is out of range"),
        ({"index": np.zeros(6, np.int32)}, "out of order"),
        ({"steps": np.array([6, 3])}, "out of order"),
        ({"label": np.zeros(5, np.int32)}, r"label has the shape \(5,\)"),
        ({"label": np.zeros(6, np.float32)}, "label has the type float32"),
        ({"image": np.zeros(6, np.int32)}, "image has the type int32"),
        ({"log_probabilities": np.full((2, 6, 3), np.nan, np.float16)}, "not finite"),
        ({"log_probabilities": np.zeros((2, 6, 2), np.float16)}, "log_probabilities has the shape"),
    ],
)
def test_inconsistent_arrays_are_rejected(tmp_path: Path, change: dict, message: str):
    save_predictions(tmp_path, replace(example(), **change))
    with pytest.raises(DamagedError, match=message):
        load_predictions(tmp_path)


def with_member(name: str, data: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", data)
    return file


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_pickled_objects_are_never_loaded():
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedError, match="it contains Python objects"):
        read_predictions(with_member("names", file.getvalue()))


def test_bombs_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predictions, "MAX_SIZE", 2**20)
    with pytest.raises(DamagedError, match="more than 1,048,576 bytes"):
        read_predictions(with_member("names", bytes(2**21)))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<U9", "fortran_order": False, "shape": (2**50,)})
    tracemalloc.start()
    with pytest.raises(DamagedError):
        read_predictions(with_member("names", header.getvalue()))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_names_cannot_control_the_terminal(tmp_path: Path):
    evil = "\x1b[2J"
    save_predictions(tmp_path, replace(example(), image=np.array([evil] * 6), environments=(evil, "b")))
    loaded = load_predictions(tmp_path)
    assert set(loaded.image) == {"\\x1b[2J"}
    assert loaded.environments[0] == "\\x1b[2J"


def test_other_formats_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predictions, "FORMAT", 2)
    save_predictions(tmp_path, example())
    monkeypatch.undo()
    with pytest.raises(DamagedError, match="it has format 2, and this version of domainbed reads 1"):
        load_predictions(tmp_path)
