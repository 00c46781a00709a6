"""Keras's own file: the model as it is, to be trained on, tested in windows and exported."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from isa_tf import files, plugins
from isa_tf.formats.base import Format, check_model
from isa_tf.hints import StrPath
from isa_tf.inference import InstancePredictor, Predictor, predictor_of_model
from isa_tf.inference.protocol import ProtocolBase
from isa_tf.weights.reader import check_declared

# What Keras packs into its zip archive.
_CONFIG, _WEIGHTS, _WEIGHTS_NPZ = "config.json", "model.weights.h5", "model.weights.npz"
_WEIGHTS_DTYPES = ("float32", "float16")


class KerasFile(Format):
    """A `.keras` file. Unlike the other formats it needs this package to be loaded.

    Example:

    >>> path = isa_tf.export(model, "small.keras", weights_dtype="float16")
    >>> class_id, score = isa_tf.load_predictor(path)(images)
    """

    name, suffix = "keras", ".keras"

    def export(self, model: keras.Model, path: StrPath, weights_dtype: str = "float32") -> Path:
        """Writes a model without its optimizer and whatever else it was compiled with.

        Args:
            model: `keras.Model`.
            path: of the file to write, ending in `.keras`; its parents are made.
            weights_dtype: "float32" for the weights as they are, or "float16" to keep them in half
                the space, rounded to 11 bits; those beyond its range stay as they are. A model that
                is loaded of it has the types it had, and computes as it did. Defaults to "float32".

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: for no Keras model, another ending of the path, or another type.
        """
        path = self.check_path(path)
        check_model(model)
        if weights_dtype not in _WEIGHTS_DTYPES:
            known = " or ".join(f'"{name}"' for name in _WEIGHTS_DTYPES)
            raise ValueError(f"weights_dtype is {known}, got {weights_dtype!r}")
        with files.replacing(path) as new:
            model.save(new)
            _rewrite(new, half=weights_dtype == "float16")
        return path

    def load(
        self,
        path: Path,
        num_threads: int | None = None,
        protocol: ProtocolBase | Mapping[str, Any] | None = None,
    ) -> Predictor | InstancePredictor:
        model = load_model(path)
        try:
            return predictor_of_model(model, protocol)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def load_model(path: StrPath) -> keras.Model:
    """Loads the Keras model of a `.keras` file, without its optimizer.

    Args:
        path: of the file.

    Returns:
        `keras.Model`.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for a file that is no Keras model, or whose weights would take far more memory
            than the file has bytes; with the path. Nothing was inflated then.

    Example:

    >>> model = load_model("model.keras")
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a Keras model, or not the whole of one")
    faults = plugins.load()  # they register the classes that the file may be of
    try:
        files.check_inflated(path)
        _check_weights(path)
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        told = "; ".join([str(error), *faults])
        raise ValueError(f"{path}: cannot be read as a Keras model ({told})") from error


def _check_weights(path):
    """Refuses weights that declare far more bytes than there are, before any are read."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if _WEIGHTS_NPZ in names:
            with archive.open(_WEIGHTS_NPZ) as weights:
                files.check_inflated(weights)
        if _WEIGHTS not in names:
            return
        size = archive.getinfo(_WEIGHTS).file_size
        with archive.open(_WEIGHTS) as member, h5py.File(member) as weights:
            check_declared(weights, size)


def _rewrite(path, half):
    """Takes out of a saved model what it was compiled with; keeps weights as halves where asked."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members[_CONFIG])
    if config.pop("compile_config", None) is None and not half:
        return
    members[_CONFIG] = json.dumps(config).encode()
    kept = io.BytesIO()
    with h5py.File(io.BytesIO(members[_WEIGHTS])) as old, h5py.File(kept, "w") as new:
        _copy(old, new, half, left_out=("optimizer",))
    members[_WEIGHTS] = kept.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _copy(old, new, half, left_out=()):
    """Copies what an HDF5 group holds into another, weights as float16 if `half`."""
    new.attrs.update(old.attrs)
    for name, item in old.items():
        if name in left_out:
            continue
        if isinstance(item, h5py.Group):
            _copy(item, new.create_group(name), half)
        else:
            data = new.create_dataset(name, data=_halved(item[()]) if half else item[()])
            data.attrs.update(item.attrs)


def _halved(values):
    """float16 of float32 values, unless one is beyond its range."""
    if values.dtype != np.float32 or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        return values
    return values.astype(np.float16)
