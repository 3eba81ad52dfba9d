"""The rows of a table of images: which column is what, and everything that is wrong with the rows."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from domainbed.datasets.embedded_images import image_file, image_folder
from domainbed.datasets.image_folders import normalize_name
from domainbed.datasets.table_columns import COMMON_NAMES, format_columns, parse_columns
from domainbed.datasets.table_files import TableFile, open_table, version
from domainbed.errors import UsageError, printable, suggest
from domainbed.loading.decode import EXTENSIONS

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED = ("path", "label", "environment")
MAX_NAMED = 3  # rows that a message names
FEW_FILES = 2  # listing a folder takes longer than looking for this many files in it


class Faults(NamedTuple):
    """Faulty rows of one kind.

    Attributes:
        kind: what is wrong, after their number, such as "row without a label".
        n: the number of rows.
        examples: some of them.
    """

    kind: str
    n: int
    examples: Sequence[str]

    def __str__(self) -> str:
        shown = "; ".join(map(printable, self.examples)) + "; …" * (len(self.examples) < self.n)
        noun, rest = self.kind.split(" ", 1)
        return f"{self.n:,} {noun}{'s' * (self.n > 1)} {rest} ({shown})"


@dataclass(frozen=True)
class Rows:
    """The rows of a table without obvious faults, sorted by environment, class and path.

    Attributes:
        table: the file.
        columns: role -> column, for the roles that columns have.
        notes: how columns were recognized, one line each.
        class_names: the classes, sorted: numbers by value, other names alphabetically.
        environment_names: the environments, sorted in the same way.
        labels, environments: [n], numbers of classes and of environments.
        paths: [n], relative to `folder`.
        folder: the folder that paths are relative to.
        groups: [n], what each image belongs to; None if no column has this role.
        numbers: [n], numbers of the rows for messages.
        faults: what is wrong with the rows, without looking for files.
    """

    table: TableFile
    columns: Mapping[str, str]
    notes: Sequence[str]
    class_names: list[str]
    environment_names: list[str]
    labels: np.ndarray
    environments: np.ndarray
    paths: "pa.ChunkedArray"
    folder: Path
    groups: np.ndarray | None
    numbers: np.ndarray
    faults: list[Faults]

    @property
    def are_images_embedded(self) -> bool:
        return self.columns["path"] in self.table.image_columns

    def find_faults(self) -> list[Faults]:
        """Return everything that is wrong with the rows, including images that do not exist."""
        if self.are_images_embedded:
            return self.faults
        paths = self.paths.to_pylist()
        missing = find_missing(self.folder, paths)
        start = "/" if self.folder == Path("/") else ""
        examples = [f"row {self.numbers[i]}: {start}{paths[i]}" for i in missing[:MAX_NAMED]]
        return [*self.faults, *([Faults("row whose image does not exist", len(missing), examples)] if missing else [])]

    def counts(self) -> np.ndarray:
        """Return the number of images, [classes, environments]."""
        counts = np.zeros((len(self.class_names), len(self.environment_names)), dtype=np.int64)
        np.add.at(counts, (self.labels, self.environments), 1)
        return counts


def choose_columns(table: TableFile, given: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return role -> column, and notes for the user on the columns that were recognized by their names.

    Args:
        table: the table.
        given: the columns that the user has named.

    Raises:
        UsageError: a given column does not exist, or a required one is not given and not exactly one column has one of
            its common names.
    """
    for role, column in given.items():
        if column not in table.columns:
            raise UsageError(
                f"--columns {role}={column}: {table.path} has no such column; {suggest(column, table.columns)}"
            )
    if len(set(given.values())) < len(given):
        raise UsageError(f"--columns {format_columns(given)} names a column twice")
    chosen, notes = dict(given), []
    for role in REQUIRED:
        if role in given:
            continue
        candidates = _with_common_name(table, role, given)
        if len(candidates) != 1:
            found = f"several: {', '.join(candidates)}" if candidates else f"none; it has {', '.join(table.columns)}"
            raise UsageError(
                printable(
                    f"{table.path}: cannot tell which column is the {role}; of the usual names, the table has {found}. "
                    f"Pass --columns {role}=NAME"
                )
            )
        chosen[role] = candidates[0]
    if guessed := {role: column for role, column in chosen.items() if role not in given}:
        notes.append(f"columns recognized by their names: {format_columns(guessed)} (--columns selects others)")
    if "group" not in given and (candidates := _with_common_name(table, "group", chosen)):
        notes.append(
            f"note: images with the same {' or '.join(candidates)} may be on both sides of a split; "
            f"--columns group={candidates[0]} keeps them together"
        )
    return chosen, notes


