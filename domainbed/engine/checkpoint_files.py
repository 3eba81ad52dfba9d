"""The names of a job's checkpoints, and their removal. This module does not import torch."""

from pathlib import Path

from domainbed.records import CHECKPOINT_FILE

PREVIOUS_FILE = "checkpoint_previous.pt"
CHECKPOINT_FILES = (CHECKPOINT_FILE, PREVIOUS_FILE)


def remove_checkpoints(folder: Path) -> None:
    """Remove a job's checkpoints and partial files. Requires the folder's lock."""
    for name in CHECKPOINT_FILES:
        (folder / name).unlink(missing_ok=True)
    remove_partial_files(folder)


def remove_partial_files(folder: Path) -> None:
    """Remove the files that a killed process was writing."""
    for path in folder.glob("*.part"):
        path.unlink(missing_ok=True)
