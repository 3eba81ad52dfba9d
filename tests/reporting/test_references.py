"""The BibTeX entries: one for each name, well-formed, and none is lost."""

import re
from importlib import resources

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.reporting.references import find_entries, find_keys

TEXT = (resources.files("domainbed.reporting") / "references.bib").read_text(encoding="utf-8")
KEYS = re.findall(r"^@\w+\{(\w+),$", TEXT, re.MULTILINE)


def test_every_algorithm_and_dataset_has_an_entry():
    for name in [*ALGORITHMS.builtin_names, *DATASETS.builtin_names, "SWAD", "DiWA", "EoA", "DomainBed"]:
        assert name in ("Folder", "Table", "Debug28", "Debug224") or find_keys(name), name
    assert find_keys("MyAlgorithm") == []


def test_parts_of_an_algorithm():
    assert find_keys("ERM+SWAD") == [*find_keys("ERM"), *find_keys("SWAD")]
    assert find_keys("ERM+DiWA-uniform") == [*find_keys("ERM"), *find_keys("DiWA")]
    assert find_keys("ColoredDigits") == ["arjovsky2019invariant", "alpaydin1998optical"]
    assert find_keys("Mine+SWAD") == find_keys("SWAD")


def test_entries_are_well_formed():
    assert len(set(KEYS)) == len(KEYS) == TEXT.count("@") > 40
    text = find_entries([*KEYS, *KEYS])
    assert re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE) == sorted(KEYS)
    assert "keywords" not in text
    for entry in text.split("\n\n"):
        fields = re.findall(r"^  (\w+) +=", entry, re.MULTILINE)
        assert len(set(fields)) == len(fields)
        assert {"author", "title", "year"} < set(fields)
        assert entry.count("{") == entry.count("}")
        assert max(map(len, entry.splitlines())) <= 120
        assert re.search(r"^  year +=\s\{(19|20)\d\d\},$", entry, re.MULTILINE)


def test_keys_name_author_and_year():
    for key in KEYS:
        entry = find_entries([key])
        surname, year = re.match(r"([a-z]+?)(\d{4})", key).groups()
        author = re.sub(r"[^a-z]", "", re.search(r"author +=\s\{(.*?),", entry)[1].lower().replace("\\'e", "e"))
        assert author == surname
        assert f"{{{year}}}" in entry
