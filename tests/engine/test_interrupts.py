"""Stop requests by signals."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from domainbed.engine.interrupts import STOP_SIGNALS, TERMINATION_SIGNALS, stop_on_signals


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """Signals are handled as in a terminal, even if the tests run under nohup, which ignores SIGHUP."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in TERMINATION_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", STOP_SIGNALS, ids=lambda s: s.name)
def test_signal_requests_a_stop(signum: signal.Signals, capfd: pytest.CaptureFixture):
    before = {s: signal.getsignal(s) for s in STOP_SIGNALS}
    with stop_on_signals() as stop_request:
        assert not stop_request()
        os.kill(os.getpid(), signum)
        assert stop_request()
        assert stop_request(), "requests are permanent"
        assert stop_request.signals == [signum]
    assert {s: signal.getsignal(s) for s in STOP_SIGNALS} == before
    message = "\nStopping after saving a checkpoint; press Ctrl-C again to stop immediately.\n"
    assert capfd.readouterr().err == (message if signum == signal.SIGINT else "")


def test_second_ctrl_c_raises_also_after_another_signal(capfd: pytest.CaptureFixture):
    for first in ([], [signal.SIGTERM], [signal.SIGUSR2, signal.SIGTERM]):
        with stop_on_signals() as stop_request:
            for signum in [*first, signal.SIGINT]:
                os.kill(os.getpid(), signum)
            assert stop_request.signals == [*first, signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_repeated_signals_do_not_raise():
    with stop_on_signals() as stop_request:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop_request()


def test_ignored_signal_is_still_ignored():
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop_request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop_request()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_ctrl_c_is_not_handled_if_not_requested():
    with pytest.raises(KeyboardInterrupt), stop_on_signals(TERMINATION_SIGNALS):
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_requests_a_stop_without_a_reader_of_stderr():
    """Ctrl-C also stops `tee` in `... 2>&1 | tee log`."""
    program = """
import os, signal
from domainbed.engine.interrupts import stop_on_signals
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 2)
with stop_on_signals() as stop_request:
    os.kill(os.getpid(), signal.SIGINT)
    print(stop_request())
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, "True\n")
