"""One-line messages and printable text."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from domainbed.errors import printable


def test_printable_escapes_what_controls_a_terminal():
    assert printable("a\x1b[2J\rb\x7f\x9b\u202e\u2066\ud800\udcff") == r"a\x1b[2J\x0db\x7f\x9b\u202e\u2066\ud800\udcff"


def test_printable_keeps_ordinary_text():
    for text in ("", "Ünïcödé 日本語 👩\u200d🔬", "two\nlines\tand a tab", r"C:\x1b"):
        assert printable(text) == text


@given(st.text(st.characters()))
def test_printable_text_can_be_printed(text: str):
    escaped = printable(text)
    assert printable(escaped) == escaped
    assert escaped.encode().decode() == escaped
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in escaped)
