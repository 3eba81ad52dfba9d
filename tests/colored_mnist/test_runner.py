"""Finished restarts of the Colored MNIST proof of concept, kept a line each and read again."""

import json
import os
from pathlib import Path

import pytest

from domainbed.colored_mnist import runner as restarts

RUN = {"algorithm": "ERM", "label_flip": 0.25, "grayscale": False, "steps": 501, "seed": 0}
RUN |= {"train_acc": 0.9, "test_acc": 0.1, "gray_acc": 0.7}


def test_a_line_that_is_no_run_counts_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "records.jsonl"
    assert restarts.read(file) == []
    without_figures = {name: value for name, value in RUN.items() if not name.endswith("_acc")}
    others = [{"label_flip": [0.25]}, {"test_acc": None}, {"test_acc": "0.1"}, {"gray_acc": float("nan")}]
    damaged = [
        *(json.dumps(run).encode() for run in (without_figures, [RUN], 5, *(RUN | other for other in others))),
        json.dumps(RUN).encode().replace(b"ERM", b"ER\xff"),
        b"",
        b"[" * 100_000,
        json.dumps(RUN).encode()[:40],
    ]
    file.write_bytes(b"\n".join([json.dumps(RUN).encode(), *damaged]))
    restarts.append(file, RUN | {"seed": 1})
    assert restarts.read(file) == [RUN, RUN | {"seed": 1}]
    told = capsys.readouterr().err.splitlines()
    assert told == [f"warning: {file}: line {n} is no run; left out" for n in range(2, 2 + len(damaged))]


def test_a_finished_run_is_on_disk_when_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda file: on_disk.append(os.fstat(file).st_size))
    restarts.append(tmp_path / "records.jsonl", RUN)
    assert on_disk == [(tmp_path / "records.jsonl").stat().st_size]
