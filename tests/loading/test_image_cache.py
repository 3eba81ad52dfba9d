"""Tests of packs and the cache: contents, limits, staleness, concurrency, and killed processes."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from domainbed.errors import UsageError
from domainbed.loading import image_cache as cache
from domainbed.loading.decode import BadImageError
from domainbed.loading.image_cache import open_cached
from domainbed.loading.pack import Pack, write_pack
from tests.images import write_image

GB = 1.0


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[str]]:
    """Write two environments of 5 lossless images of different sizes and return their files."""
    files = {name: [str(tmp_path / name / f"{i}.png") for i in range(5)] for name in ("a", "b")}
    for seed, file in enumerate(file for names in files.values() for file in names):
        write_image(Path(file), seed, (30 + seed, 40 - seed))
    return files


def pixels(file: str) -> torch.Tensor:
    return torch.from_numpy(write_image(Path(file + ".png"), *seed_and_size(file)))


def seed_and_size(file: str) -> tuple[int, tuple[int, int]]:
    seed = int(Path(file).stem) + (5 if Path(file).parent.name == "b" else 0)
    return seed, (30 + seed, 40 - seed)


def check(packs: list[Pack] | None, files: dict[str, list[str]]) -> list[Pack]:
    assert packs is not None
    for pack, names in zip(packs, files.values(), strict=True):
        assert len(pack) == len(names)
        for i, file in enumerate(names):
            assert torch.equal(pack[i], pixels(file)), file
    return packs


def test_packs_return_the_pixels_of_the_files(tmp_path: Path, files: dict[str, list[str]]):
    packs = check(open_cached(tmp_path / "cache", GB, files), files)
    assert all(pack.is_decoded for pack in packs)
    assert len(list((tmp_path / "cache").glob("*.pack"))) == 2
    assert not list((tmp_path / "cache").glob("*.part"))
    check([pickle.loads(pickle.dumps(pack)) for pack in packs], files)
    check([pack.to(torch.device("cpu")) for pack in packs], files)


def test_existing_packs_are_not_rebuilt(tmp_path: Path, files: dict[str, list[str]], monkeypatch):
    open_cached(tmp_path / "cache", GB, files)
    monkeypatch.setattr(cache, "write_pack", lambda *args: pytest.fail("rebuilt"))
    check(open_cached(tmp_path / "cache", GB, files), files)


def test_size_limit_selects_pixels_file_bytes_or_no_cache(tmp_path: Path, files: dict[str, list[str]], capsys):
    size = sum(os.path.getsize(file) for names in files.values() for file in names)
    decoded = sum(pixels(file).numel() for names in files.values() for file in names)
    assert size < decoded
    size += index_bytes(files)
    packs = check(open_cached(tmp_path / "small", (size + 1) / 2**30, files), files)
    assert not any(pack.is_decoded for pack in packs)
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= size
    assert open_cached(tmp_path / "tiny", (size - 1) / 2**30, files) is None
    assert "do not fit in the cache" in capsys.readouterr().out
    assert not list((tmp_path / "tiny").glob("*.pack*"))
    # Packs of other datasets count.
    (tmp_path / "small" / "other.pack").write_bytes(bytes(size))
    (tmp_path / "a" / "0.png").touch()
    assert open_cached(tmp_path / "small", 1.5 * size / 2**30, files) is None
    assert (tmp_path / "small" / "other.pack").exists()


def test_images_that_do_not_fit_are_not_opened(tmp_path: Path, files: dict[str, list[str]], monkeypatch):
    """Each job would open all of them, one job after another."""
    monkeypatch.setattr(cache, "_decoded_bytes", lambda file: pytest.fail("opened"))
    assert open_cached(tmp_path / "cache", 1 / 2**30, files) is None


def test_leftovers_of_a_killed_job_are_removed(tmp_path: Path, files: dict[str, list[str]]):
    decoded = sum(pixels(file).numel() for names in files.values() for file in names)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a-12345678-12345678.pack.part").write_bytes(bytes(decoded))
    packs = check(open_cached(tmp_path / "cache", (decoded + index_bytes(files)) / 2**30, files), files)
    assert all(pack.is_decoded for pack in packs)


def test_existing_packs_are_used_regardless_of_the_limit(tmp_path: Path, files: dict[str, list[str]], monkeypatch):
    """These include packs that another job built while this one waited."""
    open_cached(tmp_path / "cache", GB, files)
    open_all = cache._open_all
    monkeypatch.setattr(cache, "_open_all", lambda entries: monkeypatch.setattr(cache, "_open_all", open_all))
    check(open_cached(tmp_path / "cache", 0.0, files), files)


def test_two_selections_of_the_same_files_coexist_within_the_limit(
    tmp_path: Path, files: dict[str, list[str]], monkeypatch
):
    fewer = {**files, "a": files["a"][:3]}
    check(open_cached(tmp_path / "cache", GB, files), files)
    check(open_cached(tmp_path / "cache", GB, fewer), fewer)
    assert len(list((tmp_path / "cache").glob("*.pack"))) == 3
    decoded = sum(pixels(file).numel() for names in files.values() for file in names) + index_bytes(files)
    check(open_cached(tmp_path / "tight", decoded / 2**30, fewer), fewer)
    packs = check(open_cached(tmp_path / "tight", decoded / 2**30, files), files)
    assert all(pack.is_decoded for pack in packs)
    assert len(list((tmp_path / "tight").glob("*.pack"))) == 2, "the pack of the other selection was deleted"


def index_bytes(files: dict[str, list[str]]) -> int:
    return cache.INDEX_BYTES * (sum(map(len, files.values())) + 100 * len(files))


@pytest.mark.parametrize("change", ["time", "size"])
def test_changed_files_are_detected(tmp_path: Path, files: dict[str, list[str]], change: str):
    open_cached(tmp_path / "cache", GB, files)
    before = sorted(path.name for path in (tmp_path / "cache").glob("*.pack"))
    first = Path(files["a"][0])
    stat = os.stat(first)
    if change == "time":
        os.utime(first, (1, 1))
    else:
        first.write_bytes(first.read_bytes() + b"\0")
        os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    packs = check(open_cached(tmp_path / "cache", GB, files), files)
    assert sorted(path.name for path in (tmp_path / "cache").glob("*.pack")) == before
    assert len(packs[0]) == len(files["a"])


@pytest.mark.parametrize("damage", ["short", "empty", "index", "other"])
def test_damaged_pack_is_rebuilt(tmp_path: Path, files: dict[str, list[str]], damage: str):
    open_cached(tmp_path / "cache", GB, files)
    path = next((tmp_path / "cache").glob("a-*.pack"))
    data = path.read_bytes()
    damaged = {"short": data[:-20], "empty": b"", "index": data[:-16] + b"\xff" * 8 + data[-8:], "other": b"x" * 100}
    path.write_bytes(damaged[damage])
    check(open_cached(tmp_path / "cache", GB, files), files)


def test_same_names_in_another_folder_have_their_own_packs(tmp_path: Path, files: dict[str, list[str]]):
    open_cached(tmp_path / "cache", GB, files)
    other = {name: [file.replace(f"/{name}/", f"/else/{name}/") for file in names] for name, names in files.items()}
    for names, new in zip(files.values(), other.values(), strict=True):
        for file, copy in zip(names, new, strict=True):
            Path(copy).parent.mkdir(parents=True, exist_ok=True)
            Path(copy).write_bytes(Path(file).read_bytes())
    check(open_cached(tmp_path / "cache", GB, other), other)
    assert len(list((tmp_path / "cache").glob("*.pack"))) == 4


@pytest.mark.parametrize("limit", [GB, 3e-5])
def test_broken_image_is_an_error_when_it_is_read(tmp_path: Path, files: dict[str, list[str]], limit: float):
    Path(files["a"][3]).write_bytes(Path(files["a"][3]).read_bytes()[:-40])
    packs = open_cached(tmp_path / "cache", limit, files)
    assert packs is not None
    assert packs[0].is_decoded == (limit == GB)
    with pytest.raises(BadImageError, match=r"a/3\.png"):
        packs[0][3]
    assert torch.equal(packs[0][4], pixels(files["a"][4]))


def test_memory_error_is_not_a_broken_image(tmp_path: Path, files: dict[str, list[str]], monkeypatch):
    def open_image(*args):
        raise MemoryError

    with monkeypatch.context() as m:
        m.setattr("domainbed.loading.decode.Image.open", open_image)
        with pytest.raises(MemoryError):
            write_pack(tmp_path / "a.pack", files["a"], "", True, 2, lambda: None)
    assert not (tmp_path / "a.pack").exists()
    check(open_cached(tmp_path / "cache", GB, files), files)


def test_missing_file_is_an_error(tmp_path: Path, files: dict[str, list[str]]):
    os.remove(files["b"][2])
    with pytest.raises(UsageError, match=r"cannot read .*b/2\.png: No such file"):
        open_cached(tmp_path / "cache", GB, files)


def test_unwritable_cache_is_not_used(tmp_path: Path, files: dict[str, list[str]], capsys):
    (tmp_path / "cache").write_text("a file")
    assert open_cached(tmp_path / "cache", GB, files) is None
    assert "cannot write to the cache" in capsys.readouterr().out


def test_one_of_several_jobs_fills_the_cache(tmp_path: Path, files: dict[str, list[str]], monkeypatch):
    written = []
    write_pack = cache.write_pack

    def write_slowly(path, *args):
        written.append(path)
        time.sleep(0.2)
        write_pack(path, *args)

    monkeypatch.setattr(cache, "write_pack", write_slowly)
    found: list[list[Pack] | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(open_cached(tmp_path / "cache", GB, files))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for packs in found:
        check(packs, files)
    assert len(written) == 2


class Stop(Exception):
    """Raised by a `check_stop`."""


def test_stopped_fill_keeps_complete_packs_and_is_resumed(tmp_path: Path, files: dict[str, list[str]], monkeypatch):
    written: list[str] = []
    write_pack = cache.write_pack

    def write(path, *args):
        written.append(path.name[0])
        write_pack(path, *args)

    def check_stop() -> None:
        if "b" in written:
            raise Stop

    monkeypatch.setattr(cache, "write_pack", write)
    with pytest.raises(Stop):
        open_cached(tmp_path / "cache", GB, files, check_stop)
    assert sorted(path.name[:2] for path in (tmp_path / "cache").iterdir()) == [".l", "a-"], "no partial pack"
    assert written == ["a", "b"]
    check(open_cached(tmp_path / "cache", GB, files), files)
    assert written == ["a", "b", "b"]


def test_fill_can_be_stopped_at_any_time(tmp_path: Path, files: dict[str, list[str]]):
    """Stop at the first call, at the second call, and so on, until the cache is filled."""
    for calls in range(1000):
        remaining = iter(range(calls))

        def check_stop(remaining=remaining) -> None:
            if next(remaining, None) is None:
                raise Stop

        try:
            packs = open_cached(tmp_path / str(calls), GB, files, check_stop)
        except Stop:
            assert not list((tmp_path / str(calls)).glob("*.part"))
        else:
            check(packs, files)
            break
    assert calls >= 3 * 10, "each file is checked for changes, measured, and stored"


def test_stop_while_another_job_fills_the_cache(tmp_path: Path, files: dict[str, list[str]], capsys, monkeypatch):
    n_calls, timeouts = 0, []
    acquire = FileLock.acquire

    def record_timeout(self: FileLock, timeout: float | None = None, *args, **kwargs):
        timeouts.append(timeout)
        return acquire(self, timeout, *args, **kwargs)

    def check_stop() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 10 + 5:  # after checking the files
            raise Stop

    (tmp_path / "cache").mkdir()
    with FileLock(tmp_path / "cache" / cache.CACHE_LOCK_FILE):
        monkeypatch.setattr(FileLock, "acquire", record_timeout)
        with pytest.raises(Stop):
            open_cached(tmp_path / "cache", GB, files, check_stop)
    assert "waiting for another job to fill the cache" in capsys.readouterr().out
    assert len(timeouts) > 3
    assert all(0 <= timeout <= 0.2 for timeout in timeouts), "checked several times per second"


def test_readers_stop_with_the_writer(tmp_path: Path, files: dict[str, list[str]], monkeypatch):
    """Images that were to be decoded ahead are not."""
    decoded = []

    def decode(*args):
        decoded.append(args)
        time.sleep(0.02)
        return np.zeros((1, 1, 3), np.uint8)

    def stop() -> None:
        raise Stop

    monkeypatch.setattr("domainbed.loading.pack.decode", decode)
    with pytest.raises(Stop):
        write_pack(tmp_path / "a.pack", files["a"] * 4, "", True, 2, stop)
    assert len(decoded) <= 6


@pytest.mark.parametrize("limit", [GB, 3e-5])
def test_special_file_is_an_error(tmp_path: Path, files: dict[str, list[str]], limit: float):
    os.remove(files["b"][2])
    os.mkfifo(files["b"][2])
    with pytest.raises(UsageError, match=r"cannot read .*b/2\.png: Not a regular file"):
        open_cached(tmp_path / "cache", limit, files)


FILL = """
import sys, time
from pathlib import Path
from domainbed.loading import pack
decode = pack.decode
def decode_slowly(*args):
    time.sleep(float(sys.argv[2]))
    return decode(*args)
