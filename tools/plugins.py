"""Things of one's own in a command: modules that register them, imported before anything else."""

import importlib
import sys

from absl import app, flags


def define(flag_values):
    """Defines --plugins among the flags of a tool; gives the flag, for `load`."""
    flag = flags.DEFINE_list(
        "plugins",
        [],
        "Names of modules to import first, which register formats, layers, ... of one's own.",
        flag_values=flag_values,
    )
    # The tool's own, whose help shows it, although it is defined here.
    flag_values.register_key_flag_for_module(sys.argv[0], flag_values[flag.name])
    return flag


def load(flag):
    """Imports the modules that the flag names; a usage error for one that cannot be imported."""
    for name in flag.value:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise app.UsageError(f"--plugins: {name!r} cannot be imported ({error!r})") from error
