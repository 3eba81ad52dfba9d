"""Tables of images: what is read, what is refused, and that a table of a tree is the same dataset as the tree."""

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from domainbed.algorithms import ALGORITHMS, Algorithm
from domainbed.datasets import FileEnvironment, get_dataset_class, num_environments
from domainbed.datasets.table import Table
from domainbed.datasets.table_columns import format_columns, parse_columns
from domainbed.datasets.table_files import version
from domainbed.datasets.table_rows import find_missing, sorted_names
from domainbed.datasets.verify import verify
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import read_job
from tests.images import write_dataset, write_image
from tests.optional import optional

CLEAN = {"data_augmentation": False}
HPARAMS = '{"resnet18": true, "pretrained": false, "batch_size": 2}'


def write_csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images 0.png to 5.png."""
    for i in range(6):
        write_image(tmp_path / f"{i}.png", i)
    return tmp_path


def table_of(data_dir: str, name: str, path: Path) -> str:
    """Write a table of a published dataset's images in random order, and return its path."""
    cls = get_dataset_class(name)
    dataset = cls(data_dir, (), CLEAN)
    rows = [
        (environment.folder / file, dataset.class_names[label], env)
        for env, environment in zip(cls.ENVIRONMENTS, dataset, strict=True)
        for file, label in zip(environment.files, environment.labels, strict=True)
    ]
    random.Random(0).shuffle(rows)
    pd.DataFrame(rows, columns=["file", "label", "domain"]).to_csv(path, index=False)
    return str(path)


def paths_of(environment: FileEnvironment) -> list[str]:
    return [str(environment.folder / file) for file in environment.files]


def test_table_of_pacs_is_pacs(pacs_dir: str, tmp_path: Path):
    path = table_of(pacs_dir, "PACS", tmp_path / "pacs.csv")
    assert Table.find_problems(path) == []
    hparams = {"data_augmentation": True}
    table, pacs = Table(path, (1,), hparams), get_dataset_class("PACS")(pacs_dir, (1,), hparams)
    assert table.class_names == pacs.class_names
    assert Table.environment_names(path) == pacs.ENVIRONMENTS
    for a, b in zip(table, pacs, strict=True):
        assert paths_of(a) == paths_of(b)
        assert a.labels.tolist() == b.labels.tolist()
        assert a.is_augmented == b.is_augmented


