"""The algorithms, by name: `get_algorithm_class("ERM")`. One file each.

An algorithm of your own subclasses `Algorithm` (or ERM) and is decorated with `@ALGORITHMS.register("Name")`. An
installed package brings one by an entry point `Name = "module:Class"` in the group "domainbed.algorithms".
"""

from typing import TYPE_CHECKING, Any

from domainbed.registry import Registry

if TYPE_CHECKING:  # listing the names must not cost an import of torch
    from domainbed.algorithms.base import Algorithm

ALGORITHMS: "Registry[type[Algorithm]]" = Registry(
    "algorithm",
    builtin={
        name: f"domainbed.algorithms.{name.lower()}:{name}"
        for name in ("ERM", "CORAL", "DANN", "IRM", "VREx", "Fish", "Fishr")
    },
    group="domainbed.algorithms",
)


def get_algorithm_class(name: str) -> "type[Algorithm]":
    """The algorithm class of this name. Raises UsageError where there is none."""
    return ALGORITHMS[name]


def __getattr__(name: str) -> Any:
    """The classes under their own names, as DomainBed has them: `from domainbed.algorithms import Algorithm, ERM`."""
    if name == "Algorithm":
        from domainbed.algorithms.base import Algorithm

        return Algorithm
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ALGORITHMS", "get_algorithm_class"]
