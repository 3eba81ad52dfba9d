"""The launchers, by name."""

from domainbed.registry import Registry
from domainbed.sweep.launchers.base import Launcher, Update

LAUNCHERS: Registry[type[Launcher]] = Registry(
    "launcher",
    builtin={
        "local": "domainbed.sweep.launchers.local:LocalLauncher",
        "multi_gpu": "domainbed.sweep.launchers.local:MultiGpuLauncher",
        "slurm": "domainbed.sweep.launchers.slurm:SlurmLauncher",
        "dummy": "domainbed.sweep.launchers.dummy:DummyLauncher",
    },
)

__all__ = ["LAUNCHERS", "Launcher", "Update"]