def _with_common_name(table: TableFile, role: str, used: Mapping[str, str]) -> list[str]:
    """Return the columns with a common name of a role that do not have another role already."""
    names = COMMON_NAMES[role]
    return [column for column in table.columns if normalize_name(column) in names and column not in used.values()]


def read_rows(path: str, columns: str | None) -> Rows:
    """Return the rows of a table. They are read again only if the file has changed.

    Args:
        path: the file or folder.
        columns: the columns that the user has named, as in `parse_columns`.

    Raises:
        UsageError: the table or its columns cannot be read.
    """
    return _read_rows(path, columns, version(Path(path)))


@lru_cache(maxsize=2)
def _read_rows(path: str, columns: str | None, version: str) -> Rows:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = open_table(Path(path))
    chosen, notes = choose_columns(table, parse_columns(columns) if columns else {})
    is_embedded = chosen["path"] in table.image_columns
    data = table.text([column for role, column in chosen.items() if not (is_embedded and role == "path")])
    data = data.rename_columns([role for role in chosen if not (is_embedded and role == "path")])
    folder = Path(path).parent
    if is_embedded:
        folder = image_folder(table.path, chosen["path"])
        data = data.append_column("path", pa.array([image_file(row) for row in range(len(data))]))
    elif table.path.is_dir():
        folder = table.path
    all_numbers = np.arange(table.first_row, table.first_row + len(data) + len(table.malformed))
    numbers = np.setdiff1d(all_numbers, list(table.malformed))
    data = data.append_column("number", pa.array(numbers))
    faults = []
    if table.malformed:
        kind = "row with missing or additional cells"
        faults.append(Faults(kind, len(table.malformed), list(table.malformed.values())[:MAX_NAMED]))
    is_complete = np.ones(len(data), dtype=bool)
    for role in chosen:
        is_empty = pc.or_kleene(pc.is_null(data[role]), pc.equal(pc.utf8_trim_whitespace(data[role]), ""))
        is_empty = pc.fill_null(is_empty, True).to_numpy()
        faults += _faulty(f"row without {_article(role)}", data, is_empty, ())
        is_complete &= ~is_empty
    data = data.filter(pa.array(is_complete))
    if not is_embedded:
        faults += _find_path_faults(data, folder)
        data, folder = _relative(data, folder)
    names, codes = {}, {}
    for role in ("label", "environment"):
        faults += _find_name_faults(data, role)
        encoded = pc.dictionary_encode(data[role].combine_chunks())
        found = encoded.dictionary.to_pylist()
        names[role] = sorted_names(found)
        rank = {name: i for i, name in enumerate(names[role])}
        ranks = np.array([rank[name] for name in found], dtype=np.int64)
        codes[role] = ranks[encoded.indices.to_numpy()] if found else np.zeros(0, dtype=np.int64)
    if len(data) and len(names["label"]) < 2:
        faults.append(Faults("row of the only class; at least two classes are needed", len(data), names["label"]))
    # Sorted, so that results do not depend on the order of the rows, and as in trees environment/class/image.
    keys = pa.table({"e": codes["environment"], "l": codes["label"], "p": data["path"]})
    order = pc.sort_indices(keys, [("e", "ascending"), ("l", "ascending"), ("p", "ascending")])
    indices = order.to_numpy()
    groups = None
    if "group" in chosen:
        encoded = pc.dictionary_encode(data["group"].combine_chunks())
        groups = np.array(encoded.dictionary.to_pylist(), dtype=object)[encoded.indices.to_numpy()[indices]]
    rows = Rows(
        table,
        chosen,
        notes,
        names["label"],
        names["environment"],
        codes["label"][indices],
        codes["environment"][indices],
        data["path"].take(order),
        folder,
        groups,
        data["number"].to_numpy()[indices],
        faults,
    )
    del data, keys
    pa.default_memory_pool().release_unused()  # 190 MB after reading 470,000 rows
    return rows


