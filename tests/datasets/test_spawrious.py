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
N = 20  # int(0.97 * 20) = 19, int(0.87 * 20) = 17
AUGMENTED = {"data_augmentation": True}

# Written out from the paper's tables: environment -> (folder, place, breed, first n).
EXPECTED = {
    "SpawriousO2O_easy": [
        [(f, p, b, N) for f in (0, 1) for p, b in (("dirt", B), ("snow", D), ("desert", L), ("jungle", C))],
        [(0, "desert", B, 19), (0, "jungle", D, 19), (0, "dirt", L, 19), (0, "snow", C, 19)]
        + [(0, "beach", b, 1) for b in (B, D, L, C)],
        [(1, "desert", B, 17), (1, "jungle", D, 17), (1, "dirt", L, 17), (1, "snow", C, 17)]
        + [(1, "beach", b, 3) for b in (B, D, L, C)],
    ],
    "SpawriousM2M_medium": [
        [
            *((0, p, b, N) for p, b in (("desert", B), ("mountain", D), ("beach", L), ("snow", C))),
            *((0, p, b, N) for p, b in (("mountain", B), ("desert", D), ("snow", L), ("beach", C))),
        ],
        [(0, "beach", B, N), (0, "snow", D, N), (0, "mountain", L, N), (0, "desert", C, N)],
        [(0, "snow", B, N), (0, "beach", D, N), (0, "desert", L, N), (0, "mountain", C, N)],
    ],
}


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


@pytest.mark.parametrize("name", EXPECTED)
def test_environments_match_the_reference(data_dir: Path, name: str):
    for root in (data_dir, data_dir / "spawrious224"):
        assert DATASETS[name].find_problems(str(root)) == []
        for test_envs in ([0], [0, 1]):
            dataset = DATASETS[name](str(root), test_envs, AUGMENTED, 0)
            assert [e.is_augmented for e in dataset] == [False, True, True]
            assert not any(e.is_cropped or e.is_resized_first for e in dataset)
            for environment, parts in zip(dataset, EXPECTED[name], strict=True):
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
    with pytest.raises(UsageError, match=r"--test_envs 1: SpawriousM2M_easy is made to be tested on .* 0 \(Test\)"):
        JobConfig(name, "ERM", (1,))
    assert JobConfig(name, "ERM", (1, 0)).test_envs == (0, 1)
    options = {"datasets": (name,), "algorithms": ("ERM",), "n_hparams": 1, "n_trials": 1}
    assert [run.test_envs for run in Grid(**options).runs()] == [(0,)]
    grid = Grid(**options, leave_one_out=True)
    assert [run.test_envs for run in grid.runs()] == [(0,), (0, 1), (0, 2)]
    assert [run.test_envs for run in Grid.from_log(grid.to_log()).runs()] == [(0,), (0, 1), (0, 2)]
    with pytest.raises(UsageError, match="is made to be tested on"):
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
