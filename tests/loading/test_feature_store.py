"""Tests of the store of features: contents, killed and simultaneous processes, damage, limits, full disks."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from domainbed.errors import UsageError
from domainbed.files import atomic_write
from domainbed.loading import feature_store
from domainbed.loading.feature_store import CHUNK_IMAGES, FeatureFile, fill
from tests.processes import wait_until

N_IMAGES, N_FEATURES = 5 * CHUNK_IMAGES // 2, 6  # the last chunk is half full
GB = 1.0


def expected(n: int = N_IMAGES) -> np.ndarray:
    return np.random.RandomState(0).randn(n, N_FEATURES).astype(np.float32)


def feature_file(
    folder: Path, *key: str, n: int = N_IMAGES, dtype: str = "float32", stem: str = "env [1]*"
) -> FeatureFile:
    return FeatureFile(folder, stem, key or ("key",), n, N_FEATURES, dtype)


class Extractor:
    """Extracts rows of `expected`, and counts calls."""

    def __init__(self, values: np.ndarray | None = None) -> None:
        self.values = expected() if values is None else values
        self.calls: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> np.ndarray:
        self.calls.append((start, stop))
        return self.values[start:stop]


def test_features_are_extracted_once(tmp_path: Path):
    first, second = Extractor(), Extractor()
    for extractor in (first, second):
        [features] = fill([feature_file(tmp_path)], [extractor], GB)
        assert features.tobytes() == expected().tobytes()
        assert features.shape == (N_IMAGES, N_FEATURES)
    assert first.calls == [(0, 128), (128, 256), (256, 320)]
    assert second.calls == []
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [feature_file(tmp_path).path.name, f"{feature_file(tmp_path).path.name}.lock"]


def test_features_are_memory_mapped_and_private(tmp_path: Path):
    [features] = fill([feature_file(tmp_path)], [Extractor()], GB)
    assert isinstance(features, np.memmap)
    features[:] = 0
    [again] = fill([feature_file(tmp_path)], [Extractor()], GB)
    assert again.tobytes() == expected().tobytes()


def test_half_precision_rounds(tmp_path: Path):
    [features] = fill([feature_file(tmp_path, dtype="float16")], [Extractor()], GB)
    assert features.tobytes() == expected().astype(np.float16).tobytes()


def test_each_key_shape_and_type_has_a_file_of_its_own(tmp_path: Path):
    files = [
        feature_file(tmp_path, "resnet50"),
        feature_file(tmp_path, "vit"),
        feature_file(tmp_path, "resnet50", "1"),
        feature_file(tmp_path, "resnet50", n=N_IMAGES - 1),
        feature_file(tmp_path, "resnet50", dtype="float16"),
    ]
    assert len({file.path for file in files}) == len(files)
    extractors = [Extractor(expected() + i) for i in range(len(files))]
    for i, features in enumerate(fill(files, extractors, GB)):
        assert np.array_equal(features, (expected() + i)[: files[i].n_images].astype(files[i].dtype))


def overwrite(path: Path, content: bytes) -> None:
    """Write a file at another time than before, which may be within a tick of the file system's clock."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 1, before + 1))


@pytest.mark.parametrize("position", [0, 1000, -5, -1], ids=str)
def test_damaged_file_is_extracted_again(tmp_path: Path, position: int):
    file = feature_file(tmp_path)
    fill([file], [Extractor()], GB)
    content = bytearray(file.path.read_bytes())
    content[position] ^= 1
    overwrite(file.path, content)
    extractor = Extractor()
    [features] = fill([file], [extractor], GB)
    assert features.tobytes() == expected().tobytes()
    assert len(extractor.calls) == 3


@pytest.mark.parametrize("size", [0, 3, 4, N_IMAGES * N_FEATURES * 4, N_IMAGES * N_FEATURES * 4 + 5])
def test_file_of_another_size_is_extracted_again(tmp_path: Path, size: int):
    file = feature_file(tmp_path)
    fill([file], [Extractor()], GB)
    os.truncate(file.path, size)
    assert fill([file], [Extractor()], GB)[0].tobytes() == expected().tobytes()