class Blur(Algorithm):
    """A linear classifier of the mean colors of an image, which trains in no time."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.layer = torch.nn.Linear(3, num_classes)
        self.optimizer = torch.optim.SGD(self.parameters(), 0.1)

    def update(self, minibatches, unlabeled=None):
        loss = torch.stack([torch.nn.functional.cross_entropy(self.predict(x), y) for x, y in minibatches]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def predict(self, x):
        return self.layer(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with ALGORITHMS.temporarily("Blur", Blur):
        yield


def records_of(dataset: str, data_dir: str, folder: Path, **kwargs) -> list[dict]:
    """Return the records of a short job, without entries that differ between equal jobs."""
    arguments = {"test_envs": (0,), "steps": 3, "checkpoint_freq": 2, "hparams": '{"batch_size": 4}'} | kwargs
    train(JobConfig(dataset, "Blur", data_dir=data_dir, output_dir=str(folder), **arguments))
    records, problems = read_job(folder)
    assert problems == []
    return [{k: v for k, v in record.items() if k not in ("step_time", "mem_gb", "args")} for record in records]


def test_records_of_a_table_are_those_of_the_tree(tmp_path: Path):
    write_dataset(tmp_path, "PACS", per_class=2)
    path = table_of(str(tmp_path), "PACS", tmp_path / "pacs.csv")
    records = records_of("PACS", str(tmp_path), tmp_path / "of_tree", eval="splits")
    assert records == records_of("Table", path, tmp_path / "of_table", eval="splits")
    assert len(records) == 2


def test_all_images_of_a_group_are_in_one_split(tmp_path: Path, capsys):
    write_dataset(tmp_path, "PACS", per_class=4)
    path = table_of(str(tmp_path), "PACS", tmp_path / "pacs.csv")
    frame = pd.read_csv(path)
    frame["scan of"] = frame["domain"] + [f"{i % 5}" for i in range(len(frame))]
    frame.to_csv(path, index=False)
    arguments = {"data_dir": path, "columns": "group=scan of"}
    config = JobConfig("Table", "Blur", (0,), **arguments)
    dataset, splits = load_data(config, config.resolved_hparams())
    for environment, split in zip(dataset, splits, strict=True):
        sides = [set(environment.groups[part]) for part in split.parts().values()]
        assert len(sides) == 2
        assert not sides[0] & sides[1]
        assert len(split.out) == pytest.approx(0.2 * len(environment), abs=4)
    short = {"steps": 1, "eval": "splits", "columns": "group=scan of"}
    grouped = records_of("Table", path, tmp_path / "grouped", **short)
    assert "split by group; images held out: A " in capsys.readouterr().out
    assert grouped != records_of("Table", path, tmp_path / "by_image", **short, split_by="image")
    plain = JobConfig("Table", "Blur", (0,), data_dir=path, split_by="group")
    with pytest.raises(UsageError, match="does not define groups of images; a Table does if --columns names"):
        load_data(plain, plain.resolved_hparams())
    frame["scan of"] = [f"{i % 5}" for i in range(len(frame))]
    frame.to_csv(path, index=False)
    message = r"5 groups have images in several environments.*\(\d in A and S; .* and 2 more\)"
    with pytest.raises(UsageError, match=message):
        load_data(config, config.resolved_hparams())


def test_sweep_over_a_table_with_groups(run_command, tmp_path: Path):
    write_dataset(tmp_path, "PACS", per_class=3)
    path = table_of(str(tmp_path), "PACS", tmp_path / "pacs.csv")
    frame = pd.read_csv(path)
    frame["patient"] = frame["domain"] + [f"{i % 4}" for i in range(len(frame))]
    frame.to_csv(path, index=False)
    folder = tmp_path / "sweep"
    launch = ["sweep", "launch", "--datasets", "Table", "--data_dir", path, "--algorithms", "ERM", "--n_hparams", 1]
    launch += ["--n_trials", 1, "--steps", 1, "--test_envs", 1, "--hparams", HPARAMS, "--eval", "splits"]
    launch += ["--skip_model_save", "--skip_confirmation", "--command_launcher", "local", "--output_dir", folder]
    result = run_command(*launch, "--columns", "group=patient,environment=domain")
    assert result.returncode == 0, result.stderr
    assert "group: patient, 16 groups" in result.stdout
    assert re.search(r"^total +21 +21 +21 +21 +84$", result.stdout, re.MULTILINE)
    (record,) = [record for job in folder.glob("*/results.jsonl") for record in read_job(job.parent)[0]]
    assert record["args"]["columns"] == "environment=domain,group=patient"
    table = run_command("collect_results", "--input_dir", folder)
    assert table.returncode == 0
    assert "Table" in table.stdout
    frame.loc[3, "file"] = "gone.png"
    frame.to_csv(path, index=False)
    result = run_command(*launch[:-1], tmp_path / "other")
    assert result.returncode == 2
    assert f"1 row whose image does not exist (row 5: {tmp_path}/gone.png)" in result.stderr


def test_columns_are_recognized_by_their_names(folder: Path):
    path = write_csv(
        folder / "t.csv", "Image_Path,size,Class,Site,patient_id", "0.png,9,b,2,p", "./1.png,9,a,10,q", "2.png,9,a,2,q"
    )
    table = Table(path, (), CLEAN)
    assert (table.class_names, num_environments("Table", path)) == (["a", "b"], 2)
    assert Table.environment_names(path) == ["2", "10"]  # by value
    assert [Path(p).name for e in table for p in paths_of(e)] == ["2.png", "0.png", "1.png"]
    assert [e.labels.tolist() for e in table] == [[0, 1], [0]]
    text = "\n".join(Table.describe(path))
    assert "path=Image_Path,label=Class,environment=Site" in text
    assert "same patient_id may be on both sides of a split; --columns group=patient_id" in text
    assert re.search(r"total +2 +1 +3$", text)
    assert table[0].groups is None
    grouped = get_dataset_class("Table", "group=patient_id")
    assert [e.groups.tolist() for e in grouped(path, (), CLEAN)] == [["q", "p"], ["q"]]
    assert "group: patient_id, 2 groups" in grouped.describe(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("path", "expected ROLE=COLUMN"),
        ("path=", "expected ROLE=COLUMN"),
        ("file=x", "unknown role 'file'"),
        ("path=fil", "no such column; did you mean file"),
        ("path=file,path=class", "two columns for path"),
        ("path=file,label=file", "names a column twice"),
        ("label=class", "cannot tell which column is the path; .* several: file, image"),
    ],
)
def test_wrong_columns_are_named(folder: Path, columns: str, message: str):
    path = write_csv(folder / "t.csv", "file,image,class,env", "0.png,1.png,a,x", "2.png,3.png,b,y")
    with pytest.raises(UsageError, match=message):
        get_dataset_class("Table", columns).environment_names(path)


def test_only_tables_have_columns():
    with pytest.raises(UsageError, match="--columns applies to the Table dataset only"):
        get_dataset_class("ColoredDigits", "path=file")


@given(
    st.dictionaries(
        st.sampled_from(["path", "label", "environment", "group"]), st.text("a b_", min_size=1).filter(str.strip)
    )
)
def test_columns_as_text(columns: dict[str, str]):
    columns = {role: name.strip() for role, name in columns.items()}
    if columns:
        assert parse_columns(format_columns(columns)) == columns


def test_all_faulty_rows_are_counted_and_named_at_once(folder: Path):
    path = write_csv(
        folder / "t.csv",
        "\ufefffile,class,site,patient",
        "0.png,dog,A,p",
        "1.png,cat,B,p",
        "2.png,,A,",
        "./0.png,cat,A,p",
        "1.png,cat,A,p",
        "3.png,cat,A,p",
        "3.png,cat,A,p",
        "notes.txt,cat,A,p",
        "a,b",
        "gone.png,Dog,B,p",
        "sub/gone.png,dog,B/C,p",
        " ,,,",
    )
    (problem,) = get_dataset_class("Table", "group=patient").find_problems(path)
    for part in (
        "1 row with missing or additional cells (row 10 has 2 cells, not 4)",
        "1 row without a path (row 13)",
        "2 rows without a label (row 4; row 13)",
        "2 rows without a group (row 4; row 13)",
        "1 row without an environment (row 13)",
        "(row 9: notes.txt)",
        "2 rows whose image has another label in another row (row 2: 0.png, dog; row 5: ./0.png, cat)",
        "2 rows whose image has another environment in another row (row 3: 1.png, B; row 6: 1.png, A)",
        "1 row whose image is in an earlier row (row 8: 3.png)",
        "differ only in case or spaces ('Dog', 'dog')",
        "3 rows whose image does not exist (row 9: notes.txt; row 11: gone.png; row 12: sub/gone.png)",
        "slash in the name ('B/C')",
        "correct or delete these rows",
    ):
        assert part in problem
    with pytest.raises(UsageError, match=re.escape("row 11: gone.png")):
        Table.prepare(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"a;b;c\n1;2;3\n", "only one column, 'a;b;c'; columns must be separated by commas"),
        ("t.tsv", b"a,b\n1,2\n", "must be separated by tabs"),
        ("t.csv", b"path,path\n", "several columns named 'path'"),
        ("t.csv", b"path,label,env\n0.png,caf\xe9,A\n", "UTF-?8"),
        ("t.csv", b"path,label,env\n", "at least two environments; found none"),
        ("t.csv", b"path,label,env\n0.png,a,X\n1.png,b,X\n", "at least two environments; found 'X'"),
        ("t.csv", b"id,label,env\n", "cannot tell which column is the path; .* none; it has id, label, env"),
        ("t.xlsx", b"PK", "must end in one of .csv, .tsv, .parquet, .pq, not '.xlsx'"),
        ("t.parquet", b"PAR1", "cannot read .*t.parquet"),
    ],
)
def test_file_that_is_not_a_table(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        Table.environment_names(str(tmp_path / name))


@pytest.mark.parametrize("data_dir", [None, "nowhere.csv", "."])
def test_missing_table(data_dir: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert len(Table.find_problems(data_dir)) == 1
    assert Table.find_downloads(data_dir) == []


def test_table_of_one_class_is_refused(folder: Path):
    path = write_csv(folder / "t.csv", "path,label,env", "0.png,a,X", "1.png,a,Y")
    assert "2 rows of the only class" in Table.find_problems(path)[0]


def test_cells_may_contain_commas_and_line_breaks(folder: Path):
    path = write_csv(folder / "t.csv", "path,label,env", '0.png,"a, or b",X', '"1.png","c","Y"', "2.png,NA,Y")
    table = Table(path, (), CLEAN)
    assert table.class_names == ["NA", "a, or b", "c"]
    assert Table.find_problems(path) == []


def test_changed_table_is_read_again(folder: Path):
    path = write_csv(folder / "t.csv", "path,label,env", "0.png,a,X", "1.png,b,Y")
    assert Table.environment_names(path) == ["X", "Y"]
    write_csv(folder / "t.csv", "path,label,env", "0.png,a,X", "1.png,b,Y", "2.png,b,Z")
    assert Table.environment_names(path) == ["X", "Y", "Z"]


@given(st.lists(st.integers(-20, 200).map(str), unique=True), st.lists(st.text("ab1", min_size=1), unique=True))
def test_integers_are_sorted_by_value(integers: list[str], names: list[str]):
    assert [int(name) for name in sorted_names(integers)] == sorted(map(int, integers))
    assert sorted(sorted_names(names)) == sorted(names)


def test_missing_files_are_those_that_a_plain_search_misses(tmp_path: Path):
    for name in ("a/0.png", "a/1.png", "a/2.png", "b/0.png", "top.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/folder.png").mkdir()
    (tmp_path / "a/link.png").symlink_to(tmp_path / "b/0.png")
    (tmp_path / "a/broken.png").symlink_to(tmp_path / "b/9.png")
    (tmp_path / "a/loop.png").symlink_to("loop.png")
    paths = [
        f"{d}{n}.png"
        for d in ("a/", "b/", "", "c/", "./a/")
        for n in (0, 1, 2, "top", "folder", "link", "broken", "loop")
    ]
    expected = [i for i, path in enumerate(paths) if not (tmp_path / path).is_file()]
    assert find_missing(tmp_path, paths) == expected
    assert find_missing(tmp_path, ["c/9.png", "a/0.png"]) == [0]


def test_parquet_with_numbers_and_absolute_paths(folder: Path):
    frame = pd.DataFrame({"path": [folder / "0.png", "1.png", "2.png"], "label": [1, 0, 1], "env": ["x", "y", "y"]})
    frame["path"] = frame["path"].astype(str)
    frame["env"] = frame["env"].astype("category")
    (folder / "tables").mkdir()
    frame.to_parquet(folder / "t.parquet")
    table = Table(str(folder / "t.parquet"), (), CLEAN)
    assert Table.find_problems(str(folder / "t.parquet")) == []
    assert table.class_names == ["0", "1"]
    assert [p for e in table for p in paths_of(e)] == [str(folder / f"{i}.png") for i in (0, 1, 2)]
    pd.DataFrame({"path": ["0.png"], "label": [[1.0]], "env": ["x"]}).to_parquet(folder / "t.parquet")
    with pytest.raises(UsageError, match=r"'label' contains list.*neither text nor numbers"):
        Table.environment_names(str(folder / "t.parquet"))


def class_label(column: pa.Table, **names: list[str]) -> pa.Table:
    """Return a table whose integer columns have names, as Hugging Face's `datasets` writes them."""
    features = {name: {"names": classes, "_type": "ClassLabel"} for name, classes in names.items()}
    return column.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_files_of_a_folder_may_number_their_classes_differently(folder: Path):
    paths = [str(folder / f"{i}.png") for i in range(6)]
    (folder / "tables").mkdir()
    tables = {
        "a": class_label(
            pa.table({"path": paths[:2], "label": [0, 1], "env": [0, 0]}), label=["benign", "malignant"], env=["A"]
        ),
        "b": class_label(
            pa.table({"path": paths[2:4], "label": [0, 1], "env": [0, 0]}), label=["malignant", "benign"], env=["B"]
        ),
        "c": pa.table({"path": paths[4:], "label": ["benign", "malignant"], "env": ["C", "C"]}),
    }
    for name, table in tables.items():
        parquet.write_table(table, folder / "tables" / f"{name}.parquet")
    table = Table(str(folder / "tables"), (), CLEAN)
    assert Table.environment_names(str(folder / "tables")) == ["A", "B", "C"]
    assert table.class_names == ["benign", "malignant"]
    assert [p for e in table for p in paths_of(e)] == [paths[i] for i in (0, 1, 3, 2, 4, 5)]
    assert [e.labels.tolist() for e in table] == [[0, 1]] * 3