def _article(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"


def _faulty(kind: str, data: "pa.Table", is_faulty: np.ndarray, shown: Sequence[str]) -> list[Faults]:
    """Return the faults of the marked rows, with the numbers of some and their cells of the roles in `shown`."""
    indices = np.flatnonzero(is_faulty)
    examples = []
    for i in indices[:MAX_NAMED].tolist():
        cells = ", ".join(data[role][i].as_py() for role in shown)
        examples.append(f"row {data['number'][i].as_py()}" + (f": {cells}" if cells else ""))
    return [Faults(kind, len(indices), examples)] if len(indices) else []


def _find_path_faults(data: "pa.Table", folder: Path) -> list[Faults]:
    """Return the faults of paths, relative to a folder: files that are not images, and images in several rows."""
    import pandas as pd
    import pyarrow.compute as pc

    suffixes = "|".join(extension[1:] for extension in EXTENSIONS)
    pattern = rf"(^|[/\\])[^./\\][^/\\]*\.({suffixes})$"  # not hidden, as in trees
    is_image = pc.match_substring_regex(data["path"], pattern, ignore_case=True)
    faults = _faulty(f"row whose file is not an image ({', '.join(EXTENSIONS)})", data, ~is_image.to_numpy(), ["path"])
    paths = data["path"]
    is_unusual = pc.match_substring_regex(paths, r"(^|/)\.{0,2}/|/\.{1,2}$").to_numpy()
    if is_unusual.any():  # ./a.png and a.png are the same image, and so may /data/a.png and ../data/a.png be
        base = os.path.abspath(folder)
        normal = [os.path.normpath(os.path.join(base, path)) for path in paths.to_pylist()]
        code, _ = pd.factorize(np.array(normal, dtype=object))
    else:
        code = pc.dictionary_encode(paths.combine_chunks()).indices.to_numpy()
    is_again = pd.Series(code).duplicated(keep=False).to_numpy()
    if not is_again.any():
        return faults
    again = data.filter(is_again)
    frame = again.select(["label", "environment"]).to_pandas().assign(code=code[is_again])
    different = frame.groupby("code").transform("nunique") > 1
    has_two_labels, has_two_environments = different["label"].to_numpy(), different["environment"].to_numpy()
    is_doubled = frame["code"].duplicated().to_numpy() & ~has_two_labels & ~has_two_environments
    faults += _faulty("row whose image has another label in another row", again, has_two_labels, ["path", "label"])
    faults += _faulty(
        "row whose image has another environment in another row", again, has_two_environments, ["path", "environment"]
    )
    return faults + _faulty("row whose image is in an earlier row", again, is_doubled, ["path"])


def _find_name_faults(data: "pa.Table", role: str) -> list[Faults]:
    """Return the faults of classes or environments: names that differ only in case or spaces, or cannot be shown."""
    names = sorted(data[role].unique().to_pylist())
    faults, spellings = [], defaultdict(list)
    for name in names:
        spellings[" ".join(name.split()).casefold()].append(name)
    if similar := [", ".join(map(repr, same)) for same in spellings.values() if len(same) > 1]:
        kind = f"{role} spelled in ways that differ only in case or spaces"
        faults.append(Faults(kind, len(similar), similar[:MAX_NAMED]))
    # Records and tables contain the names of environments, and caches name files after them.
    is_environment = role == "environment"
    if bad := [name for name in names if printable(name) != name or set(name) & set("\n\t" + "/" * is_environment)]:
        kind = f"{role} with control characters{' or a slash' * is_environment} in the name"
        faults.append(Faults(kind, len(bad), [repr(name) for name in bad[:MAX_NAMED]]))
    return faults


def _relative(data: "pa.Table", folder: Path) -> tuple["pa.Table", Path]:
    """Return the table with all paths relative to one folder, and the folder: the root if a path is absolute."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pc.any(pc.starts_with(data["path"], "/")).as_py():
        return data, folder
    base = os.path.abspath(folder)
    paths = [os.path.join(base, path).lstrip("/") for path in data["path"].to_pylist()]
    return data.set_column(data.column_names.index("path"), "path", pa.array(paths)), Path("/")


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return names in order: by value if all are integers, otherwise alphabetically."""
    names = list(names)
    if all(name.isascii() and name.removeprefix("-").isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def find_missing(folder: Path, paths: Sequence[str]) -> list[int]:
    """Return the indices of the paths, relative to a folder, that are not files.

    Each folder is listed once, which takes a fraction of the time of looking for each file on its own.
    """
    by_parent: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        by_parent[os.path.dirname(path)].append(i)
    missing = []
    for parent, indices in by_parent.items():
        if len(indices) <= FEW_FILES:
            missing += [i for i in indices if not os.path.isfile(folder / paths[i])]
            continue
        files, links = set(), set()
        with suppress(OSError), os.scandir(folder / parent) as entries:
            for entry in entries:
                if entry.is_symlink():  # it may lead nowhere
                    links.add(entry.name)
                elif entry.is_file():
                    files.add(entry.name)
        for i in indices:
            name = os.path.basename(paths[i])
            if name not in files and not (name in links and os.path.isfile(folder / paths[i])):
                missing.append(i)
    return sorted(missing)
