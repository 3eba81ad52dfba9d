import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from domainbed.datasets import BENCHMARK, DATASETS, get_dataset_class, num_environments
from domainbed.datasets.photos import PACS, Folder, PublishedDataset
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.loading.decode import decode, read_file
from tests.images import write_dataset, write_image, write_tree

PUBLISHED = ["VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet", "SVIRO"]
AUGMENTED = {"data_augmentation": True}


@pytest.mark.parametrize(
    ("name", "environments", "images", "num_classes", "freq"),
    [
        ("VLCS", "C L S V", 10_729, 5, 300),
        ("PACS", "A C P S", 9_991, 7, 300),
        ("OfficeHome", "A C P R", 15_588, 65, 300),
        ("TerraIncognita", "L100 L38 L43 L46", 24_788, 10, 300),
        ("DomainNet", "clip info paint quick real sketch", 586_575, 345, 1000),
        ("SVIRO", "aclass escape hilux i3 lexus tesla tiguan tucson x5 zoe", None, 7, 300),
    ],
)
def test_datasets_match_the_published_protocol(
    name: str, environments: str, images: int | None, num_classes: int, freq: int
):
    dataset = get_dataset_class(name)
    assert issubclass(dataset, PublishedDataset)
    assert environments.split() == dataset.ENVIRONMENTS
    assert len(dataset.ENVIRONMENT_FOLDERS) == len(dataset.ENVIRONMENTS)
    assert [sum(counts) for counts in dataset.IMAGES[:1]] == ([images] if images else [])
    assert (dataset.NUM_CLASSES, dataset.input_shape, dataset.N_STEPS) == (num_classes, (3, 224, 224), 5001)
    assert freq == dataset.CHECKPOINT_FREQ
    assert sorted(dataset.ENVIRONMENT_FOLDERS) == list(dataset.ENVIRONMENT_FOLDERS), "sorted folder order"


def test_terra_incognita_has_two_known_counts():
    assert [sum(counts) for counts in get_dataset_class("TerraIncognita").IMAGES] == [24_788, 24_330]


def test_benchmark_has_31_environments():
    assert sum(num_environments(name) for name in BENCHMARK) == 31
    assert set(BENCHMARK) < set(DATASETS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_dataset_is_read(name: str, tmp_path: Path):
    write_dataset(tmp_path, name, per_class=2)
    dataset = get_dataset_class(name)(str(tmp_path), [1], AUGMENTED, 0)
    n = len(dataset.ENVIRONMENTS)
    assert len(dataset) == n
    assert dataset.num_classes == dataset.NUM_CLASSES
    for i, (environment, folder) in enumerate(zip(dataset, dataset.ENVIRONMENT_FOLDERS, strict=True)):
        assert len(environment) == 2 * dataset.NUM_CLASSES
        assert all(file.startswith(f"{folder}/") for file in environment.files)
        assert np.bincount(environment.labels).tolist() == [2] * dataset.NUM_CLASSES
        assert environment.is_augmented == (i != 1)
    unaugmented = get_dataset_class(name)(str(tmp_path), [1], {"data_augmentation": False}, 0)
    assert not any(environment.is_augmented for environment in unaugmented)


def test_environment_folders_match_by_normalized_name(tmp_path: Path):
    root = write_dataset(tmp_path, "OfficeHome", per_class=1, classes=2)
    (root / "Real World").rename(root / "real_world")
    (root / "__MACOSX").mkdir()
    write_tree(root, {"AAA extra": {"class 000": 1}})
    with pytest.warns(UserWarning, match="has 2 classes, not the 65 of OfficeHome"):
        dataset = get_dataset_class("OfficeHome")(str(tmp_path), [0], AUGMENTED, 0)
    assert [e.files[0].split("/")[0] for e in dataset] == ["Art", "Clipart", "Product", "real_world"]


def test_missing_folders_are_named_in_the_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"PACS requires --data_dir, the folder that contains PACS/"):
        get_dataset_class("PACS")(None, [0], AUGMENTED, 0)
    with pytest.raises(UsageError, match=r"scripts\.download --data_dir .* --dataset PACS"):
        get_dataset_class("PACS")(str(tmp_path), [0], AUGMENTED, 0)
    root = write_dataset(tmp_path, "PACS", per_class=1)
    (root / "sketch").rename(root / "scetch")
    with pytest.raises(UsageError, match=r"has no folder 'sketch', an environment of PACS; did you mean scetch"):
        get_dataset_class("PACS")(str(tmp_path), [0], AUGMENTED, 0)


