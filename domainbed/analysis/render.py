"""Tables of an analysis as text and as Markdown."""

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from domainbed.analysis.analysis import Section
from domainbed.analysis.tables import Table

TEXT_COLUMNS = {
    *("Algorithm", "Algorithms", "Test", "On", "Line", "Over", "Outcome", "Such as", "Worst class", "Confusion", ""),
}


def as_text(sections: Sequence[Section], names: Sequence[str] = ()) -> str:
    """Return the tables of these names for a terminal; all if there are none."""
    blocks = []
    for section, tables in _blocks(sections, names):
        blocks.append(f"==== {section.title}, model selection: {section.selection} ====")
        blocks += ["\n".join([table.title, _tabulate(table, "simple"), *table.notes]) for table in tables]
    return "\n\n".join(blocks) + "\n"


def as_markdown(sections: Sequence[Section], names: Sequence[str] = ()) -> str:
    """Return the tables of these names as GitHub-flavored Markdown; all if there are none."""
    blocks = []
    for section, tables in _blocks(sections, names):
        blocks.append(f"## {_escape(section.title)}, model selection: {_escape(section.selection)}")
        for table in tables:
            blocks += [f"### {table.title}", _tabulate(table, "github"), *map(_escape, table.notes)]
    return "\n\n".join(blocks) + "\n"


def _blocks(sections: Sequence[Section], names: Sequence[str]) -> Iterator[tuple[Section, list[Table]]]:
    for section in sections:
        yield section, [table for table in section.tables if not names or table.name in names]


def _tabulate(table: Table, format: str) -> str:
    rows = [row + [""] * (len(table.headers) - len(row)) for row in table.rows]
    if format == "github":
        rows = [[_escape(cell).replace("+/-", "±") for cell in row] for row in rows]
    alignment = ["left" if header in TEXT_COLUMNS else "right" for header in table.headers]
    return tabulate(rows, table.headers, format, colalign=alignment, disable_numparse=True) if rows else "None."


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    for character in "\\`*_<>|[]":
        text = text.replace(character, f"\\{character}")
    return text