def test_image_with_an_absolute_and_a_relative_path_is_found_twice(folder: Path):
    rows = ["0.png,cat,x", f"{folder}/0.png,dog,x", f"../{folder.name}/1.png,cat,x", "1.png,cat,y", "2.png,cat,y"]
    (problem,) = Table.find_problems(write_csv(folder / "t.csv", "path,label,env", *rows))
    assert (
        f"2 rows whose image has another label in another row (row 2: 0.png, cat; row 3: {folder}/0.png, dog)"
        in problem
    )
    assert "2 rows whose image has another environment in another row (row 4: ../" in problem


def test_only_the_files_of_a_table_determine_its_version(folder: Path):
    (folder / "tables").mkdir()
    file = folder / "tables" / "t.parquet"
    parquet.write_table(pa.table({"path": ["0.png"], "label": ["a"], "env": ["A"]}), file)
    before = version(folder / "tables")
    (folder / "tables" / "images").mkdir()
    (folder / "tables" / "images" / "0.png").touch()
    assert version(folder / "tables") == before
    parquet.write_table(pa.table({"path": ["0.png", "1.png"], "label": ["a", "b"], "env": ["A", "A"]}), file)
    assert version(folder / "tables") != before


@pytest.mark.parametrize("is_folder", [False, True])
def test_images_that_parquet_refers_to(folder: Path, is_folder: bool):
    """Their paths are relative to the folder with the Parquet files."""
    (folder / "tables").mkdir()
    cells = [{"bytes": None, "path": f"{i}.png"} for i in range(4)]
    for i in range(4):
        os.rename(folder / f"{i}.png", folder / "tables" / f"{i}.png")
    path = folder / "tables" / "t.parquet"
    parquet.write_table(pa.table({"image": cells, "label": list("abab"), "domain": [0, 0, 1, 1]}), path)
    data_dir = str(path.parent if is_folder else path)
    Table.prepare(data_dir)
    table = Table(data_dir, (), CLEAN)
    read = [Path(p).read_bytes() for e in table for p in paths_of(e)]
    assert read == [(folder / "tables" / f"{i}.png").read_bytes() for i in range(4)]


