"""Blocks of columns: what a page's script decodes equals what was encoded."""

import base64
import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainbed.reporting.formats.columns import (
    ACCURACY_UNITS,
    MISSING_ACCURACY,
    Block,
    encode_accuracies,
    encode_floats,
)


class DecodedBlock:
    """A block, decoded as `explorer/decode.js` does, but value by value."""

    def __init__(self, text: str) -> None:
        content = gzip.decompress(base64.b64decode(text, validate=True))
        length = int.from_bytes(content[:4], "little")
        self.header = json.loads(content[4 : 4 + length], parse_constant=pytest.fail)
        self.data = content[4 + length :]

    def column(self, place: list[int]) -> list[int]:
        offset, width, n = place
        values, value = [], 0
        for i in range(n):
            value += sum(self.data[offset + byte * n + i] << (8 * byte) for byte in range(width))
            value %= 1 << (8 * width)
            values.append(value)
        return values

    def accuracies(self, place: list[int]) -> list[float]:
        return [np.nan if v == MISSING_ACCURACY else v / ACCURACY_UNITS for v in self.column(place)]

    def floats(self, place: list[int]) -> np.ndarray:
        return (np.array(self.column(place), dtype=np.uint32) << 16).view(np.float32)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=20), max_size=4), st.text())
def test_columns_are_decoded(columns: list[list[int]], name: str):
    block = Block()
    places = [block.add(np.array(values, dtype=np.int64)) for values in columns]
    decoded = DecodedBlock(block.encode({"name": name, "places": places}))
    assert decoded.header["name"] == name
    assert [decoded.column(place) for place in decoded.header["places"]] == columns


def test_columns_are_as_narrow_as_their_values():
    block = Block()
    widths = [block.add(np.array([0, highest]))[1] for highest in (0, 255, 256, 65_535, 65_536)]
    assert widths == [1, 1, 2, 2, 4]


def test_header_without_json_is_an_error():
    with pytest.raises(ValueError, match="JSON"):
        Block().encode({"loss": float("nan")})


@given(st.lists(st.floats(0, 1) | st.just(float("nan"))))
def test_accuracies(values: list[float]):
    encoded = encode_accuracies(np.array(values, dtype=float))
    np.testing.assert_allclose(
        np.where(encoded == MISSING_ACCURACY, np.nan, encoded / ACCURACY_UNITS), values, atol=0.5 / ACCURACY_UNITS
    )


@given(st.lists(st.floats()))
def test_floats(values: list[float]):
    block = Block()
    place = block.add(encode_floats(np.array(values, dtype=float)))
    decoded = DecodedBlock(block.encode({})).floats(list(place))
    largest, smallest = float(np.float32(3.38e38)), float(np.finfo(np.float32).tiny)
    for value, result in zip(values, decoded.tolist(), strict=True):
        if not abs(value) <= 3.4e38:
            assert np.isnan(result)
        elif abs(value) <= largest:
            assert result == pytest.approx(value, rel=1 / 256, abs=smallest)
