"""Requests to stop: noted, told, and answered at once the second time."""

import os
import signal
from collections.abc import Iterator

import pytest

from domainbed.engine.interrupts import FROM_ANYONE, FROM_OUTSIDE, stop_on_signals


@pytest.fixture(autouse=True)
def as_from_a_terminal() -> Iterator[None]:
    """Whatever the tests were started with (nohup ignores SIGHUP)."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in FROM_OUTSIDE}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", FROM_ANYONE, ids=lambda s: s.name)
def test_a_signal_is_noted_and_harms_nothing(signum: signal.Signals, capfd: pytest.CaptureFixture):
    before = {s: signal.getsignal(s) for s in FROM_ANYONE}
    with stop_on_signals() as asked_to_stop:
        assert not asked_to_stop()
        os.kill(os.getpid(), signum)
        assert asked_to_stop()
        assert asked_to_stop(), "it stays so"
        assert asked_to_stop.signals == [signum]
    assert {s: signal.getsignal(s) for s in FROM_ANYONE} == before
    told = "\nStopping as soon as all is saved; Ctrl-C again stops at once.\n"
    assert capfd.readouterr().err == (told if signum == signal.SIGINT else "")


def test_a_second_ctrl_c_ends_it_where_it_stands_also_after_another_signal(capfd: pytest.CaptureFixture):
    for first in ([], [signal.SIGTERM], [signal.SIGUSR2, signal.SIGTERM]):
        with stop_on_signals() as asked_to_stop:
            for signum in [*first, signal.SIGINT]:
                os.kill(os.getpid(), signum)
            assert asked_to_stop.signals == [*first, signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_signals_twice_are_no_haste():
    with stop_on_signals() as asked_to_stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked_to_stop()


def test_what_was_ignored_is_ignored_still():
    """As by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as asked_to_stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not asked_to_stop()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_ctrl_c_can_be_left_to_another():
    with pytest.raises(KeyboardInterrupt), stop_on_signals(FROM_OUTSIDE):
        os.kill(os.getpid(), signal.SIGINT)
