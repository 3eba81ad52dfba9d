"""The algorithms, by name: `get_algorithm_class("ERM")`.

To add one, subclass `Algorithm` (or ERM) and decorate the class with `@ALGORITHMS.register("Name")`; see README.md.
"""

from typing import TYPE_CHECKING, Any

from domainbed.registry import Registry

if TYPE_CHECKING:  # listing the names must not import torch
    from domainbed.algorithms.base import Algorithm

ALGORITHMS: "Registry[type[Algorithm]]" = Registry(
    "algorithm",
    builtin={
        "ERM": "domainbed.algorithms.erm:ERM",
        "CORAL": "domainbed.algorithms.coral:CORAL",
        "DANN": "domainbed.algorithms.dann:DANN",
        "IRM": "domainbed.algorithms.irm:IRM",
        "VREx": "domainbed.algorithms.vrex:VREx",
        "Fish": "domainbed.algorithms.fish:Fish",
        "Fishr": "domainbed.algorithms.fishr:Fishr",
    },
    group="domainbed.algorithms",
)


def get_algorithm_class(name: str) -> "type[Algorithm]":
    """Return the algorithm class of this name. Raises UsageError if it is unknown."""
    return ALGORITHMS[name]


def __getattr__(name: str) -> Any:
    """Import a class on first access, so that DomainBed's `from domainbed.algorithms import Algorithm, ERM` works."""
    if name == "Algorithm":
        from domainbed.algorithms.base import Algorithm

        return Algorithm
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ALGORITHMS", "get_algorithm_class"]
