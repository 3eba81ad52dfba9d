"""The file of finished restarts."""

import json
import os
from pathlib import Path

import pytest

from domainbed.colored_mnist import runner

RESTART = {"algorithm": "ERM", "label_flip": 0.25, "grayscale": False, "steps": 501, "seed": 0}
RESTART |= {"train_acc": 0.9, "test_acc": 0.1, "gray_acc": 0.7}


def test_invalid_lines_are_skipped_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "records.jsonl"
    assert runner.read_restarts(file) == []
    without_accuracies = {name: value for name, value in RESTART.items() if not name.endswith("_acc")}
    invalid = [{"label_flip": [0.25]}, {"test_acc": None}, {"test_acc": "0.1"}, {"gray_acc": float("nan")}]
    damaged = [
        *(json.dumps(r).encode() for r in (without_accuracies, [RESTART], 5, *(RESTART | other for other in invalid))),
        json.dumps(RESTART).encode().replace(b"ERM", b"ER\xff"),
        b"",
        b"[" * 100_000,
        json.dumps(RESTART).encode()[:40],
    ]
    file.write_bytes(b"\n".join([json.dumps(RESTART).encode(), *damaged]))
    runner.append_restart(file, RESTART | {"seed": 1})
    assert runner.read_restarts(file) == [RESTART, RESTART | {"seed": 1}]
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == [
        f"warning: {file}: skipping line {n}, which is not a finished restart" for n in range(2, 2 + len(damaged))
    ]


def test_finished_restart_is_flushed_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda file: on_disk.append(os.fstat(file).st_size))
    runner.append_restart(tmp_path / "records.jsonl", RESTART)
    assert on_disk == [(tmp_path / "records.jsonl").stat().st_size]