def test_checksum_covers_files_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for n in range(1, 9):
        for block in range(1, 8):
            monkeypatch.setattr(feature_store, "BLOCK", block)
            monkeypatch.setattr(feature_store, "_verified", set())
            file = FeatureFile(tmp_path, "x", (str(block),), n, 1, "float16")
            values = np.arange(n, dtype=np.float16)[:, None]
            assert np.array_equal(fill([file], [lambda start, stop, v=values: v[start:stop]], GB)[0], values)
            content = bytearray(file.path.read_bytes())
            content[n % len(content)] ^= 128
            overwrite(file.path, content)
            assert file.open() is None


def test_damaged_chunk_is_extracted_again(tmp_path: Path):
    file = feature_file(tmp_path)
    with pytest.raises(RuntimeError):
        fill([file], [fail_at(256)], GB)
    content = bytearray(file.chunk_path(0).read_bytes())
    content[7] ^= 1
    file.chunk_path(0).write_bytes(content)
    extractor = Extractor()
    assert fill([file], [extractor], GB)[0].tobytes() == expected().tobytes()
    assert extractor.calls == [(0, 128), (256, 320)]


def fail_at(first: int, error: Exception | None = None):
    def extract(start: int, stop: int) -> np.ndarray:
        if start >= first:
            raise error or RuntimeError("stop")
        return expected()[start:stop]

    return extract


def test_stop_keeps_complete_chunks(tmp_path: Path):
    file, n_checks = feature_file(tmp_path), 0

    def check_stop() -> None:
        nonlocal n_checks
        n_checks += 1
        if n_checks > 3:  # one of the file, then one of each chunk
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill([file], [Extractor()], GB, check_stop)
    extractor = Extractor()
    fill([file], [extractor], GB)
    assert extractor.calls == [(256, 320)]


SCRIPT = """
import sys, time
from pathlib import Path
from tests.loading.test_feature_store import GB, expected, feature_file, fill

folder, log, seconds, first_slow = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

def extract(start, stop):
    with open(log, "a") as file:
        file.write(f"{start}\\n")
    time.sleep(seconds * (start >= first_slow))
    return expected()[start:stop]

assert fill([feature_file(folder)], [extract], GB)[0].tobytes() == expected().tobytes()
"""


def start_process(folder: Path, log: Path, seconds: float, first_slow: int = 0) -> subprocess.Popen:
    """Extract features in a new process, which takes some seconds for each chunk from the image `first_slow` on."""
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, (folder, log, seconds, first_slow))])


