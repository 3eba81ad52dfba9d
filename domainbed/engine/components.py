"""The registered components of recorded jobs, and the modules that register them."""

from collections.abc import Collection, Mapping
from typing import Any

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.engine.averaging import AVERAGINGS, NO_AVERAGING
from domainbed.engine.tracking import NO_TRACKER, TRACKERS
from domainbed.errors import UsageError
from domainbed.registry import Registry, import_modules


def import_components(args: Mapping[str, Any], trust_imports: bool, names: Collection[str], source: object) -> None:
    """Check that components of a recorded job are registered; import the recorded modules only if they are trusted.

    Whoever wrote the record chose these modules, and importing a module runs its code.

    Args:
        args: the job's arguments, as in its records.
        trust_imports: whether to import the modules that the job imported.
        names: the required components: "dataset", "algorithm", "averaging", "track".
        source: the file that contains the arguments, for messages.

    Raises:
        UsageError: a component is not registered, and the job imported modules, or one cannot be imported.
    """
    imports = args.get("imports")
    if not isinstance(imports, list | tuple) or not imports:
        return  # an unknown component is reported where it is looked up
    if trust_imports:
        import_modules(imports)
    registries: dict[str, Registry[Any]] = {
        "dataset": DATASETS,
        "algorithm": ALGORITHMS,
        "averaging": AVERAGINGS,
        "track": TRACKERS,
    }
    for name in names:
        registry, value = registries[name], args.get(name)
        if isinstance(value, str) and value not in (NO_TRACKER, NO_AVERAGING, *registry):
            modules = " ".join(map(repr, imports))
            raise UsageError(
                f"{source} requires the {registry.kind} {value!r}, which is not registered; the job imported "
                f"{modules}, but importing a module runs its code. Pass those that you trust to --import, or "
                "--trust_imports to import all (in Python, import them first or pass trust_imports=True)"
            )
