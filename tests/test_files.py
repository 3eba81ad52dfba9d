import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from domainbed.files import atomic_write, file_lock


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_what_was_there_stays_where_writing_fails(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_of_two_that_write_it_the_last_to_end_has_it_whole(tmp_path: Path):
    path = tmp_path / "x.txt"
    with atomic_write(path) as first:
        first.write(b"the first,")
        with atomic_write(path) as second:
            second.write(b"2")
        assert path.read_bytes() == b"2"
        first.write(b" which takes longer")
    assert path.read_bytes() == b"the first, which takes longer"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "none" / "x.txt"
    with pytest.raises(FileNotFoundError) as raised, atomic_write(path):
        pass
    assert (raised.value.filename, raised.value.filename2) == (str(path), None)
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(IsADirectoryError) as raised, atomic_write(tmp_path / "x.txt"):
        pass
    assert (raised.value.filename, raised.value.filename2) == (str(tmp_path / "x.txt"), None)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FileNotFoundError) as raised, atomic_write(tmp_path / "z.txt"):
        (tmp_path / "another").read_bytes()
    assert raised.value.filename == str(tmp_path / "another")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised, atomic_write(tmp_path / "y.txt"):
        pass
    assert raised.value.filename == str(tmp_path / "y.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_the_second_waits_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    order = []

    def second() -> None:
        with file_lock(tmp_path / "lock", "waiting"):
            order.append("second")

    thread = threading.Thread(target=second)
    with file_lock(tmp_path / "lock", "never printed"):
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert capsys.readouterr().out == "waiting\n"


def test_a_process_that_is_killed_lets_go(tmp_path: Path, capsys: pytest.CaptureFixture):
    code = (
        "import sys, time; from pathlib import Path; from domainbed.files import held\n"
        "with held(Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    with file_lock(tmp_path / "lock", "waiting"):
        pass
    assert capsys.readouterr().out == ""


def test_what_stood_there_is_kept_beside(tmp_path: Path):
    path, kept = tmp_path / "x.txt", tmp_path / "before.txt"
    for text, before in ((b"1", None), (b"2", b"1"), (b"3", b"2")):
        with atomic_write(path, kept=kept) as file:
            file.write(text)
        assert path.read_bytes() == text
        assert (kept.read_bytes() if kept.exists() else None) == before
    with pytest.raises(ValueError, match="four"), atomic_write(path, kept=kept):
        raise ValueError("four")
    assert (path.read_bytes(), kept.read_bytes()) == (b"3", b"2")
    assert {p.name for p in tmp_path.iterdir()} == {"x.txt", "before.txt"}


def test_nothing_moves_before_all_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, kept = tmp_path / "x.txt", tmp_path / "before.txt"
    path.write_bytes(b"old")
    done = []
    replace = os.replace

    def moved(source: Path, target: Path) -> None:
        done.append(f"{source.name} -> {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "replace", moved)
    with atomic_write(path, kept=kept) as file:
        file.write(b"new one")
    assert [re.sub("[0-9a-f]{32}", "#", str(each)) for each in done] == [
        "7",
        "x.txt -> before.txt",
        "x.txt.#.part -> x.txt",
    ]


def test_a_full_disk_is_told_as_such_where_torch_hides_it(tmp_path: Path):
    class Full:
        def __init__(self, file):
            self.file, self.room = file, 500

        def write(self, data) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    with pytest.raises(OSError, match="No space left on device"), atomic_write(tmp_path / "x") as file:
        torch.save({"a": torch.zeros(1000)}, Full(file))
    with pytest.raises(RuntimeError, match="another"), atomic_write(tmp_path / "x"):
        raise RuntimeError("another")
    assert list(tmp_path.iterdir()) == []