def read_log(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def test_killed_process_is_continued(tmp_path: Path):
    log, folder = tmp_path / "log", tmp_path / "store"
    process = start_process(folder, log, 60, first_slow=1)
    wait_until(lambda: len(read_log(log)) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    extractor = Extractor()
    assert fill([feature_file(folder)], [extractor], GB)[0].tobytes() == expected().tobytes()
    assert extractor.calls == [(128, 256), (256, 320)]
    assert len(list(folder.iterdir())) == 2


def test_simultaneous_processes_share_the_chunks(tmp_path: Path):
    log, folder = tmp_path / "log", tmp_path / "store"
    processes = [start_process(folder, log, 0.5) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sorted(read_log(log)) == [0, 128, 256]


@pytest.mark.parametrize("failing", [2, 4], ids=["a chunk", "the assembled file"])
def test_full_disk_keeps_complete_chunks(tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch):
    file, n_writes = feature_file(tmp_path), itertools.count(1)

    @contextmanager
    def write_to_full_disk(path: Path) -> Iterator[BinaryIO]:
        with atomic_write(path) as output:
            yield output
            if next(n_writes) == failing:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "atomic_write", write_to_full_disk)
        with pytest.raises(OSError, match="No space left"):
            fill([file], [Extractor()], GB)
    assert not file.path.exists()
    assert not list(tmp_path.glob("*.part"))
    extractor = Extractor()
    assert fill([file], [extractor], GB)[0].tobytes() == expected().tobytes()
    assert extractor.calls == ([(128, 256), (256, 320)] if failing == 2 else [])


@pytest.mark.parametrize("name", ["read_chunk", "open"])
def test_file_that_disappears_while_it_is_used_is_an_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """As when somebody deletes the cache."""
    file = feature_file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureFile, name, lambda *args: None)
        with pytest.raises(UsageError, match=r"disappeared or was damaged.*run the job again"):
            fill([file], [Extractor()], GB)
    assert fill([file], [Extractor()], GB)[0].tobytes() == expected().tobytes()


def test_store_is_bounded(tmp_path: Path):
    file, other = feature_file(tmp_path), feature_file(tmp_path, stem="other")
    limit = 1.5 * file.n_bytes / 2**30
    fill([file], [Extractor()], limit)
    with pytest.raises(UsageError, match=r"increase --cache_gb \(now .*\) or delete files there"):
        fill([other], [Extractor()], limit)
    assert not other.path.exists()
    assert file.path.exists()


def test_unused_versions_make_room(tmp_path: Path):
    """As after a change of the images: their former features would otherwise fill the store forever."""
    older, old, used, current = (feature_file(tmp_path, key) for key in ("older", "old", "used", "current"))
    similar = feature_file(tmp_path, "older", stem=f"{current.stem}-more")
    now = time.time()
    for file, days in ((older, 30), (old, 20), (used, 1), (similar, 40)):
        fill([file], [Extractor()], GB)
        os.utime(file.path, (now - 86_400 * days, now - 86_400 * 50))
    fill([current], [Extractor()], 4.5 * current.n_bytes / 2**30)
    assert [file.path.exists() for file in (older, old, used, current, similar)] == [False, True, True, True, True]
    with pytest.raises(UsageError, match="do not fit"):
        fill([older], [Extractor()], 1.5 * current.n_bytes / 2**30)
    assert old.path.exists(), "nothing is deleted in vain"


def test_opening_a_file_marks_it_as_used(tmp_path: Path):
    file, other = feature_file(tmp_path, "a"), feature_file(tmp_path, "b")
    fill([file], [Extractor()], GB)
    os.utime(file.path, (0, 0))
    fill([file], [Extractor()], GB)
    with pytest.raises(UsageError, match="do not fit"):
        fill([other], [Extractor()], 1.5 * file.n_bytes / 2**30)
    assert file.path.stat().st_mtime == 0


def test_file_that_cannot_be_read_for_a_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = feature_file(tmp_path)
    fill([file], [Extractor()], GB)
    extractor = Extractor()
    with monkeypatch.context() as patch:

        def fail(path: Path) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

        patch.setattr(feature_store, "open_regular", fail)
        with pytest.raises(OSError, match="Input/output error"):
            fill([file], [extractor], GB)
    assert fill([file], [extractor], GB)[0].tobytes() == expected().tobytes()
    assert extractor.calls == []


def test_chunk_of_a_complete_file_is_not_extracted_again(tmp_path: Path):
    """Another job may complete the file, and delete its chunks, just before this one looks at a chunk."""
    file, extractor = feature_file(tmp_path), Extractor()
    fill([file], [Extractor()], GB)
    assert feature_store._compute_chunk(file, 1, extractor)
    assert extractor.calls == []


@pytest.mark.parametrize("name", ["open_regular", "read_regular"])
def test_file_that_another_machine_deletes_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """A network file system then reports ESTALE, as for the chunks of a file that was just assembled."""
    original, n_calls = getattr(feature_store, name), itertools.count()

    def fail_first(path: Path, *args):
        if next(n_calls) == 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return original(path, *args)

    monkeypatch.setattr(feature_store, name, fail_first)
    assert fill([feature_file(tmp_path)], [Extractor()], GB)[0].tobytes() == expected().tobytes()


@pytest.mark.parametrize("letter", ["e", "é", "環"])
def test_names_of_any_length(tmp_path: Path, letter: str):
    file, other = (feature_file(tmp_path, stem=200 * letter + end) for end in ("-view0", "-view1"))
    assert fill([file], [Extractor()], GB)[0].tobytes() == expected().tobytes()
    assert len(file.path.name.encode()) < 150
    os.utime(file.path, (0, 0))
    assert file.path != other.path
    assert other.unused_versions() == {}, "another view is not another version"


def test_own_chunks_count_once(tmp_path: Path):
    """A computation that fits also fits when it is continued, or joined by another job."""
    file = feature_file(tmp_path)
    limit = 1.2 * file.n_bytes / 2**30
    with pytest.raises(KeyboardInterrupt):
        fill([file], [fail_at(256, KeyboardInterrupt())], limit)
    assert fill([file], [Extractor()], limit)[0].tobytes() == expected().tobytes()
