"""A benchmark harness for domain generalization: from one sweep to leave-one-domain-out tables.

    import domainbed as db

    job = db.train("ColoredDigits", "ERM", test_envs=2, steps=101, output_dir="my_job")
    db.sweep("my_sweep", datasets="ColoredDigits", algorithms=["ERM", "Fishr"], n_hparams=1, n_trials=1, steps=101)
    print(db.report("my_sweep"))

`import domainbed` imports neither torch nor pandas; each function does when it is first accessed or called.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domainbed.api import report, sweep, train
    from domainbed.engine.model import load_model
    from domainbed.reporting.load import load_sweep

__version__ = "1.0.0"
__all__ = ["load_model", "load_sweep", "report", "sweep", "train"]

_MODULES = {
    "load_model": "domainbed.engine.model",
    "load_sweep": "domainbed.reporting.load",
    "report": "domainbed.api",
    "train": "domainbed.api",
}


class _CallablePackage(ModuleType):
    """The class of `domainbed.sweep`, which is a package and, when called, `domainbed.api.sweep`.

    Importing anything from the package makes it an attribute of this module, in place of any function.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        from domainbed.api import sweep

        return sweep(*args, **options)


importlib.import_module("domainbed.sweep").__class__ = _CallablePackage


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
