"""What every backbone is: an image in, a dict of feature maps and their strides out."""

import contextlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import keras
import numpy as np

from isa_tf.backbones.contexts import check_no_context
from isa_tf.files import check_inflated
from isa_tf.hints import DType, StrPath
from isa_tf.layers.policy import checked_policy
from isa_tf.presets import PresetModel
from isa_tf.weights import read_checkpoint

OUTPUT_STRIDES = (8, 16, 32)
# Of ImageNet, RGB in 0..255, as PyTorch networks are trained.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# Of the files that hold tensors by name.
CHECKPOINTS = (".pth", ".pt", ".tar", ".bin", ".pdparams", ".safetensors", ".npz")


class Backbone(PresetModel):
    """A functional model from an image to its feature maps; the base of every backbone.

    A subclass builds its layers, hands their tensors to this constructor and adds its own
    arguments to `get_config`. Its first layer normalises, in float32 whatever the policy, so
    that nothing outside the model needs to know how it was trained. A class whose networks have
    other output strides than 8, 16 and 32 says so by its attribute `output_strides`.

    Args:
        inputs: keras tensor, see `image_input`.
        feature_maps: dict from "c1" .. "c5" (the field's C1..C5) to keras tensors, in the order in
            which they are made; a head reads the last.
        feature_strides: dict with the same keys, int: how many input pixels one step on that
            map is. "c4" and "c5" have stride 8 at output stride 8.
        dtype: name or policy of the layers. Defaults to `None`, the global policy.
        context_names: dict from maps' names to the names of the layers that are context modules
            inside, of a class with an argument `context_at`. Defaults to `None`: it has none.
        context_at: refused: for the classes that have no such argument.
        last_level: name of a map. What lies behind it is left out: its maps, layers and weights.
            Defaults to `None`, the whole network.
        **kwargs: name, trainable.

    Shapes:
        (B, H, W, 3), RGB 0..255 -> {"c1": (B, ceil(H / 2), ceil(W / 2), C1), ...}.

    Raises:
        ValueError: where feature_maps and feature_strides differ in their keys, for context
            modules where the class has no place for them or behind the last level, or for a last
            level that is none.
    """

    output_strides: tuple[int, ...] = OUTPUT_STRIDES
    preset_part = "backbone"  # of a whole model's preset

    def __init__(
        self,
        inputs: keras.KerasTensor,
        feature_maps: dict[str, keras.KerasTensor],
        feature_strides: dict[str, int],
        dtype: DType = None,
        context_names: dict[str, str] | None = None,
        context_at: dict[str, Any] | None = None,
        last_level: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_no_context(context_at, type(self).__name__)
        policy = checked_policy(dtype, type(self).__name__)
        takes_contexts = context_names is not None
        if set(feature_maps) != set(feature_strides):
            raise ValueError(
                f"feature_maps has {sorted(feature_maps)}, "
                f"feature_strides {sorted(feature_strides)}"
            )
        feature_strides, context_names = dict(feature_strides), dict(context_names or {})
        if last_level is not None:
            names = list(feature_maps)
            if last_level not in names:
                known = ", ".join(names)
                raise ValueError(f"last_level must be one of {known}, got {last_level!r}")
            names = names[: names.index(last_level) + 1]
            if behind := sorted(context_names.keys() - set(names)):
                raise ValueError(f"context_at {', '.join(behind)} lies behind {last_level}")
            feature_maps = {name: feature_maps[name] for name in names}
            feature_strides = {name: feature_strides[name] for name in names}
        trainable = kwargs.pop("trainable", True)
        super().__init__(inputs=inputs, outputs=dict(feature_maps), **kwargs)
        if not trainable:  # said now, as Keras would say it before it knows of the layers
            self.trainable = False
        self.dtype_policy = policy
        self.feature_strides = feature_strides
        self.last_level = last_level
        self._takes_contexts = takes_contexts
        self._context_names = context_names

    @property
    def head_level(self) -> str:
        """The name of the map that a head reads."""
        return list(self.feature_strides)[-1]

    def context_layers(self) -> dict[str, keras.layers.Layer]:
        """The context modules inside, by the names of the maps before whose last block they are."""
        return {level: self.get_layer(name) for level, name in self._context_names.items()}

    def load_file(self, path: StrPath, convert: Callable[..., Any] | None) -> None:
        """Gives the backbone the weights of a file.

        Args:
            path: `.weights.h5` or `.keras` of such a backbone, with the context modules inside
                that this one has or without any; or another framework's checkpoint.
            convert: function from (backbone, dict of arrays by name, path), for a checkpoint.

        Raises:
            ValueError: for a file of another kind, weights that do not fit, or a `.keras` that is
                no archive or would inflate to far more than it is.
            OSError: for a file that cannot be read.
        """
        path = Path(path)
        if path.suffix == ".keras":
            try:
                check_inflated(path)  # Keras does not look before it inflates
            except (ValueError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path}: {error}") from None
        if path.name.endswith((".weights.h5", ".keras")):
            self.load_preset_weights(path)
        elif convert is not None and path.suffix in CHECKPOINTS:
            tensors = read_checkpoint(path)
            if self.last_level is None:
                convert(self, tensors, path)
            else:
                self._load_part(lambda whole: convert(whole, tensors, path), last_level=None)
        else:
            raise ValueError(
                'weights must be "imagenet" or the path of a .keras, .weights.h5 or checkpoint '
                f"file ({', '.join(CHECKPOINTS)}), got {str(path)!r}"
            )

    def load_preset_weights(self, path: Path) -> None:
        """Loads what is kept of such a backbone: with or without its contexts, cut off or not."""
        inside = sum(len(layer.weights) for layer in self.context_layers().values())
        if not inside and self.last_level is None:
            self.load_weights(path)
            return
        kept = count_arrays(path)
        if inside and kept == len(self.weights) - inside:
            self._load_part(lambda plain: plain.load_weights(path), context_at=None)
        elif self.last_level is not None and kept != len(self.weights):
            self._load_part(lambda whole: whole.load_preset_weights(path), last_level=None)
        else:
            self.load_weights(path)  # which says what does not fit

    def _load_part(self, load, **changes):
        """Takes the weights of its own layers from a network that differs, which `load` fills.

        Keras counts layers where it loads, and published names are of whole networks.
        """
        other = self.from_config({**self.get_config(), **changes})
        load(other)
        self.take_weights(other)

    def take_weights(self, other: "Backbone") -> None:
        """Takes the weights of another backbone's layers, as far as they have the same names."""
        theirs = {layer.name: layer for layer in other.layers}
        for layer in self.layers:
            if layer.name in theirs:
                layer.set_weights(theirs[layer.name].get_weights())

    def get_config(self) -> dict[str, Any]:
        # Not Functional's, which would write out the whole graph.
        config = {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "last_level": self.last_level,
        }
        if self._takes_contexts:
            made = self.context_layers()
            serialize = keras.saving.serialize_keras_object
            config["context_at"] = {level: serialize(layer) for level, layer in made.items()}
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        return cls(**config)


def count_arrays(path: Path) -> int:
    """How many arrays a `.weights.h5` or `.keras` has, but for those of an optimizer."""
    found = []

    def visit(name, entry):
        if isinstance(entry, h5py.Dataset) and not name.startswith("optimizer/"):
            found.append(name)

    with contextlib.ExitStack() as opened:
        if path.suffix == ".keras":
            archive = opened.enter_context(zipfile.ZipFile(path))
            file: Any = opened.enter_context(archive.open("model.weights.h5"))
        else:
            file = path
        opened.enter_context(h5py.File(file)).visititems(visit)
    return len(found)


def image_input() -> keras.KerasTensor:
    """The input of every backbone: raw RGB 0..255 of any size."""
    return keras.Input((None, None, 3), name="image")


def normalize(mean: float | Sequence[float], std: float | Sequence[float]) -> keras.layers.Layer:
    """The first layer of every backbone: (image - mean) / std, in float32.

    Args:
        mean: float or three of them (RGB), in 0..255.
        std: likewise.
    """
    if isinstance(mean, int | float) and isinstance(std, int | float):
        return keras.layers.Rescaling(1.0 / std, -mean / std, dtype="float32", name="normalize")
    means, stds = np.atleast_1d(mean).tolist(), np.atleast_1d(std).tolist()
    scale = [1.0 / s for s in stds]
    offset = [-m / s for m, s in zip(means, stds, strict=True)]
    return keras.layers.Rescaling(scale, offset, dtype="float32", name="normalize")


def check_output_stride(output_stride: Any, valid: Sequence[int] = OUTPUT_STRIDES) -> None:
    """Raises ValueError unless `output_stride` is one of `valid`."""
    if output_stride not in valid:
        *most, last = map(str, valid)
        choice = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(f"output_stride must be {choice}, got {output_stride!r}")
