"""The launchers, by name."""

from domainbed.registry import Registry
from domainbed.sweep.launchers.base import Launcher, Update

LAUNCHERS: Registry[type[Launcher]] = Registry(
    "launcher",
    builtin={
        "local": "domainbed.sweep.launchers.local:LocalLauncher",
        "dummy": "domainbed.sweep.launchers.dummy:DummyLauncher",
    },
)

__all__ = ["LAUNCHERS", "Launcher", "Update"]
