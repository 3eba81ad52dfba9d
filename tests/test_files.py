import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from domainbed import files
from domainbed.files import (
    atomic_write,
    file_lock,
    open_regular,
    open_to_append,
    other_writers,
    read_end,
    read_json,
    read_regular,
)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_only_regular_files_are_opened(tmp_path: Path, fifo: Path):
    for path in (fifo, Path("/dev/zero"), tmp_path):
        # At once: opening a FIFO without a writer would otherwise wait forever.
        with pytest.raises(OSError, match=r"Not a regular file|Is a directory") as error:
            open_regular(path)
        assert error.value.filename == str(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "link").symlink_to("x")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"


def test_reads_are_bounded(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="Larger than 4 bytes"):
        read_regular(path, 4)
    with open("/proc/self/status", "rb") as file:  # regular, of size 0, with content
        assert read_regular("/proc/self/status", 2**20)[:5] == file.read(5)
    with pytest.raises(OSError, match="Larger than 3 bytes"):
        read_regular("/proc/self/status", 3)


def test_end_of_a_file(tmp_path: Path, fifo: Path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert [read_end(path, n) for n in (0, 2, 5, 6)] == [b"", b"45", b"12345", b"12345"]
    with pytest.raises(OSError, match="Not a regular file"):
        read_end(fifo, 5)


def test_json_errors_are_value_errors(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    for content in (b"", b"{", b"\xff\xfe{}", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"column|nested"):
            read_json(path)


def test_file_is_replaced_when_complete(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_failed_write_keeps_the_previous_file(tmp_path: Path):
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


def test_last_of_concurrent_writers_wins(tmp_path: Path):
    path = tmp_path / "x.txt"
    with atomic_write(path) as first:
        first.write(b"the first,")
        with atomic_write(path) as second:
            second.write(b"2")
        assert path.read_bytes() == b"2"
        first.write(b" which is slower")
    assert path.read_bytes() == b"the first, which is slower"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_error_names_the_requested_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_waiting_for_a_lock_prints_a_message(tmp_path: Path, capsys: pytest.CaptureFixture):
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


def test_killed_process_releases_its_lock(tmp_path: Path, capsys: pytest.CaptureFixture):
    code = (
        "import sys, time; from pathlib import Path; from domainbed.files import file_lock\n"
        "with file_lock(Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    with file_lock(tmp_path / "lock", "waiting"):
        pass
    assert capsys.readouterr().out == ""


def test_backup_holds_the_previous_file(tmp_path: Path):
    path, backup = tmp_path / "x.txt", tmp_path / "before.txt"
    for text, before in ((b"1", None), (b"2", b"1"), (b"3", b"2")):
        with atomic_write(path, backup=backup) as file:
            file.write(text)
        assert path.read_bytes() == text
        assert (backup.read_bytes() if backup.exists() else None) == before
    with pytest.raises(ValueError, match="four"), atomic_write(path, backup=backup):
        raise ValueError("four")
    assert (path.read_bytes(), backup.read_bytes()) == (b"3", b"2")
    assert {p.name for p in tmp_path.iterdir()} == {"x.txt", "before.txt"}


def test_data_is_synced_before_files_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, backup = tmp_path / "x.txt", tmp_path / "before.txt"
    path.write_bytes(b"old")
    calls = []
    replace = os.replace

    def record(source: Path, target: Path) -> None:
        calls.append(f"{source.name} -> {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "replace", record)
    with atomic_write(path, backup=backup) as file:
        file.write(b"new one")
    assert [re.sub("[0-9a-f]{32}", "#", str(call)) for call in calls] == [
        "7",
        "x.txt -> before.txt",
        "x.txt.#.part -> x.txt",
    ]


def test_full_disk_is_reported_when_torch_hides_it(tmp_path: Path):
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


def test_open_to_append_follows_no_link(tmp_path: Path, fifo: Path):
    for content in (b"a", b"b"):
        with open_to_append(tmp_path / "x") as file:
            file.write(content)
    assert (tmp_path / "x").read_bytes() == b"ab"
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "dangling").symlink_to("missing")
    for path in (tmp_path / "link", tmp_path / "dangling", fifo):
        with pytest.raises(OSError, match=path.name):
            open_to_append(path)
    assert (tmp_path / "x").read_bytes() == b"ab"
    assert not (tmp_path / "missing").exists()


def test_other_writers(tmp_path: Path):
    """Everybody who can write to a folder or to one above it, unless that one protects the files of others."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    assert other_writers(folder) == ""
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o777)
        assert other_writers(folder) == f"everybody can write to {path}"
        path.chmod(0o1777)
        assert other_writers(folder) == ""
        path.chmod(0o755)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "members", "is_own"),
    [
        ("me", [], True),
        ("me", ["me"], True),
        ("me", ["me", "you"], False),
        ("staff", [], False),
        ("staff", ["me"], False),
    ],
)
def test_own_group_has_the_name_and_no_other_member(
    name: str, members: list[str], is_own: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pwd.getpwuid", lambda user: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr("grp.getgrgid", lambda group: SimpleNamespace(gr_name=name, gr_mem=members))
    assert files._is_own_group(1, 2) is is_own
    monkeypatch.setattr("grp.getgrgid", lambda group: {}[group])
    assert not files._is_own_group(1, 2)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to others")
def test_owners_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "_is_own_group", lambda user, group: False)
    parent = tmp_path / "parent"
    folder = parent / "folder"
    folder.mkdir(parents=True)
    parent.chmod(0o775)
    os.chown(parent, 0, 54321)
    assert other_writers(folder) == f"group 54321 can write to {parent}"
    parent.chmod(0o755)
    os.chown(parent, 54321, 0)
    assert other_writers(folder) == f"user 54321 owns {parent}"


def test_other_writers_of_new_folders(tmp_path: Path):
    """Programs create folders with the permissions that the umask leaves."""
    before = os.umask(0)
    try:
        assert other_writers(tmp_path).startswith("everybody can write to ")
    finally:
        os.umask(before)


def test_device_is_not_replaced_by_a_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"), atomic_write(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
