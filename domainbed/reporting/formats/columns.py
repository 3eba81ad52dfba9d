"""Columns of numbers as a compact text that a page contains and its script decodes (`explorer/decode.js`).

A block is a JSON header and columns of unsigned integers, compressed by gzip and written in base64, which contains no
character that HTML interprets. A column stores the differences between consecutive values modulo 2^bits, first the low
bytes of all values, then the higher ones: values that change slowly compress to a third of their size or less.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

ACCURACY_UNITS = 10_000  # of an accuracy of 1: hundredths of a percent
MISSING_ACCURACY = 0xFFFF
MISSING_METRIC = 0x7FC0  # a NaN


class Block:
    """Columns that are appended one after the other."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, values: np.ndarray) -> tuple[int, int, int]:
        """Append a column of nonnegative integers.

        Returns:
            Its offset in the block, the number of bytes of a value, and the number of values.
        """
        values = values.astype(np.min_scalar_type(int(values.max(initial=0))))
        differences = np.diff(values, prepend=values.dtype.type(0))
        width = values.dtype.itemsize
        planes = differences.astype(values.dtype.newbyteorder("<")).view(np.uint8).reshape(len(values), width).T
        column = (self._size, width, len(values))
        self._chunks.append(planes.tobytes())
        self._size += width * len(values)
        return column

    def encode(self, header: Mapping[str, Any]) -> str:
        """Return the block as text.

        Args:
            header: the content of the header; it must be valid JSON (no NaN), and say what the columns are.
        """
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
        content = b"".join([len(text).to_bytes(4, "little"), text, *self._chunks])
        return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def encode_accuracies(values: np.ndarray) -> np.ndarray:
    """Return accuracies in [0, 1] as 16-bit integers; NaN becomes MISSING_ACCURACY."""
    is_known = np.isfinite(values)
    scaled = np.rint(ACCURACY_UNITS * np.where(is_known, values, 0.0)).clip(0, MISSING_ACCURACY - 1)
    return np.where(is_known, scaled, MISSING_ACCURACY).astype(np.uint16)


def encode_floats(values: np.ndarray) -> np.ndarray:
    """Return numbers as bfloat16, with a relative precision of 0.4%; numbers that are not finite become a NaN."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    is_finite = (rounded & 0x7F80) != 0x7F80
    return np.where(is_finite & np.isfinite(values), rounded, np.uint16(MISSING_METRIC))