def test_all_problems_of_a_dataset_are_found_without_reading_images(tmp_path: Path):
    assert [problem.partition(":")[0] for problem in PACS.find_problems(str(tmp_path))] == ["PACS not found"]
    assert PACS.find_problems(None) == ["PACS requires --data_dir, the folder that contains PACS/"]
    folder = tmp_path / "PACS"
    for name in ("art_painting/dog", "cartoon", "photo/dog"):
        (folder / name).mkdir(parents=True)
    (folder / "photo" / "dog" / "nested").mkdir()
    (folder / "photo" / "dog" / "nested" / "1.jpg").touch()
    (problem,) = PACS.find_problems(str(tmp_path))
    assert "has no folder 'sketch'" in problem
    (folder / "photo").rename(folder / "foto")
    (problem,) = PACS.find_problems(str(tmp_path))
    assert "no folder 'photo'" in problem
    assert "no folder 'sketch'" in problem
    (folder / "foto").rename(folder / "photo")
    (folder / "sketch").mkdir()
    (folder / "art_painting" / "dog" / "._1.jpg").touch()
    assert PACS.find_problems(str(tmp_path)) == [
        f"{folder / name} has no class folders with images" for name in ("art_painting", "cartoon", "sketch")
    ]


def test_folder_reads_environments_and_classes_from_the_tree(tmp_path: Path):
    root = write_tree(tmp_path / "mine", {"day": {"car": 2, "tram": 1}, "night": {"car": 1}, "dusk": {"tram": 3}})
    dataset = Folder(str(root), [0], AUGMENTED, 0)
    assert Folder.environment_names(str(root)) == ["day", "dusk", "night"]
    assert (len(dataset), dataset.num_classes, dataset.class_names) == (3, 2, ["car", "tram"])
    assert [len(e) for e in dataset] == [3, 3, 1]
    job = JobConfig("Folder", "ERM", (2,), data_dir=str(root))
    assert job.environment_names() == ["day", "dusk", "night"]
    with pytest.raises(UsageError, match=r"--test_envs 3: Folder has no such environment; choose from 0 \(day\), 1"):
        JobConfig("Folder", "ERM", (3,), data_dir=str(root))


def test_job_name_depends_on_the_environments_of_the_tree(tmp_path: Path):
    trees = [write_tree(tmp_path / name, {env: {"x": 1, "y": 1} for env in name}) for name in ("ab", "ac")]
    names = {JobConfig("Folder", "ERM", (0,), data_dir=str(tree)).name() for tree in trees}
    assert len(names) == 2
    (tmp_path / "moved").mkdir()
    trees[0].rename(tmp_path / "moved/ab")
    assert JobConfig("Folder", "ERM", (0,), data_dir=str(tmp_path / "moved/ab")).name() in names


def test_invalid_trees_are_errors(tmp_path: Path):
    with pytest.raises(UsageError, match="Folder requires --data_dir"):
        JobConfig("Folder", "ERM", (0,))
    with pytest.raises(UsageError, match="cannot list no/such: No such file"):
        JobConfig("Folder", "ERM", (0,), data_dir="no/such")
    root = write_tree(tmp_path, {"only": {"x": 1, "y": 1}})
    with pytest.raises(UsageError, match=r"must contain at least two folders, one per environment; found \['only'\]"):
        Folder(str(root), [0], AUGMENTED, 0)
    write_tree(root, {"other": {"x": 1}})
    Folder(str(root), [0], AUGMENTED, 0)
    (root / "only/y/000.png").unlink()
    with pytest.raises(UsageError, match="has only one class, x; expected environment/class/image"):
        Folder(str(root), [0], AUGMENTED, 0)


def test_real_pacs_images(pacs_dir: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = get_dataset_class("PACS")(pacs_dir, [0], AUGMENTED, 0)
    assert dataset.class_names == list(get_dataset_class("PACS").CLASSES)
    for environment in dataset:
        assert np.bincount(environment.labels).tolist() == [len(environment) // 7] * 7
        for file in environment.files[::20]:
            pixels = decode(read_file(environment.folder / file), file)
            assert pixels.shape == (227, 227, 3)
            assert pixels.std() > 10


def test_class_of_a_single_environment_is_kept_with_a_warning(tmp_path: Path):
    root = write_dataset(tmp_path, "PACS", per_class=1)
    write_image(root / "photo/zebra/1.png")
    with pytest.warns(UserWarning, match="has 8 classes, not the 7 of PACS"):
        dataset = get_dataset_class("PACS")(str(tmp_path), [0], AUGMENTED, 0)
    assert dataset.num_classes == 8
    assert dataset[2].labels.max() == 7


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x1b[31mred", b"new\nline", "\u202etxt".encode()])
@pytest.mark.parametrize("level", ["environment", "class"])
def test_folder_names_that_cannot_be_printed_are_refused(tmp_path: Path, name: bytes, level: str):
    write_tree(tmp_path, {env: {"cat": 1, "dog": 1} for env in ("a", "b", "c")})
    old = tmp_path / ("a" if level == "environment" else "a/cat")
    os.rename(os.fsencode(old), os.path.join(os.fsencode(old.parent), name))
    with pytest.raises(UsageError, match="the folder's name has control characters or is not UTF-8; rename it"):
        Folder(str(tmp_path), (0,), AUGMENTED, 0)
