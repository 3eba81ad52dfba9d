"""The algorithms, by name: `get_algorithm_class("ERM")`.

To add one, subclass `Algorithm` (or ERM) and decorate the class with `@ALGORITHMS.register("Name")`; see README.md.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from domainbed.errors import UsageError
from domainbed.hparams import Hparam
from domainbed.registry import Registry

if TYPE_CHECKING:  # listing the names must not import torch
    from domainbed.algorithms.base import Algorithm


def _accept(name: str, item: Any) -> "type[Algorithm]":
    """Return an algorithm to register. Raises UsageError if it is not a subclass of Algorithm."""
    from domainbed.algorithms.base import Algorithm  # imports torch, as the module with the class has done

    if not (isinstance(item, type) and issubclass(item, Algorithm)):
        what = f"class {item.__name__} of module {item.__module__}" if isinstance(item, type) else repr(item)
        raise UsageError(
            f"algorithm {name!r}: {what} is not derived from this package's Algorithm; replace its own base class with "
            "`from domainbed.algorithms import Algorithm`"
        )
    for key, value in item.HPARAMS.items():
        if not isinstance(value, Hparam):
            raise UsageError(
                f"algorithm {name!r}: HPARAMS[{key!r}] is {value!r}; make it an Hparam(DEFAULT, DRAW), such as "
                "Hparam(1.0, power(10, -1, 1)) (from domainbed.hparams import Hparam, power)"
            )
    return item


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
        "GroupDRO": "domainbed.algorithms.groupdro:GroupDRO",
        "EQRM": "domainbed.algorithms.eqrm:EQRM",
        "URM": "domainbed.algorithms.urm:URM",
        "TRM": "domainbed.algorithms.trm:TRM",
        "Mixup": "domainbed.algorithms.mixup:Mixup",
        "SagNet": "domainbed.algorithms.sagnet:SagNet",
        "RSC": "domainbed.algorithms.rsc:RSC",
        "SelfReg": "domainbed.algorithms.selfreg:SelfReg",
        "MMD": "domainbed.algorithms.mmd:MMD",
        "CDANN": "domainbed.algorithms.cdann:CDANN",
        "CAD": "domainbed.algorithms.cad:CAD",
        "CondCAD": "domainbed.algorithms.cad:CondCAD",
        "CausIRL_CORAL": "domainbed.algorithms.causirl:CausIRL_CORAL",
        "CausIRL_MMD": "domainbed.algorithms.causirl:CausIRL_MMD",
        "Transfer": "domainbed.algorithms.transfer:Transfer",
        "RDM": "domainbed.algorithms.rdm:RDM",
        "ADRMX": "domainbed.algorithms.adrmx:ADRMX",
        "IGA": "domainbed.algorithms.iga:IGA",
        "ANDMask": "domainbed.algorithms.andmask:ANDMask",
        "SANDMask": "domainbed.algorithms.sandmask:SANDMask",
        "SD": "domainbed.algorithms.sd:SD",
        "MLDG": "domainbed.algorithms.mldg:MLDG",
        "ARM": "domainbed.algorithms.arm:ARM",
        "MTL": "domainbed.algorithms.mtl:MTL",
        "IB_ERM": "domainbed.algorithms.ib_erm:IB_ERM",
        "IB_IRM": "domainbed.algorithms.ib_irm:IB_IRM",
        "ERMPlusPlus": "domainbed.algorithms.ermplusplus:ERMPlusPlus",
        "SMA": "domainbed.algorithms.sma:SMA",
        "SAM": "domainbed.algorithms.sam:SAM",
        "SAGM": "domainbed.algorithms.sagm:SAGM",
        "MIRO": "domainbed.algorithms.miro:MIRO",
    },
    group="domainbed.algorithms",
    path="domainbed.algorithms.ALGORITHMS",
    accept=_accept,
)

# The default of a launch.
DEFAULT_ALGORITHMS = ("ERM", "CORAL", "DANN", "IRM", "VREx", "Fish", "Fishr")

# Each built-in algorithm belongs to one family. Commands accept the name of a family in place of its members' names.
FAMILIES = {
    "baseline": ("ERM",),
    "robust": ("VREx", "GroupDRO", "EQRM", "URM", "TRM"),
    "augmentation": ("Mixup", "SagNet", "RSC", "SelfReg"),
    "alignment": (
        *("CORAL", "DANN", "MMD", "CDANN", "CAD", "CondCAD"),
        *("CausIRL_CORAL", "CausIRL_MMD", "Transfer", "RDM", "ADRMX"),
    ),
    "gradients": ("IRM", "Fish", "Fishr", "IGA", "ANDMask", "SANDMask", "SD"),
    "meta": ("MLDG", "ARM", "MTL"),
    "bottleneck": ("IB_ERM", "IB_IRM"),
    "averaging": ("ERMPlusPlus", "SMA", "SAM", "SAGM"),
    "oracle": ("MIRO",),
}
GROUPS = ("all", *FAMILIES)


def expand_groups(names: Iterable[str]) -> tuple[str, ...]:
    """Return the algorithms that names and groups stand for, each once. "all" includes the user's own algorithms.

    An algorithm takes precedence over a group of the same name.

    Raises:
        UsageError: a name is neither that of an algorithm nor that of a group.
    """
    groups = {"all": tuple(ALGORITHMS), **FAMILIES}
    expanded: list[str] = []
    for name in names:
        if name not in ALGORITHMS and name not in groups:
            raise ALGORITHMS.unknown(name, others=groups)
        expanded += [name] if name in ALGORITHMS else groups[name]
    return tuple(dict.fromkeys(expanded))


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


__all__ = ["ALGORITHMS", "DEFAULT_ALGORITHMS", "FAMILIES", "GROUPS", "expand_groups", "get_algorithm_class"]
