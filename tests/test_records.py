import json
import os
from pathlib import Path

import pytest

from domainbed.records import (
    SCHEMA_VERSION,
    append_record,
    flush_records,
    is_done,
    mark_done,
    read_job,
    records_length,
    truncate_records,
    validation_accuracy,
)
from tests.conftest import make_record


def test_records_are_read_back(tmp_path: Path):
    records = [make_record(step=s) for s in (0, 100)]
    for record in records:
        append_record(tmp_path, record)
    assert read_job(tmp_path) == ([record | {"schema_version": SCHEMA_VERSION} for record in records], [])
    assert not is_done(tmp_path)
    mark_done(tmp_path)
    assert is_done(tmp_path)
    assert (tmp_path / "done").read_text() == "done"


def test_truncate_records(tmp_path: Path):
    lengths = [0]
    for step in (0, 5, 10):
        append_record(tmp_path, make_record(step=step))
        lengths.append(records_length(tmp_path))
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write("incomplete")
    for n in (3, 3, 2, 1):
        truncate_records(tmp_path, lengths[n])
        assert records_length(tmp_path) == lengths[n]
        assert [r["step"] for r in read_job(tmp_path)[0]] == [0, 5, 10][:n]
    truncate_records(tmp_path, 10**6)  # beyond the end, nothing changes
    assert records_length(tmp_path) == lengths[1]
    for _ in range(2):
        truncate_records(tmp_path, 0)
        assert list(tmp_path.iterdir()) == []
        assert records_length(tmp_path) == 0


def test_writes_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    append_record(tmp_path, {"step": 0})
    append_record(tmp_path, {"step": 5})
    line = len(json.dumps({"schema_version": SCHEMA_VERSION, "step": 0}) + "\n")
    assert synced == []
    flush_records(tmp_path)
    truncate_records(tmp_path, line)
    append_record(tmp_path, {"step": 5})
    mark_done(tmp_path)
    assert synced == [2 * line, line, 2 * line, 4]


def test_job_without_records_is_marked_as_done(tmp_path: Path):
    flush_records(tmp_path)
    mark_done(tmp_path)
    assert is_done(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_links_are_neither_extended_nor_truncated(tmp_path: Path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "results.jsonl").symlink_to("target")
    for write in (lambda: append_record(tmp_path, make_record()), lambda: truncate_records(tmp_path, 2)):
        with pytest.raises(OSError, match=r"results\.jsonl"):
            write()
    assert (tmp_path / "target").read_text() == "precious"


def test_validation_accuracy_reads_accuracies_alone():
    accuracies = {"env0_out_acc": 0.5, "env1_out_acc": 0.25, "env2_out_acc": 0.9, "env0_in_acc": 1.0}
    metrics = {"env_mean_out_acc": 0.1, "env_out_acc": 0.2, "env0_x_out_acc": 0.3}
    assert validation_accuracy({"args": {"test_envs": [2]}, **accuracies, **metrics}) == 0.375
