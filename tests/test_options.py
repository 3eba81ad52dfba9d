"""Options declared as dataclass fields: their flags, values, checks, help and documentation."""

import argparse
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.options import add_options, check_options, from_args, option, options_table, to_args
from domainbed.scripts.__main__ import COMMANDS


@dataclass(frozen=True)
class Options:
    size: int = option(help="number of items", metavar="N", at_least=1)
    rate: float | None = option(
        None, help="share of 100%", metavar="RATE", if_unset="half of it", above=0, at_most=1, compare=False
    )
    color: str = option("red", help="a color", choices=("red", "gray"))
    names: tuple[str, ...] = option((), help="names", flags=("--name",), metavar="NAME", choices=lambda: ["a", "b"])
    is_on: bool = option(False, help="switch on")
    is_up: bool = option(True, help="move up")
    note: str = "not an option"

    def __post_init__(self) -> None:
        check_options(self)


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="tool")
    add_options(parser, Options)
    return parser


def parse(*args: str) -> Options:
    return from_args(Options, make_parser().parse_args(args))


def test_unset_options_have_the_defaults_of_the_fields():
    assert parse("--size", "3") == Options(size=3)


def test_every_option_reaches_its_field():
    words = ["--size", "3", "--rate", "0.5", "--color", "gray", "--name", "b", "a", "--is_on", "--no_is_up"]
    options = parse(*words)
    assert options == Options(3, 0.5, "gray", ("b", "a"), True, False)
    assert options.rate == 0.5
    assert to_args(options) == words


def test_last_flag_of_a_bool_wins():
    assert not parse("--size", "3", "--is_on", "--no_is_on").is_on
    assert parse("--size", "3", "--no_is_up", "--is_up").is_up


@given(
    st.builds(
        Options,
        size=st.integers(1),
        rate=st.none() | st.floats(0, 1, exclude_min=True),
        color=st.sampled_from(["red", "gray"]),
        names=st.lists(st.sampled_from("ab")).map(tuple),
        is_on=st.booleans(),
        is_up=st.booleans(),
    )
)
def test_args_of_an_instance_parse_to_the_same_instance(options: Options):
    parsed = parse(*to_args(options))
    assert (parsed, parsed.rate) == (options, options.rate)


def test_options_can_be_skipped_and_grouped():
    parser = cli.Parser(prog="tool")
    add_options(parser.add_argument_group("group"), Options, skip={"size", "is_on"})
    args = parser.parse_args(["--color", "gray"])
    assert "size" not in args
    assert "is_on" not in args
    assert from_args(Options, argparse.Namespace(size=2, **vars(args))) == Options(2, color="gray")


def test_default_makes_a_required_option_optional():
    parser = make_parser()
    with pytest.raises(UsageError, match="the following arguments are required: --size"):
        parser.parse_args([])
    parser.set_defaults(size=7)
    assert parser.parse_args([]).size == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "--size must be at least 1, not 0"),
        ({"rate": 0.0}, "--rate must be above 0 and at most 1, not 0.0"),
        ({"rate": 1.1}, "--rate must be above 0 and at most 1, not 1.1"),
        ({"rate": float("nan")}, "--rate must be above 0 and at most 1, not nan"),
        ({"color": "grey"}, "invalid --color 'grey'; did you mean gray?"),
        ({"names": ("a", "c")}, "invalid --name 'c'; choose from a, b"),
    ],
)
def test_value_that_is_not_allowed_is_named(changes: dict, message: str):
    with pytest.raises(UsageError) as error:
        replace(Options(2), **changes)
    assert str(error.value) == message


def test_help_shows_choices_units_and_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(make_parser().format_help().split())
    for expected in (
        "[--is_on] [--no_is_up]",
        "--size N number of items --rate RATE share of 100% (default: half of it)",
        "--color {red,gray} a color (default: red)",
        "--name NAME [NAME ...] names (choices: a, b)",
        "--is_on, --no_is_on switch on",
        "--is_up, --no_is_up move up (default: True)",
    ):
        assert expected in text


def test_options_table_has_one_row_per_option():
    assert options_table(Options).splitlines() == [
        "| option | default | meaning |",
        "|---|---|---|",
        "| `--size N` | required | number of items |",
        "| `--rate RATE` | half of it | share of 100% |",
        "| `--color {red,gray}` | `red` | a color |",
        "| `--name NAME` |  | names |",
        "| `--is_on` |  | switch on |",
        "| `--is_up` | `True` | move up |",
    ]


@pytest.mark.parametrize(("size", "rate"), [(True, None), ("3", None), (1.5, None), (1, "0.5"), (1, True), (1, [0.5])])
def test_numbers_that_python_or_a_file_provides_are_checked(size: object, rate: object):
    with pytest.raises(UsageError, match=r"must be an integer, not|must be a number, not"):
        Options(size=size, rate=rate)  # type: ignore[arg-type]


def test_numbers_of_numpy_become_those_of_python():
    """They print differently, and so would seeds that are derived from them."""
    options = Options(size=np.int64(3), rate=np.float32(0.5))
    assert repr((options.size, options.rate)) == "(3, 0.5)"


def test_empty_paths_are_refused():
    parser = cli.Parser(prog="tool")
    for metavar in cli.PATHS:
        parser.add_argument(f"--{metavar.lower()}", metavar=metavar)
    for words in (["--dir", ""], ["--file="], ["--archive", ""]):
        flag = words[0].rstrip("=")
        with pytest.raises(UsageError, match=f"{flag} is empty; specify a path"):
            parser.parse_args(words)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"completion"}))
def test_every_option_that_takes_a_path_refuses_an_empty_one(command: str):
    parsers, n_paths = [import_module(f"domainbed.scripts.{command}").parser()], 0
    names = ("_dir", "output", "archive", "import_results", "launcher_config", "cache", "model", "init_from")
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.dest.endswith(names) and action.type is not bool and action.nargs != 0:
                n_paths += 1
                assert action.metavar in cli.PATHS, action.dest
    assert n_paths


@dataclass(frozen=True)
class Sets:
    sets: tuple[tuple[int, ...], ...] = option((), help="sets of numbers", metavar="N", if_unset="none")


def test_an_option_that_is_repeated_collects_tuples():
    parser = cli.Parser()
    add_options(parser, Sets)
    words = ["--sets", "1", "2", "--sets", "3"]
    assert from_args(Sets, parser.parse_args(words)) == Sets(((1, 2), (3,)))
    assert to_args(Sets(((1, 2), (3,)))) == words
    assert from_args(Sets, parser.parse_args([])) == Sets()
    assert to_args(Sets()) == []
    parser.set_defaults(sets=[[7]])
    assert from_args(Sets, parser.parse_args([])) == Sets(((7,),))
    assert from_args(Sets, parser.parse_args(words)) == Sets(((1, 2), (3,)))
    assert from_args(Sets, parser.parse_args([])) == Sets(((7,),))
    assert options_table(Sets).endswith("| `--sets N` | none | sets of numbers |\n")
