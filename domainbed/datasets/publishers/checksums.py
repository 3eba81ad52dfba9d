"""Checksums of downloaded archives, recorded in data_dir/checksums.json and compared with those of later downloads.

Copy this file to the data_dir of another machine to require the same archives there.
"""

import json
from pathlib import Path

from domainbed.errors import UsageError
from domainbed.files import atomic_write, file_lock, read_json

CHECKSUMS_FILE = "checksums.json"


def read_checksums(data_dir: Path) -> dict[str, str]:
    """Return the recorded SHA-256 of each archive, by dataset/archive.

    Raises:
        UsageError: the file cannot be read.
    """
    path = data_dir / CHECKSUMS_FILE
    try:
        recorded = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}; repair or delete it") from error
    if not isinstance(recorded, dict) or not all(isinstance(value, str) for value in recorded.values()):
        raise UsageError(f"{path} does not contain checksums by dataset/archive; repair or delete it")
    return recorded


def record_checksums(data_dir: Path, checksums: dict[str, str], lock: Path) -> None:
    """Add checksums to the file.

    Args:
        data_dir: its folder.
        checksums: SHA-256 by dataset/archive.
        lock: the lock file, because downloads of other datasets may be running.
    """
    with file_lock(lock, f"waiting for another process to write {CHECKSUMS_FILE}"):
        recorded = read_checksums(data_dir)
        if recorded | checksums != recorded:
            with atomic_write(data_dir / CHECKSUMS_FILE) as file:
                file.write(json.dumps(recorded | checksums, indent=1, sort_keys=True).encode() + b"\n")
