"""Feature maps of images, computed once and kept in a folder, to train heads on.

A folder has `features.json`, which tells what the maps are of, and `SPLIT/000000.npz`, an example
each: its label and its maps, as float16.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from isa_tf import files
from isa_tf.data.base import (
    DataError,
    PythonReader,
    SegmentationDataset,
    python_operation,
    read_each,
)
from isa_tf.data.pipeline import (
    batch_by_size,
    check_positive,
    example_order,
    finish,
    places,
    share_of_split,
)
from isa_tf.hints import StrPath
from isa_tf.names import differences

ABOUT = "features.json"
_VERSION = 1
_LABEL = "label"
_LARGEST = np.finfo(np.float16).max


class FeatureDataset(SegmentationDataset):
    """Feature maps and labels in a folder, as `create_features` and `write_features` make it.

    Args:
        folder: path.
        on_error: see `Dataset`. Defaults to "raise".

    Attributes:
        about: dict, what the maps were made of.
        levels: dict from the maps' names to their channels.

    Shapes:
        `read` gives a dict of the maps, float16 (h, w, C), and a label (H, W), uint8.

    Raises:
        DataError: for a folder that is none of such maps.

    Example:

    >>> features = create_features("maps", data, {"val": ["0"]}, {"c4": 8})
    >>> write_features(features, "val", 0, {"c4": np.ones((4, 6, 8))}, np.zeros((32, 48), "uint8"))
    >>> maps, label = FeatureDataset("maps").read("val", 0)
    >>> maps["c4"].shape, maps["c4"].dtype
    ((4, 6, 8), dtype('float16'))
    """

    def __init__(self, folder: StrPath, on_error: str = "raise") -> None:
        self.folder = Path(folder)
        path = self.folder / ABOUT
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] != _VERSION:
                raise ValueError(f"version {found['version']}, this package reads {_VERSION}")
            of, self._examples = found["of"], found["examples"]
            super().__init__(
                of["name"],
                of["class_names"],
                found["examples"],
                of["palette"],
                on_error,
                of["flip_pairs"],
            )
            self.levels, self.about = dict(found["levels"]), found["about"]
        except FileNotFoundError:
            raise DataError(path, "no such file: no feature maps were kept there") from None
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(path, f"tells of no feature maps ({error!r})") from None

    def examples(self, split: str) -> tuple[str, ...]:
        self._check_split(split)
        return tuple(self._examples[split])

    def path(self, split: str, index: int) -> Path:
        """The file of an example."""
        return self.folder / split / f"{index:06d}.npz"

    def missing(self, split: str) -> list[int]:
        """The positions of a split's examples that are not there yet, a list of int."""
        return [i for i in range(self.size(split)) if not self.path(split, i).exists()]

    def read(  # type: ignore[override]  # maps in place of an image
        self, split: str, index: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        path = self.path(split, range(self.size(split))[index])
        try:
            with np.load(path, allow_pickle=False) as found:
                maps = {level: found[level] for level in self.levels}
                label = found[_LABEL]
        except FileNotFoundError:
            raise DataError(path, "not there (yet): the maps are to be computed") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(path, f"cannot be read ({error}); delete it and compute it") from None
        for level, channels in self.levels.items():
            shape, dtype = maps[level].shape, maps[level].dtype
            if len(shape) != 3 or shape[2] != channels or dtype != np.float16:
                raise DataError(path, f"map {level!r} is {dtype}{shape}, of {channels} channels")
        if label.ndim != 2 or label.dtype != np.uint8:
            raise DataError(path, f"the label is {label.dtype}{label.shape}")
        return maps, label


def create_features(
    folder: StrPath,
    dataset: SegmentationDataset,
    examples: Mapping[str, Sequence[str]],
    levels: Mapping[str, int],
    about: dict[str, Any] | None = None,
) -> FeatureDataset:
    """Begins a folder of feature maps, or takes up one that was begun with the same arguments.

    Args:
        folder: path; made where it is not there.
        dataset: `SegmentationDataset` that the maps are of, for names and colours.
        examples: dict from splits to lists of str, what names each of their examples.
        levels: dict from the maps' names to their channels.
        about: dict that JSON can hold: what else the maps depend on. Defaults to `None`, for {}.

    Returns:
        `FeatureDataset`, of which `missing` tells what is still to be written.

    Raises:
        ValueError: for a folder of other maps, naming what differs, or with other things in it.
    """
    folder = Path(folder)
    of = {
        "name": dataset.name,
        "class_names": dataset.class_names,
        "palette": dataset.palette,
        "flip_pairs": dataset.flip_pairs,
    }
    wanted = {"version": _VERSION, "of": of, "levels": levels, "about": about or {}}
    wanted["examples"] = {split: list(names) for split, names in examples.items()}
    if not (folder / ABOUT).exists():
        # What was killed as it first wrote that has left a part of it.
        if folder.exists() and not all(map(files.is_left, folder.iterdir())):
            raise ValueError(f"{folder} is not empty and holds no {ABOUT}; choose another folder")
        files.write_json(folder / ABOUT, wanted)
        return FeatureDataset(folder)
    found = FeatureDataset(folder)
    # By way of JSON, which knows no tuples.
    theirs, wanted = json.loads((folder / ABOUT).read_text()), json.loads(json.dumps(wanted))
    if differing := differences(wanted, theirs):
        raise ValueError(
            f"{folder} holds other feature maps, which differ in {', '.join(differing)} (see "
            f"{folder / ABOUT}); choose another folder"
        )
    for split in found.splits:
        files.sweep(folder / split)
    return found


def write_features(
    features: FeatureDataset,
    split: str,
    index: int,
    maps: Mapping[str, np.ndarray],
    label: np.ndarray,
) -> None:
    """Writes one example.

    Args:
        features: `FeatureDataset`.
        split, index: which one.
        maps: dict of arrays (h, w, C), rounded to float16.
        label: uint8 (H, W).

    Raises:
        ValueError: for a value that float16 does not hold.
    """
    halves: dict[str, Any] = {}
    for level in features.levels:
        found = np.asarray(maps[level])
        if not (np.abs(found) <= _LARGEST).all():
            raise ValueError(
                f"{features.path(split, index)}: map {level!r} has values that float16 does not "
                f"hold, up to {np.abs(found).max():.3g}"
            )
        halves[level] = found.astype(np.float16)
    with files.replacing(features.path(split, index)) as path:
        np.savez(path, label=np.asarray(label, np.uint8), **halves)


def feature_pipeline(
    features: FeatureDataset,
    split: str,
    batch_size: int,
    *,
    seed: int = 0,
    start_step: int = 0,
    cache: bool = False,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Shuffled batches of feature maps to train a head on, without end.

    What stands at a place of the stream depends on `seed` and that place alone, as in
    `train_pipeline`.

    Args:
        features: `FeatureDataset`, whose maps of this split have one size.
        split: str, such as "train".
        batch_size, seed, start_step, cache, input_context: see `train_pipeline`.

    Shapes:
        Batches of a dict of the maps, float32 (B, h, w, C), and "image", zeros (B, H, W, 3) of the
        size of the label; and the label (B, H, W), uint8.

    Raises:
        ValueError: for an unknown split or a `batch_size` that is not positive, or that the
            replicas do not divide.

    Example:

    >>> features = create_features("to_train", data, {"train": ["0"]}, {"c4": 2})
    >>> label = np.zeros((32, 48), "uint8")
    >>> write_features(features, "train", 0, {"c4": np.ones((4, 6, 2))}, label)
    >>> maps, label = next(iter(feature_pipeline(features, "train", batch_size=2)))
    >>> maps["c4"].shape, maps["image"].shape
    (TensorShape([2, 4, 6, 2]), TensorShape([2, 32, 48, 3]))
    """
    features.size(split)
    check_positive("batch_size", (batch_size,))
    running, rows = places(features, split, batch_size, start_step, True, input_context)
    to_index = example_order(features, split, batch_size, seed, shuffle=True)
    data = _read(features, split, running, to_index, cache).map(lambda index, *parts: parts)
    return finish(data.batch(rows, drop_remainder=True).map(_as_inputs(features)))


def feature_eval_pipeline(
    features: FeatureDataset,
    split: str,
    batch_size: int = 1,
    cache: bool = False,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Every example of a split once; batches hold maps and labels of one size only.

    Args:
        features: `FeatureDataset`.
        split, batch_size, cache, input_context: see `eval_pipeline`.

    Shapes:
        As those of `feature_pipeline`.

    Example:

    >>> features = create_features("to_score", data, {"val": ["0"]}, {"c4": 2})
    >>> label = np.zeros((32, 48), "uint8")
    >>> write_features(features, "val", 0, {"c4": np.ones((4, 6, 2))}, label)
    >>> [label.shape for maps, label in feature_eval_pipeline(features, "val")]
    [TensorShape([1, 32, 48])]
    """
    check_positive("batch_size", (batch_size,))
    running = share_of_split(features, split, input_context)
    data = _read(features, split, running, lambda i: i, cache)
    data = batch_by_size(data, batch_size).map(lambda index, *parts: parts)
    return finish(data.map(_as_inputs(features)))


def _read(features, split, running, to_index, cache):
    """`tf.data.Dataset` of (scalar, maps level by level, label)."""
    levels = features.levels
    empty = [np.zeros((0, 0, channels), np.float16) for channels in levels.values()]
    empty.append(np.zeros((0, 0), np.uint8))

    def load(split, index):
        maps, label = features.read(split, index)
        return *maps.values(), label

    read = PythonReader(features, split, cache, load, tuple(empty))
    dtypes = [tf.float16] * len(levels) + [tf.uint8]

    def by_python(i):
        *maps, label = python_operation(read, [to_index(i)], dtypes)
        shaped = zip(maps, levels.values(), strict=True)
        maps = [tf.ensure_shape(m, (None, None, channels)) for m, channels in shaped]
        return *maps, tf.ensure_shape(label, (None, None))

    return read_each(read, running, to_index, by_python)


def _as_inputs(features):
    """A function of a batch's parts that gives what a head reads, and the label."""

    def of(*parts):
        *maps, label = parts
        named = zip(features.levels, maps, strict=True)
        inputs = {level: tf.cast(part, tf.float32) for level, part in named}
        # Nothing of the image counts but its size.
        inputs["image"] = tf.zeros([*tf.unstack(tf.shape(label)), 3], tf.uint8)
        return inputs, label

    return of