pack.decode = decode_slowly
from domainbed.loading.image_cache import open_cached
print("begin", flush=True)
names = {name: sorted(map(str, Path(sys.argv[1], name).glob("?.png"))) for name in "ab"}
packs = open_cached(Path(sys.argv[1]) / "cache", 1.0, names)
print(len(packs), sum(int(p[i].sum()) for p in packs for i in range(len(p))))
"""


@pytest.mark.slow
def test_waiting_jobs_take_over_from_a_killed_one(tmp_path: Path, files: dict[str, list[str]]):
    def start(delay: float) -> subprocess.Popen:
        command = [sys.executable, "-c", FILL, str(tmp_path), str(delay)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = start(delay=60)
    assert killed.stdout is not None
    killed.stdout.readline()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list((tmp_path / "cache").glob("*.part")), "the fill did not start"
    waiting = [start(delay=0) for _ in range(2)]
    for process in waiting:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        assert "waiting for another job to fill the cache" in process.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    expected = sum(int(pixels(file).sum()) for names in files.values() for file in names)
    for process in waiting:
        out, err = process.communicate(timeout=60)
        assert out.splitlines()[-1] == f"2 {expected}", err
    assert not list((tmp_path / "cache").glob("*.part"))
    assert np.array_equal(sorted(p.suffix for p in (tmp_path / "cache").glob("[ab]*")), [".pack", ".pack"])
