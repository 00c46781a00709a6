"""Refuses other Keras backends than TensorFlow, before anything fails that does not say why."""

import importlib.util
import json
import os
from pathlib import Path


def configured() -> str:
    """The backend that Keras is to use, by KERAS_BACKEND or its file of settings.

    As Keras looks for it; this is asked before Keras is imported, which fails where its backend is
    not installed.

    Example:

    >>> configured()
    'tensorflow'
    """
    if told := os.environ.get("KERAS_BACKEND"):
        return told
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        return json.loads((Path(home) / "keras.json").read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def check() -> None:
    """Raises ImportError unless Keras computes, or will compute, by TensorFlow.

    Example:

    >>> check()
    """
    name = configured()
    if name == "tensorflow" and importlib.util.find_spec("tensorflow"):
        import keras

        name = keras.backend.backend()  # which somebody may have chosen otherwise by now
    if name != "tensorflow":
        raise ImportError(
            f"isa_tf is Keras on TensorFlow, and Keras's backend is {name!r}: set "
            "KERAS_BACKEND=tensorflow, or the backend in ~/.keras/keras.json, before Keras is "
            "imported"
        )


check()
