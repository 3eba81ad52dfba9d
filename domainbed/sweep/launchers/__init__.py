"""The launchers, by name."""

from domainbed.registry import Registry
from domainbed.sweep.launchers.base import Capacity, Launcher, NoOptions
from domainbed.sweep.launchers.function import accept_launcher
from domainbed.sweep.run import JobEvent

LAUNCHERS: Registry[type[Launcher]] = Registry(
    "launcher",
    builtin={
        "local": "domainbed.sweep.launchers.local:LocalLauncher",
        "multi_gpu": "domainbed.sweep.launchers.local:MultiGpuLauncher",
        "slurm": "domainbed.sweep.launchers.slurm:SlurmLauncher",
    },
    path="domainbed.sweep.launchers.LAUNCHERS",
    accept=accept_launcher,
)

__all__ = ["LAUNCHERS", "Capacity", "JobEvent", "Launcher", "NoOptions"]
