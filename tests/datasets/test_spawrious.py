"""Tests of the Spawrious datasets on a small tree in the published layout."""

from pathlib import Path

import numpy as np
import pytest

from domainbed.datasets import BENCHMARK, DATASETS
from domainbed.datasets import spawrious as module
from domainbed.datasets.verify import verify
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.sweep.grid import Grid
from tests.images import write_image

PLACES = ("beach", "desert", "dirt", "jungle", "mountain", "snow")
LABELS = {"bulldog": 0, "corgi": 1, "dachshund": 2, "labrador": 3}
B, D, L, C = "bulldog", "dachshund", "labrador", "corgi"
N = 20
AUGMENTED = {"data_augmentation": True}

# From the paper's tables: the places of B, D, L and C in training and in the test environment, and the place that all
# share in O2O. In M2M, B and D swap places between two environments, and so do L and C.
TABLES = {
    "SpawriousO2O_easy": (("desert", "jungle", "dirt", "snow"), ("dirt", "snow", "desert", "jungle"), "beach"),
    "SpawriousO2O_medium": (("mountain", "beach", "dirt", "jungle"), ("jungle", "dirt", "beach", "snow"), "desert"),
    "SpawriousO2O_hard": (("jungle", "mountain", "snow", "desert"), ("mountain", "snow", "desert", "jungle"), "beach"),
    "SpawriousM2M_easy": (("desert", "mountain", "dirt", "jungle"), ("dirt", "jungle", "mountain", "desert"), None),
    "SpawriousM2M_medium": (("beach", "snow", "mountain", "desert"), ("desert", "mountain", "beach", "snow"), None),
    "SpawriousM2M_hard": (("dirt", "jungle", "snow", "beach"), ("snow", "beach", "dirt", "jungle"), None),
}
SWAPPED = (1, 0, 3, 2)


def expected_parts(name: str, n: int) -> list[list[tuple[int, str, str, int]]]:
    """Return (folder, place, breed, first images used) of each environment, with n images in each folder."""
    training, test, shared = TABLES[name]
    breeds = (B, D, L, C)
    if shared:
        all_of = [(folder, test[i], breed, n) for folder in (0, 1) for i, breed in enumerate(breeds)]
        correlated = [
            [(folder, training[i], breed, own) for i, breed in enumerate(breeds)]
            + [(folder, shared, breed, n - own) for breed in breeds]
            for folder, own in ((0, int(0.97 * n)), (1, int(0.87 * n)))
        ]
        return [all_of, *correlated]
    orders = [(test, range(4)), (test, SWAPPED), (training, range(4)), (training, SWAPPED)]
    parts = [[(0, places[j], breed, n) for j, breed in zip(order, breeds, strict=True)] for places, order in orders]
    return [parts[0] + parts[1], *parts[2:]]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "IMAGES_PER_FOLDER", N)
    for folder in "01":
        for place in PLACES:
            for breed in LABELS:
                parent = tmp_path / "spawrious224" / folder / place / breed
                parent.mkdir(parents=True)
                for i in reversed(range(N)):
                    (parent / f"{i:02}.png").touch()
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_parts_match_the_reference(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(module, "IMAGES_PER_FOLDER", 100)  # with fewer, other fractions give the same numbers
    parts = [[(f"{f}/{place}", breed, n) for f, place, breed, n in env] for env in expected_parts(name, 100)]
    assert DATASETS[name].parts() == parts


@pytest.mark.parametrize("name", ["SpawriousO2O_easy", "SpawriousM2M_medium"])
def test_environments_match_the_reference(data_dir: Path, name: str):
    for root in (data_dir, data_dir / "spawrious224"):
        assert DATASETS[name].find_problems(str(root)) == []
        for test_envs in ([0], [0, 1]):
            dataset = DATASETS[name](str(root), test_envs, AUGMENTED, 0)
            assert [e.is_augmented for e in dataset] == [False, True, True]
            assert not any(e.is_cropped or e.is_resized_first for e in dataset)
            for environment, parts in zip(dataset, expected_parts(name, N), strict=True):
                expected = [(f"{f}/{p}/{b}/{i:02}.png", LABELS[b]) for f, p, b, n in parts for i in range(n)]
                assert list(zip(environment.files, environment.labels.tolist(), strict=True)) == expected
    assert not any(e.is_augmented for e in DATASETS[name](str(data_dir), [0], {"data_augmentation": False}))


def test_counts_and_disjointness_of_all_six():
    names = [name for name in DATASETS if name.startswith("Spawrious")]
    assert len(names) == 6
    assert not set(names) & set(BENCHMARK)
    for name in names:
        parts = DATASETS[name].parts()
        assert tuple(sum(part.n for part in env) for env in parts) == DATASETS[name].IMAGES[0]
        used = [{(p.folder, p.breed) for p in env} for env in parts]
        assert not used[0] & (used[1] | used[2]), "no test image is trained on"


def test_leave_out_does_not_move_the_others_up(data_dir: Path):
    (data_dir / "spawrious224/leave_out.txt").write_text("0/desert/bulldog/03.png\n")
    environment = DATASETS["SpawriousO2O_easy"](str(data_dir), [0], AUGMENTED)[1]
    assert "0/desert/bulldog/03.png" not in environment.files
    assert "0/desert/bulldog/19.png" not in environment.files
    assert len(environment) == 4 * N - 1


def test_missing_folders_are_problems(data_dir: Path):
    (data_dir / "spawrious224/1/beach").rename(data_dir / "gone")
    problems = DATASETS["SpawriousO2O_easy"].find_problems(str(data_dir))
    assert len(problems) == 4
    assert problems[0].endswith("1/beach/bulldog is not a folder")
    assert DATASETS["SpawriousM2M_easy"].find_problems(str(data_dir)) == []


def test_only_environment_0_is_tested_on():
    name = "SpawriousM2M_easy"
    with pytest.raises(UsageError, match=r"--test_envs 1: SpawriousM2M_easy must be tested on .* 0 \(Test\)"):
        JobConfig(name, "ERM", (1,))
    assert JobConfig(name, "ERM", (1, 0)).test_envs == (0, 1)
    options = {"datasets": (name,), "algorithms": ("ERM",), "n_hparams": 1, "n_trials": 1}
    assert [run.test_envs for run in Grid(**options).runs()] == [(0,)]
    grid = Grid(**options, leave_one_out=True)
    assert [run.test_envs for run in grid.runs()] == [(0,), (0, 1), (0, 2)]
    assert [run.test_envs for run in Grid.from_log(grid.to_log()).runs()] == [(0,), (0, 1), (0, 2)]
    with pytest.raises(UsageError, match="must be tested on"):
        list(Grid(**options, test_envs=((2,),)).runs())


def test_verify(data_dir: Path):
    for i, path in enumerate(sorted(data_dir.rglob("*.png"))):
        if path.name == "00.png":
            write_image(path, i, (4, 4))
        else:
            path.unlink()
    result = verify(DATASETS["SpawriousM2M_hard"], str(data_dir))
    assert "SC_group_1: 4 of 12,672 images" in result.lines
    assert "all 16 images decode" in result.lines
    assert not result.is_valid
    assert np.all(["warning" not in line for line in result.lines])
