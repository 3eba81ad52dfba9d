import subprocess
import sys
import threading
from pathlib import Path

import pytest

from domainbed.files import held, written_whole


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"old")
    with written_whole(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_what_was_there_stays_where_writing_fails(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"old")

    def fail() -> None:
        with written_whole(path) as file:
            file.write(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_the_second_waits_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    order = []

    def second() -> None:
        with held(tmp_path / "lock", "waiting"):
            order.append("second")

    thread = threading.Thread(target=second)
    with held(tmp_path / "lock", "never printed"):
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
    with held(tmp_path / "lock", "waiting"):
        pass
    assert capsys.readouterr().out == ""
