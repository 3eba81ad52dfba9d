"""DomainBed's name of the launchers: `REGISTRY["mine"] = my_launcher`, a function of a list of command lines."""

from domainbed.sweep.launchers import LAUNCHERS as REGISTRY

__all__ = ["REGISTRY"]
