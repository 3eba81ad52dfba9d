"""Contact sheets: which images are shown, that pictures are those of the images, and images that cannot be read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState
from PIL import Image

from domainbed.analysis import thumbnails
from domainbed.analysis.measures import find_extremes, measure_run
from domainbed.analysis.sheets import ALL_FAIL, COLUMNS, ONE_SOLVES, choose_images, draw_sheets, make_sheets, plot_sheet
from domainbed.analysis.tables import images_table
from domainbed.analysis.thumbnails import SIZE, ImageKey, ImageSource, open_source
from domainbed.datasets import ArrayEnvironment, MultipleDomainDataset, get_dataset_class, mnist
from domainbed.errors import UsageError
from domainbed.loading.decode import to_rgb
from domainbed.reporting.load import load_sweep
from tests.analysis.test_measures import CLASSES, make_run
from tests.conftest import make_record, write_sweep
from tests.images import write_dataset, write_image


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 25))
def test_chosen_images_equal_brute_force(seed: int, n: int):
    """Again and again, each group gives its most confident remaining error."""
    rng = RandomState(seed)
    groups = ["b", "a", "c"][: rng.randint(1, 4)]
    rows = pd.DataFrame({"label": rng.choice(groups, rng.randint(1, 30))})
    rows["confidence"] = rng.permutation(len(rows)) / len(rows)
    rows["image"] = [f"{i}.png" for i in range(len(rows))]
    remaining = {
        group: sorted(rows[rows["label"] == group].to_dict("records"), key=lambda row: -row["confidence"])
        for group in groups
    }
    chosen = []
    while any(remaining.values()) and len(chosen) < n:
        of_round = [images.pop(0) for images in remaining.values() if images]
        chosen += sorted(of_round, key=lambda row: -row["confidence"])[: n - len(chosen)]
    chosen.sort(key=lambda row: (groups.index(row["label"]), -row["confidence"]))
    shuffled = rows.sample(frac=1, random_state=rng)
    assert choose_images(shuffled, "label", groups, n).to_dict("records") == chosen


class MadeSection:
    """Algorithms on two test environments in two trials; what sheets need of a section."""

    selection, dataset, title = "training-domain", "Made", "Made"

    def __init__(self, algorithms: list[str]) -> None:
        rng = RandomState(0)
        self.algorithms = algorithms
        keys = [(name, env, trial) for name in algorithms for env in range(2) for trial in range(2)]
        self.runs = [measure_run(make_run(*key, rng)) for key in keys]
        self.extremes = find_extremes(self.runs, algorithms)
        self.tables = [images_table(self.extremes, self.runs, ["env0", "env1"])]


def test_sheets_are_those_of_the_table():
    section = MadeSection(["ERM", "CORAL"])
    sheets = list(make_sheets(section, 3))
    assert [(sheet.kind, sheet.rows["test_env"].iloc[0]) for sheet in sheets] == [
        (kind, env) for env in range(2) for kind in (ALL_FAIL, ONE_SOLVES)
    ]
    for sheet in sheets:
        is_failed = (section.extremes["outcome"] == "all fail") == (sheet.kind == ALL_FAIL)
        images = section.extremes[is_failed & (section.extremes["test_env"] == sheet.rows["test_env"].iloc[0])]
        assert sheet.n == len(images)
        assert len(sheet.rows) == min(3, len(images))
        assert {key.image for key in sheet.keys} <= set(images["image"])
    assert {sheet.kind for sheet in make_sheets(MadeSection(["ERM"]), 3)} == {ALL_FAIL}


def test_confidence_is_that_of_wrong_runs():
    section = MadeSection(["ERM", "CORAL"])
    for row in section.extremes.to_dict("records"):
        confidences, trials = [], []
        for run in section.runs:
            at = np.flatnonzero(run.outputs.image == row["image"])
            if run.run["test_env"] == row["test_env"] and len(at):
                trials.append(run.run["trial_seed"])
                if CLASSES[run.outputs.predicted[at[0]]] != row["label"]:
                    confidences.append(run.confidence[False][at[0]])
        assert row["confidence"] == pytest.approx(np.mean(confidences))
        assert row["trial_seed"] == min(trials)


def test_digits_are_those_of_their_trial():
    """In another trial, an image is in another environment, or has another color or label."""
    dataset_class = get_dataset_class("ColoredDigits")
    source = ImageSource("ColoredDigits", dataset_class, "", {})
    rng, expected = RandomState(0), {}
    for trial in (0, 3):
        for env, environment in enumerate(dataset_class(None, (), {}, trial)):
            for i in rng.permutation(len(environment))[:40]:
                label = dataset_class.class_names[environment.labels[i]]
                key = ImageKey(env, str(environment.sources[i]), label, trial)
                expected[key] = to_rgb(environment.images[i], 0, 255)
    found = source.read_thumbnails(expected)
    assert found.keys() == expected.keys()
    assert all((found[key] == pixels).all() for key, pixels in expected.items())
    [key, *_] = expected
    other = {"5 to 9": "0 to 4", "0 to 4": "5 to 9"}[key.label]
    assert not source.read_thumbnails([key._replace(label=other), key._replace(image="1797")])
    moved = [key for key in expected if key.trial_seed == 0]
    elsewhere = source.read_thumbnails([key._replace(trial_seed=3) for key in moved])
    assert len(elsewhere) < len(moved) / 2


class Squares:
    """A source that lacks the images whose numbers end with 0."""

    name, data_dir = "Made", "data"

    def read_thumbnails(self, keys: set[ImageKey]) -> dict[ImageKey, np.ndarray]:
        return {key: np.zeros((3, 3, 3), np.uint8) for key in keys if not key.image.endswith("0.png")}


def test_sheets_omit_and_count_unreadable_images():
    section = MadeSection(["ERM", "CORAL"])
    warned: list[str] = []
    plots = list(draw_sheets([section, section], Squares(), 10, warned.append))
    expected = [sheet for _ in range(2) for sheet in make_sheets(section, 10)]
    assert len(plots) == len(expected) == 8
    requested = {key for sheet in expected for key in sheet.keys}
    n_missing = sum(key.image.endswith("0.png") for key in requested)
    [line] = warned
    assert line.startswith(f"Made: {n_missing} of {len(requested)} images to show are not in --data_dir 'data'")
    for sheet, (stem, caption, figure, frame) in zip(expected, plots, strict=True):
        names = stem.split("-")
        images = [key.image for key in sheet.keys if not key.image.endswith("0.png")]
        assert frame["image"].tolist() == images
        assert len(figure.axes) == len(images) > 0
        assert names[:2] == [sheet.kind, "Made"]
        n_seen = len({i for run in section.runs if run.run["test_env"] == int(names[2]) for i in run.outputs.image})
        shown = "all shown" if len(images) == sheet.n else f"{len(images)} shown: "
        assert f"; {sheet.n} of {n_seen} images; {shown}" in caption
        labels = [text.get_text().split("\n") for text in figure.texts[-len(images) :]]
        for label, row in zip(labels, frame.to_dict("records"), strict=True):
            outcome = [row["outcome"]] if sheet.kind == ONE_SOLVES else []
            assert label == [*outcome, row["label"], f"→ {row['predicted']}", f"{100 * row['confidence']:.0f}%"]


class Floats(MultipleDomainDataset):
    """Images of any numbers, which are known by their index only."""

    ENVIRONMENTS = ["a", "b"]
    num_classes = 2
    input_shape = (1, 2, 300)

    def __init__(self, root: str | None, test_envs: object, hparams: object, trial_seed: int = 0) -> None:
        images = np.linspace(-3, 5, 2 * 600, dtype=np.float32).reshape(2, 1, 2, 300)
        images[0, 0, 0, 0] = np.nan
        self.environments = [ArrayEnvironment(images, np.array([0, 1]))] * 2


def test_numbers_are_scaled():
    source = ImageSource("Floats", Floats, "", {})
    keys = [ImageKey(1, "0", "0", 7), ImageKey(1, "1", "1", 7)]
    found = source.read_thumbnails(keys)
    assert {pixels.shape for pixels in found.values()} == {(1, SIZE, 3)}
    means = [found[key].mean(axis=(0, 2)) for key in keys]  # of both rows: from -2 to 0, and from 2 to 4
    np.testing.assert_allclose(means[0][[50, -1]], [255 * (1 + 2 * 50 / 143) / 8, 255 * 3 / 8], atol=2)
    np.testing.assert_allclose(means[1][[0, -1]], [255 * 5 / 8, 255 * 7 / 8], atol=2)


def test_only_requested_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_dataset(tmp_path, "PACS", per_class=2)
    write_image(folder / "cartoon/dog/000.png", size=(400, 100))
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(folder / "cartoon/dog/001.png")
    (folder / "cartoon/horse/000.png").write_bytes(b"not an image")
    read = []
    original = thumbnails.read_file
    monkeypatch.setattr(thumbnails, "read_file", lambda path: read.append(path) or original(path))
    source = ImageSource("PACS", get_dataset_class("PACS"), str(tmp_path), {"data_augmentation": True})
    wide, gray, broken, missing, other, art = (
        ImageKey(1, "cartoon/dog/000.png", "dog", 0),
        ImageKey(1, "cartoon/dog/001.png", "dog", 2),
        ImageKey(1, "cartoon/horse/000.png", "horse", 0),
        ImageKey(1, "cartoon/dog/999.png", "dog", 1),
        ImageKey(1, "cartoon/house/000.png", "dog", 0),
        ImageKey(0, "art_painting/person/001.png", "person", 1),
    )
    found = source.read_thumbnails([wide, gray, broken, missing, other, art])
    assert found.keys() == {wide, gray, art}
    assert found[wide].shape == (SIZE // 4, SIZE, 3)
    assert (found[gray] == np.arange(100).reshape(10, 10, 1)).all()
    assert {str(path.relative_to(folder)) for path in read} == {key.image for key in (wide, gray, broken, art)}
    assert len(read) == 4


@pytest.mark.parametrize(
    ("dataset", "data_dir", "message"),
    [
        ("ColoredMNIST", ".", "lacks train-images-idx3-ubyte"),
        ("ColoredMNIST", "nowhere", "is not a folder"),
        ("PACS", ".", "PACS not found"),
        ("PASC", ".", "unknown dataset 'PASC'"),
        ("Folder", "tree", "has the environments one, two, but the sweep was run on e0, e1, e2; without --data_dir"),
    ],
)
def test_datasets_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, data_dir: str, message: str
):
    """Nothing is downloaded."""
    for name in ("one", "two"):
        write_image(tmp_path / "tree" / name / "dog" / "0.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist, "download", lambda root: pytest.fail("downloaded"))
    accuracies = (0.5,) * (4 if dataset == "PACS" else 3)
    record = {
        **make_record(dataset=dataset, in_acc=accuracies, out_acc=accuracies),
        "environments": [f"e{i}" for i in range(len(accuracies))],
    }
    sweep = load_sweep(str(write_sweep(tmp_path / "sweep", [record])))
    with pytest.raises(UsageError, match=message):
        open_source(sweep, dataset, data_dir)


class Vectors(MultipleDomainDataset):
    """A dataset without images."""

    ENVIRONMENTS = ["a", "b", "c"]

    def __init__(self, root: str | None, test_envs: object, hparams: object, trial_seed: int = 0) -> None:
        self.environments = [np.zeros((2, 5))] * 3


def test_datasets_without_images_are_rejected_before_the_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(thumbnails, "get_dataset_class", lambda name, columns: Vectors)
    sweep = load_sweep(str(write_sweep(tmp_path, [make_record("Vectors")])))
    with pytest.raises(UsageError, match="Vectors does not consist of images; run without --data_dir"):
        open_source(sweep, "Vectors", ".")


def test_every_image_has_its_place():
    rng = RandomState(0)
    shapes = [(8, 8), (1, 1), (30, 144), (144, 30), (100, 100), *[(9, 9)] * (2 * COLUMNS)]
    pictures = [rng.randint(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    labels = [[f"a class with a very long name $ {i}", "→ b", "9%"] for i in range(len(shapes))]
    figure = plot_sheet(pictures, labels, ["a title " * 20, "all shown"], "note")
    assert len(figure.axes) == len(shapes)
    for ax, pixels in zip(figure.axes, pictures, strict=True):
        assert (ax.images[0].get_array() == pixels).all()
    assert sum(text.get_text().startswith("a class") for text in figure.texts) == len(shapes)
    figure.draw_without_rendering()
    boxes = [artist.get_window_extent() for artist in (*figure.axes, *figure.texts)]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
