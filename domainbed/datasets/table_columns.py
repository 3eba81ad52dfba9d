"""The roles of a table's columns, as `--columns` names them. Imports nothing heavy: options are parsed with it."""

from collections.abc import Mapping

from domainbed.errors import UsageError, suggest

# Role of a column -> the names by which it is recognized, regardless of case and separators.
COMMON_NAMES = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "img", "imgpath"),
    "label": ("label", "class", "target", "category", "classname"),
    "environment": ("environment", "env", "domain", "site"),
    "group": ("group", "groupid", "patient", "patientid", "subject", "subjectid"),
}


def parse_columns(text: str) -> dict[str, str]:
    """Return role -> column of a text such as "path=file,label=diagnosis,environment=hospital,group=patient".

    Raises:
        UsageError: it is not of this form, or a role is unknown or occurs twice.
    """
    columns: dict[str, str] = {}
    for part in text.split(","):
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not (role and equals and column):
            raise UsageError(f"--columns {text!r}: expected ROLE=COLUMN,…, such as path=file,label=diagnosis")
        if role not in COMMON_NAMES:
            raise UsageError(f"--columns: unknown role {role!r}; {suggest(role, COMMON_NAMES)}")
        if role in columns:
            raise UsageError(f"--columns {text!r} names two columns for {role}")
        columns[role] = column
    return columns


def format_columns(columns: Mapping[str, str]) -> str:
    """Return the text that `parse_columns` reads, with roles in a fixed order."""
    return ",".join(f"{role}={columns[role]}" for role in COMMON_NAMES if role in columns)
