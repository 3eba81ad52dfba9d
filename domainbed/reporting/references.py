"""BibTeX entries of algorithms, datasets and DomainBed, from `references.bib`."""

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

_ENTRY = re.compile(r"^@\w+\{(?P<key>\w+),\n.*?^  keywords +=\ \{(?P<names>[^}]+)\},\n\}$", re.MULTILINE | re.DOTALL)


def find_keys(name: str) -> list[str]:
    """Return the citation keys of a name; empty if it has no entry.

    An algorithm such as `ERM+SWAD` has the keys of its parts, and `ERM+DiWA-uniform` those of ERM and DiWA.
    """
    parts = [name, *name.split("+"), name.rpartition("+")[2].partition("-")[0]]
    return list(dict.fromkeys(key for part in parts for key in _keys().get(part, ())))


def find_entries(keys: Iterable[str]) -> str:
    """Return the entries of these keys as BibTeX, each once, in alphabetical order of their keys."""
    return "\n\n".join(_entries()[key] for key in sorted(set(keys)))


@cache
def _text() -> str:
    return (resources.files("domainbed.reporting") / "references.bib").read_text(encoding="utf-8")


@cache
def _entries() -> dict[str, str]:
    """Return each entry, without its keywords, by key."""
    return {m["key"]: re.sub(r"^  keywords .*\n", "", m[0], flags=re.MULTILINE) for m in _ENTRY.finditer(_text())}


@cache
def _keys() -> dict[str, list[str]]:
    """Return the citation keys of each name."""
    keys: dict[str, list[str]] = {}
    for match in _ENTRY.finditer(_text()):
        for name in match["names"].split(", "):
            keys.setdefault(name, []).append(match["key"])
    return keys
