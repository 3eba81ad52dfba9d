"""Tests of WILDSCamelyon, WILDSFMoW and the debugging datasets, on metadata in the published layout."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainbed.datasets import DATASETS
from domainbed.datasets.verify import verify
from domainbed.engine.frozen import augmentation_key
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams
from domainbed.loading.augmentation import NUM_UNIFORMS, Augmentation, augment, normalize, resized_crop, to_bytes
from domainbed.loading.base import Request
from domainbed.loading.photo_feed import FileImages, PhotoEnvironment, PhotoFeed
from domainbed.loading.sampling import draw_uniforms
from tests.images import write_image

AUGMENTED = {"data_augmentation": True}
COUNTRIES = {"CHN": "Asia", "FRA": "Europe", "EGY": "Africa", "BRA": "Americas", "FJI": "Oceania", "ATA": ""}
CODES = [*COUNTRIES, "XKX"]


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_camelyon(root: Path, n: int = 40) -> list[dict]:
    rng = np.random.RandomState(0)
    rows = [
        {"": i, "patient": f"{4 + i % 3:03}", "node": i % 4, "x_coord": 32 * i, "y_coord": 7, "tumor": rng.randint(2)}
        | {"slide": 3, "center": i if i < 5 else rng.randint(5), "split": rng.randint(2)}
        for i in range(n)
    ]
    (root / "camelyon17_v1.0/patches").mkdir(parents=True, exist_ok=True)
    write_csv(root / "camelyon17_v1.0/metadata.csv", rows)
    return rows


def camelyon_file(row: dict) -> str:
    stem = f"patient_{row['patient']}_node_{row['node']}"
    return f"patches/{stem}/patch_{stem}_x_{row['x_coord']}_y_{row['y_coord']}.png"


def test_camelyon(tmp_path: Path):
    rows = write_camelyon(tmp_path)
    dataset = DATASETS["WILDSCamelyon"](str(tmp_path), [1], AUGMENTED, 0)
    assert [e.is_augmented for e in dataset] == [True, False, True, True, True]
    assert all(e.is_resized_first and e.is_cropped for e in dataset)
    for hospital, environment in enumerate(dataset):
        expected = [(camelyon_file(row), row["tumor"]) for row in rows if row["center"] == hospital]
        assert list(zip(environment.files, environment.labels.tolist(), strict=True)) == expected
    assert sum(DATASETS["WILDSCamelyon"].IMAGES[0]) == 455_954


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center": "9"}, r"row 3: center is '9', not in 0, …, 4"),
        ({"tumor": ""}, r"row 3: tumor is ''"),
        ({"patient": "../../x"}, "which is not the name of a patch"),
    ],
)
def test_invalid_metadata_is_an_error(tmp_path: Path, change: dict, message: str):
    rows = write_camelyon(tmp_path)
    rows[2] |= change
    write_csv(tmp_path / "camelyon17_v1.0/metadata.csv", rows)
    with pytest.raises(UsageError, match=message):
        DATASETS["WILDSCamelyon"](str(tmp_path), [0], AUGMENTED)


def test_unusable_files_are_errors(tmp_path: Path):
    cls = DATASETS["WILDSCamelyon"]
    assert "WILDSCamelyon not found" in cls.find_problems(str(tmp_path))[0]
    write_camelyon(tmp_path)
    assert cls.find_problems(str(tmp_path)) == []
    path = tmp_path / "camelyon17_v1.0/metadata.csv"
    for content, message in (("", "cannot read"), ("a,b\n1,2\n", "has no column patient"), ("\0\n", "metadata")):
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            cls(str(tmp_path), [0], AUGMENTED)
    path.unlink()
    assert cls.find_problems(str(tmp_path)) == [f"{path.parent} has no metadata.csv"]


def test_verify_decodes_and_leaves_out(tmp_path: Path):
    rows = write_camelyon(tmp_path, 10)
    folder = tmp_path / "camelyon17_v1.0"
    for i, row in enumerate(rows):
        write_image(folder / camelyon_file(row), i, (8, 8))
    (folder / camelyon_file(rows[9])).write_bytes(b"")
    result = verify(DATASETS["WILDSCamelyon"], str(tmp_path))
    assert result.broken == [camelyon_file(rows[9])]
    assert "hospital_0: " in result.lines[0]
    (folder / "leave_out.txt").write_text(result.broken[0] + "\n")
    assert "all 9 images decode" in verify(DATASETS["WILDSCamelyon"], str(tmp_path)).lines


row = st.fixed_dictionaries(
    {"split": st.sampled_from(["train", "val", "test", "seq"]), "category": st.sampled_from(["zoo", "dam", "port"])}
    | {"country_code": st.sampled_from(CODES)}
)


@pytest.mark.filterwarnings("ignore:.*classes, not the 62")
@given(rows=st.lists(row, max_size=30), order=st.permutations(CODES[:6]))
def test_fmow(tmp_path_factory: pytest.TempPathFactory, rows: list[dict], order: list[str]):
    root = tmp_path_factory.mktemp("fmow")
    for code in order:  # each region has an image
        rows = [*rows, {"split": "train", "category": "zoo", "country_code": code}]
    write_csv(root / "fmow_v1.1/rgb_metadata.csv", rows)
    table = [{"name": code, "alpha-3": code, "region": region} for code, region in COUNTRIES.items()]
    write_csv(root / "fmow_v1.1/country_code_mapping.csv", table)
    dataset = DATASETS["WILDSFMoW"](str(root), [0], AUGMENTED)

    regions: list[str] = []
    images: dict[str, list[tuple[str, int]]] = {}
    classes = sorted({r["category"] for r in rows})
    for i, r in enumerate(rows):
        region = COUNTRIES.get(r["country_code"]) or "Other"
        if region not in regions:
            regions.append(region)
        if r["split"] != "seq":
            images.setdefault(region, []).append((f"images/rgb_img_{i}.png", classes.index(r["category"])))
    assert dataset.class_names == classes
    found = [list(zip(e.files, e.labels.tolist(), strict=True)) for e in dataset]
    assert found == [images[region] for region in regions]
    titles = DATASETS["WILDSFMoW"].environment_titles(str(root))
    assert titles == [f"region_{i} ({region})" for i, region in enumerate(regions)]


@pytest.mark.parametrize("is_cropped", [True, False])
@pytest.mark.parametrize("is_resized_first", [True, False])
def test_augmentation_of_an_environment(tmp_path: Path, is_cropped: bool, is_resized_first: bool):
    files = [str(tmp_path / f"{i}.png") for i in range(4)]
    images = [torch.from_numpy(write_image(Path(file), i, (30, 20 + i))) for i, file in enumerate(files)]
    environment = PhotoEnvironment(
        FileImages(files), files, np.zeros(4, int), np.zeros(4, int), is_cropped, is_resized_first
    )
    feed = PhotoFeed([environment], (16, 18), torch.device("cpu"), workers=0)
    (((x, _),),) = feed.batches([[Request(0, np.arange(4), 5, 2)]])
    augmentation = Augmentation(draw_uniforms(5, 2, 6, NUM_UNIFORMS))
    for i, image in enumerate(images):
        if is_resized_first:
            image = resized_crop(image, (0, 0, *image.shape[:2]), (16, 18)).permute(1, 2, 0)
        box = augmentation.crop(i, *image.shape[:2]) if is_cropped else (0, 0, *image.shape[:2])
        expected = augment(resized_crop(image, box, (16, 18))[None].float(), augmentation[i : i + 1])
        torch.testing.assert_close(x[i], normalize(to_bytes(expected))[0])


def test_features_of_other_augmentations_have_other_keys(tmp_path: Path):
    write_camelyon(tmp_path)
    assert augmentation_key(DATASETS["WILDSCamelyon"](str(tmp_path), [0], AUGMENTED)[1]) == ("resized first",)


def test_debug():
    for name, size, lr, batch_size in (("Debug28", 28, 1e-3, 64), ("Debug224", 224, 5e-5, 32)):
        hparams = default_hparams("ERM", name)
        assert (hparams["lr"], hparams["batch_size"]) == (lr, batch_size)
        a, b, other = (DATASETS[name](None, [0], hparams, trial) for trial in (0, 0, 1))
        assert [e.images.shape for e in a] == [(16, 3, size, size)] * 3
        for x, y in zip(a, b, strict=True):
            assert np.array_equal(x.images, y.images)
            assert np.array_equal(x.labels, y.labels)
        assert not np.array_equal(a[0].images, other[0].images)
        assert abs(a[0].images.std() - 1) < 0.05
        assert {0, 1} == set(np.concatenate([e.labels for e in a]).tolist())
