"""Colors, progress and durations, on a terminal and elsewhere."""

import io

import pytest

from domainbed import terminal
from domainbed.terminal import ProgressBar, colored, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return not super().isatty()  # raises ValueError if it is closed


def test_colors_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    closed = Terminal()
    closed.close()
    assert colored("done", "green", Terminal()) == "\033[32mdone\033[0m"
    assert colored("done", None, Terminal()) == "done"
    assert [colored("done", "green", stream) for stream in (io.StringIO(), closed)] == ["done", "done"]
    monkeypatch.setenv("TERM", "dumb")
    assert colored("done", "green", Terminal()) == "done"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert colored("done", "green", Terminal()) == "done"
    monkeypatch.setenv("NO_COLOR", "")  # counts as unset
    assert colored("done", "green", Terminal()) != "done"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_progress_is_a_line_every_30_seconds(clock: list[float], capsys: pytest.CaptureFixture):
    with ProgressBar(total=40, desc="verifying", unit=" files") as bar:
        for _ in range(10):
            clock[0] += 7
            bar.update(2)
            bar.set_postfix_str("ignored")
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "verifying: 10 of 40 files after 35 s, 2 min left\nverifying: 20 of 40 files after 70 s, 70 s left\n"
    )


def test_progress_of_iterables(clock: list[float], capsys: pytest.CaptureFixture):
    """With and without a known length."""
    for items in ([1, 2, 3], iter([1, 2, 3])):
        for _ in ProgressBar(items, unit="plot"):
            clock[0] += 20
    assert capsys.readouterr().err == "2 of 3 plots after 40 s, 20 s left\n2 plots after 40 s\n"


def test_progress_of_a_resumed_download_counts_its_own_bytes(clock: list[float], capsys: pytest.CaptureFixture):
    bar = ProgressBar(total=3_000_000, initial=1_000_000, desc="PACS", unit="B", unit_scale=True)
    clock[0] += 30
    bar.update(1_000_000)
    assert capsys.readouterr().err == "PACS: 2.00MB of 3.00MB after 30 s, 30 s left\n"


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    list(ProgressBar(range(3), "verifying"))
    assert "verifying: 100%" in stderr.getvalue()


def test_disabled_progress_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture):
    for _ in ProgressBar([1, 2], disable=True):
        clock[0] += 100
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (89.9, "90 s"),
        (90, "2 min"),
        (59 * 60 + 29, "59 min"),
        (59 * 60 + 31, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (47 * 3600 + 59 * 60, "47 h 59 min"),
        (48 * 3600, "2 d 00 h"),
        (1e7, "115 d 17 h"),
    ],
)
def test_durations(seconds: float, expected: str):
    assert duration(seconds) == expected