def test_images_within_parquet_are_extracted_once(folder: Path, capsys):
    data = [(folder / f"{i}.png").read_bytes() for i in range(6)]
    cells = [{"bytes": b, "path": "ignored.png"} for b in data[:5]] + [{"bytes": None, "path": "5.png"}]
    path = folder / "t.parquet"
    columns = {"image": cells, "label": list("abbaab"), "domain": [1, 0, 1, 0, 1, 0]}
    parquet.write_table(pa.table(columns), path)
    assert "not extracted" in Table.find_downloads(str(path))[0]
    Table.prepare(str(path))
    assert Table.find_downloads(str(path)) == []
    table = Table(str(path), (), CLEAN)
    files = [(environment, i) for environment in table for i in range(len(environment))]
    assert [Path(p).read_bytes() for e in table for p in paths_of(e)] == [data[i] for i in (3, 1, 5, 0, 4, 2)]
    assert all(environment[i][0].shape == (3, 224, 224) for environment, i in files)
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*.img"))
    Table.prepare(str(path))
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*.img")) == before
    result = verify(Table, str(path))
    assert result.is_valid
    assert "all 6 images decode" in result.lines

    cells[2] = {"bytes": b"not an image", "path": None}
    cells[4] = {"bytes": None, "path": None}
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(UsageError, match=r"2 rows have no image in column 'image' \(rows 3, 5\)"):
        Table.prepare(str(path))
    assert sum(p.is_dir() for p in folder.iterdir()) == 1  # nothing is left of the second extraction


