"""Plug-ins: modules of installed packages that register layers, backbones, data sets, formats.

A package names them in its metadata, as entry points of the group `isa_tf.plugins`:

    [project.entry-points."isa_tf.plugins"]
    coast = "coast_models.isa"

Their names are then known wherever names are, and the classes that their files are of. A module is
imported once, when a name is asked for that is not known otherwise, when names are listed, or when
a `.keras` file is loaded; `import isa_tf` imports none.
"""

import importlib.metadata
import sys
import threading

GROUP = "isa_tf.plugins"

_lock = threading.RLock()
_begun = False  # by a thread that holds the lock until all are imported
_faults: tuple[str, ...] | None = None  # None until the plug-ins were loaded


def load() -> tuple[str, ...]:
    """Imports the plug-ins of the installed packages, if that was not done before.

    One that cannot be imported is left out with a warning, and does not keep the others away.
    Another thread that asks meanwhile waits until all are imported.

    Returns:
        What is wrong with those that were left out, a text each, with the package's name.

    Example:

    >>> isa_tf.plugins.load()
    ()
    """
    global _begun, _faults
    if _faults is None and hasattr(sys.modules.get("isa_tf"), "__all__"):  # which is set last
        with _lock:
            if not _begun:  # a plug-in that asks for names does not begin anew
                _begun = True
                _faults = tuple(filter(None, map(_load, _entry_points())))
    return _faults or ()


def _entry_points():
    """Those of the group, in the order of their names, each once."""
    found = importlib.metadata.entry_points(group=GROUP)
    return sorted({(e.name, e.value): e for e in found}.values(), key=lambda e: e.name)


def _load(entry):
    """Loads an entry point; what is wrong with it, or `None`."""
    try:
        entry.load()
    except Exception as error:
        from absl import logging

        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
        reason = f"{type(error).__name__}: {error}"
        fault = f"the plug-in {entry.name!r} of {package} cannot be loaded ({reason})"
        logging.warning("%s: %s", GROUP, fault)
        return fault
    return None
