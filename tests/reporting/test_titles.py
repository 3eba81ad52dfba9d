"""Printed names, and the errors of `--rename`."""

import re

import pytest

from domainbed.errors import UsageError
from domainbed.reporting.titles import Titles, make_titles

ALGORITHMS = ["ERM", "Fishr", "a=b", "a"]
ENVIRONMENTS = {"PACS": ["A", "C"], "VLCS": ["C", "L"]}


def test_names_without_an_entry_are_printed_as_they_are():
    titles = make_titles([], ALGORITHMS, ENVIRONMENTS)
    assert titles == Titles()
    assert titles("ERM") == "ERM"
    assert titles.environment("PACS", "C") == "C"


def test_environments_of_one_or_of_all_datasets():
    titles = make_titles(["C=Caltech", "PACS/C=Cartoon", "Avg=Mean"], ALGORITHMS, ENVIRONMENTS)
    assert titles.environment("PACS", "C") == "Cartoon"
    assert titles.environment("VLCS", "C") == "Caltech"
    assert titles.environment("VLCS", "Avg") == titles("Avg") == "Mean"


def test_names_may_contain_equals_signs():
    titles = make_titles(["a=b=c = d", "a=x\n y"], ALGORITHMS, ENVIRONMENTS)
    assert titles("a=b") == "c = d"
    assert titles("a") == "x y"


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (["Fishr"], "--rename 'Fishr': expected OLD=NEW"),
        (["Fishr= "], "--rename 'Fishr= ': expected OLD=NEW"),
        (["Fischr=F"], "--rename Fischr: no such algorithm, dataset or environment; did you mean Fishr?"),
        (["PACS/L=F"], "--rename PACS/L: no such algorithm, dataset or environment"),
        (["=F"], "--rename : no such algorithm, dataset or environment"),
        (["Fishr=F", "Fishr=G"], "--rename Fishr: given twice; remove one"),
        (["Fishr=ERM"], "--rename: two algorithms would be named 'ERM'; choose different names"),
        (["PACS=VLCS"], "--rename: two datasets would be named 'VLCS'"),
        (["L=C"], "--rename: two columns of VLCS would be named 'C'"),
        (["A=Avg"], "--rename: two columns of PACS would be named 'Avg'"),
        (["PACS=Rank"], "--rename: two columns of the averages would be named 'Rank'"),
    ],
)
def test_invalid_names(rename: list[str], message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        make_titles(rename, ALGORITHMS, ENVIRONMENTS)


def test_exchanged_names_are_allowed():
    titles = make_titles(["ERM=Fishr", "Fishr=ERM"], ALGORITHMS, ENVIRONMENTS)
    assert [titles("ERM"), titles("Fishr")] == ["Fishr", "ERM"]