def test_parquet_with_damaged_images(folder: Path):
    """The other columns can be read."""
    path = folder / "t.parquet"
    cells = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": None} for i in range(6)]
    columns = {"image": cells, "label": list("abbaab"), "domain": [1, 0, 1, 0, 1, 0]}
    parquet.write_table(pa.table(columns), path, compression="zstd")
    content = bytearray(path.read_bytes())
    at = parquet.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content[at : at + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"cannot read {path}: "):
        Table.prepare(str(path))
    assert not [p for p in folder.iterdir() if p.is_dir()]


@pytest.mark.extras
def test_datasets_of_hugging_face(folder: Path):
    datasets = optional("datasets")
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["yes", "no"]),
        "domain": datasets.Value("string"),
    }
    columns = {
        "image": [str(folder / f"{i}.png") for i in range(6)],
        "label": [0, 1, 0, 1, 0, 1],
        "domain": ["b", "a", "a", "b", "b", "a"],
    }
    dataset = datasets.Dataset.from_dict(columns, datasets.Features(features))
    dataset.save_to_disk(folder / "saved")
    dataset.to_parquet(folder / "one.parquet")
    (folder / "shards").mkdir()
    dataset.select(range(4)).to_parquet(folder / "shards/0.parquet")
    dataset.select(range(4, 6)).to_parquet(folder / "shards/1.parquet")
    datasets.DatasetDict(all=dataset).save_to_disk(folder / "single")
    for name in ("saved", "one.parquet", "shards", "single"):
        path = str(folder / name)
        Table.prepare(path)
        table = Table(path, (), CLEAN)
        assert table.class_names == ["no", "yes"]
        assert Table.environment_names(path) == ["a", "b"]
        read = [Path(p).read_bytes() for e in table for p in paths_of(e)]
        assert read == [(folder / f"{i}.png").read_bytes() for i in (1, 5, 2, 3, 0, 4)]
        assert np.concatenate([e.labels for e in table]).tolist() == [0, 0, 1, 0, 1, 1]
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(folder / "several")
    (problem,) = Table.find_problems(str(folder / "several"))
    assert f"several tables; pass one of them, {folder}/several/train or {folder}/several/test" in problem
    assert Table.find_problems(str(folder / "several/train")) == []


def test_saved_dataset_without_the_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (folder / "state.json").write_text("{}")
    assert "pip install 'domainbed[datasets]'" in Table.find_problems(str(folder))[0]
