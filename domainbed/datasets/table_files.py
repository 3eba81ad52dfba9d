"""Tables on disk: CSV, TSV, Parquet, and folders written by Hugging Face's `datasets`, read column by column."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.errors import UsageError, one_line, printable, suggest

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
BATCH_ROWS = 256  # images read at once


@dataclass
class TableFile:
    """A table on disk. A subclass implements `text` and, if a column can contain images, `images`.

    Attributes:
        path: the file or folder.
        columns: the names of its columns.
        image_columns: those that contain images, not their paths.
        first_row: the number of the first row in messages, as programs show it.
        malformed: number -> message, for rows without exactly one cell per column. They are not part of the table.
    """

    path: Path
    columns: list[str]
    image_columns: frozenset[str] = frozenset()
    first_row: int = 1
    malformed: dict[int, str] = field(default_factory=dict)

    def text(self, columns: Sequence[str]) -> "pa.Table":
        """Return these columns as text, with null for cells without a value.

        Raises:
            UsageError: the file cannot be read, or a column does not contain text or numbers.
        """
        raise NotImplementedError

    def images(self, column: str) -> Iterator[tuple[bytes | None, str | None]]:
        """Yield for each row the bytes of its image file and the file's path; each is None if not stored."""
        raise NotImplementedError


def version(path: Path) -> str:
    """Return a hash that changes whenever a table is written again: of names, sizes and times of its files.

    Other files in a folder, such as the images that Parquet files name, are not part of the table.

    Raises:
        UsageError: the table does not exist.
    """
    try:
        files = (shards(path) or sorted(p for p in path.rglob("*") if p.is_file())) if path.is_dir() else [path]
        described = [(file.name, (stat := os.stat(file)).st_size, stat.st_mtime_ns) for file in files]
    except OSError as error:
        raise UsageError(f"--data_dir {path}: {error.strerror}") from error
    return hashlib.sha256(repr(described).encode(errors="surrogateescape")).hexdigest()[:12]


def shards(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PARQUET)


