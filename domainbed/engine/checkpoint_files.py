"""The names of a job's checkpoints, and their removal. This module does not import torch."""

import re
from contextlib import suppress
from pathlib import Path

from domainbed.records import CHECKPOINT_FILE

PREVIOUS_FILE = "checkpoint_previous.pt"
CHECKPOINT_FILES = (CHECKPOINT_FILE, PREVIOUS_FILE)
# Other programs have partial files, too, such as browsers, or an export of the job's model.
PARTIAL_FILE = re.compile(
    r"(checkpoint\.pt|model\w*\.pkl|predictions\.npz|records\.csv|mlflow_run\.txt|done|pruned\.json)\.[0-9a-f]{32}\.part"
)


def remove_checkpoints(folder: Path) -> None:
    """Remove a job's checkpoints and partial files. Requires the folder's lock."""
    for name in CHECKPOINT_FILES:
        (folder / name).unlink(missing_ok=True)
    remove_partial_files(folder)


def remove_partial_files(folder: Path) -> None:
    """Remove the files that a killed process of the job was writing (`files.atomic_write`)."""
    for path in folder.glob("*.part"):
        if PARTIAL_FILE.fullmatch(path.name):
            with suppress(OSError):  # a folder, or a file of another user
                path.unlink()