def open_table(path: Path) -> TableFile:
    """Return the table in a file or folder, by the file's suffix.

    Raises:
        UsageError: it is not a table, or cannot be read.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        files = shards(path)
        return ParquetFile.open(path, files) if files else SavedDataset.open(path)
    if suffix in DELIMITERS:
        return TextFile.open(path, DELIMITERS[suffix])
    if suffix in PARQUET:
        return ParquetFile.open(path, [path])
    known = ", ".join([*DELIMITERS, *PARQUET])
    raise UsageError(f"--data_dir {path}: the name of a table must end in one of {known}, not {suffix or 'nothing'!r}")


@dataclass
class TextFile(TableFile):
    """A CSV or TSV file in UTF-8, with the names of the columns in the first line."""

    delimiter: str = ","

    @classmethod
    def open(cls, path: Path, delimiter: str) -> "TextFile":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                columns = next(csv.reader(file, delimiter=delimiter), [])
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not in UTF-8; save it with this encoding") from error
        except (OSError, csv.Error) as error:
            raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
        if not columns:
            raise UsageError(f"{path} is empty; its first line must name the columns")
        if len(columns) == 1:
            raise UsageError(
                f"{path} has only one column, {printable(columns[0])!r}; columns must be separated by "
                f"{'tabs' if delimiter != ',' else 'commas'} (.csv: commas, .tsv: tabs)"
            )
        if doubled := [name for name, n in Counter(columns).items() if n > 1]:
            raise UsageError(f"{path} has several columns named {printable(doubled[0])!r}; rename them")
        return cls(path, columns, first_row=2, delimiter=delimiter)

    def text(self, columns: Sequence[str]) -> "pa.Table":
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        malformed = []

        def skip(row: Any) -> str:
            malformed.append(row)
            return "skip"

        try:
            table = arrow_csv.read_csv(
                self.path,
                # One thread, because rows are counted for messages only then.
                read_options=arrow_csv.ReadOptions(use_threads=False),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=skip
                ),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string()), null_values=[""]
                ),
            )
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"cannot read {self.path}: {error}") from error
        self.malformed = {
            row.number: f"row {row.number} has {row.actual_columns} cells, not {row.expected_columns}"
            for row in malformed
        }
        return table


@dataclass
class ParquetFile(TableFile):
    """A Parquet file, or the files of a folder one after another in the order of their names."""

    files: list[Path] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, files: list[Path]) -> "ParquetFile":
        import pyarrow as pa
        from pyarrow import parquet

        try:
            schemas = [parquet.read_schema(file) for file in files]
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"cannot read {path}: {error}") from error
        for file, schema in zip(files, schemas, strict=True):
            if schema.names != schemas[0].names:
                raise UsageError(f"{file} has other columns than {files[0]}; move one of them to another folder")
        return cls(path, schemas[0].names, image_columns(schemas[0]), files=files)

    def text(self, columns: Sequence[str]) -> "pa.Table":
        import pyarrow as pa
        from pyarrow import parquet

        def read(file: Path) -> pa.Table:
            table = parquet.read_table(file, columns=list(columns))
            return to_text(table, class_labels(table.schema))  # each export numbers its classes on its own

        try:
            return pa.concat_tables(map(read, self.files))
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"cannot read {self.path}: {error}") from error

    def images(self, column: str) -> Iterator[tuple[bytes | None, str | None]]:
        import pyarrow as pa
        from pyarrow import parquet

        for path in self.files:
            try:
                with parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
                        yield from map(stored_image, batch.column(0).to_pylist())
            except (OSError, pa.ArrowException) as error:
                raise UsageError(f"cannot read {path}: {one_line(error)}") from error


@dataclass
class SavedDataset(TableFile):
    """A folder written by `Dataset.save_to_disk` of Hugging Face's `datasets`."""

    dataset: Any = None

    @classmethod
    def open(cls, path: Path) -> "SavedDataset":
        if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            raise UsageError(
                f"--data_dir {path} is neither a folder of Parquet files nor one written by save_to_disk of Hugging "
                "Face's datasets (for folders environment/class/image, use the dataset Folder)"
            )
        try:
            from datasets import load_from_disk
        except ImportError as error:
            raise UsageError(
                f"--data_dir {path}: reading it requires Hugging Face's datasets; pip install 'domainbed[datasets]'"
            ) from error
        try:
            dataset = load_from_disk(str(path))
        except Exception as error:  # it raises many kinds of errors for damaged folders
            raise UsageError(f"cannot read {path}: {type(error).__name__}: {error}") from error
        if isinstance(dataset, dict):
            if len(dataset) != 1:
                raise UsageError(
                    f"--data_dir {path} contains several tables; pass one of them, "
                    f"{' or '.join(str(path / name) for name in dataset)}"
                )
            (dataset,) = dataset.values()
        return cls(path, dataset.column_names, image_columns(dataset.features.arrow_schema), dataset=dataset)

    def text(self, columns: Sequence[str]) -> "pa.Table":
        import pyarrow as pa

        selected = self.dataset.select_columns(list(columns))
        try:
            return to_text(selected.with_format("arrow")[:], class_labels(selected.features.arrow_schema))
        except pa.ArrowException as error:
            raise UsageError(f"cannot read {self.path}: {error}") from error

    def images(self, column: str) -> Iterator[tuple[bytes | None, str | None]]:
        import pyarrow as pa

        try:
            for batch in self.dataset.select_columns([column]).with_format("arrow").iter(BATCH_ROWS):
                yield from map(stored_image, batch.column(0).to_pylist())
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"cannot read {self.path}: {one_line(error)}") from error


def image_columns(schema: "pa.Schema") -> frozenset[str]:
    """Return the names of the columns that contain images: bytes, or as in Hugging Face's `datasets`, with a path."""
    import pyarrow as pa

    def has_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return frozenset(column.name for column in schema if has_bytes(column.type))


def stored_image(cell: object) -> tuple[bytes | None, str | None]:
    """Return the bytes and the path in a cell of an image column."""
    if isinstance(cell, dict):
        return cell.get("bytes"), cell.get("path")
    return cell if isinstance(cell, bytes) else None, None


def class_labels(schema: "pa.Schema") -> dict[str, list[str]]:
    """Return column -> names of its classes, for the columns that Hugging Face's `datasets` declares as ClassLabel."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(kind["names"]) for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def to_text(table: "pa.Table", classes: dict[str, list[str]]) -> "pa.Table":
    """Return a table with all columns as text, numbers of a ClassLabel as its names, and null for cells without value.

    Raises:
        UsageError: a column contains neither text nor numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {}
    for name in table.column_names:
        column = table[name]
        try:
            if name in classes and pa.types.is_integer(column.type):
                is_class = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(classes[name])))
                numbers = pc.if_else(is_class, column, None)
                text = pa.chunked_array([pa.array(classes[name], pa.string())]).take(numbers)
            else:
                text = column.cast(pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            others = [other for other in table.column_names if other != name]
            raise UsageError(
                f"column {printable(name)!r} contains {column.type}, neither text nor numbers; {suggest(name, others)}"
            ) from error
        columns[name] = pc.if_else(pc.equal(text, ""), None, text)
    return pa.table(columns)
