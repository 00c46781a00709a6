"""From the tensors of a checkpoint to the weights of a model: all of them, or none."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np

from isa_tf.compat import flatten_layers
from isa_tf.hints import StrPath
from isa_tf.layers.conv import ConvNormAct

# What batch normalisation calls its moving mean and variance.
PYTORCH = ("running_mean", "running_var")
PADDLE = ("_mean", "_variance")
_COUNTER = ".num_batches_tracked"


def conv_layers(model: keras.layers.Layer) -> list[ConvNormAct]:
    """Every `ConvNormAct` of a model once, also those that other layers hold.

    Those in the context modules inside a backbone, which no checkpoint has, are left out. Name maps
    go by the layers' names; the order is that of Keras and says nothing of theirs.

    Example:

    >>> len(conv_layers(isa_tf.backbones.create("resnet18")))
    20
    """
    inside = {id(layer) for module in _contexts(model) for layer in flatten_layers(module)}
    found = (layer for layer in flatten_layers(model) if isinstance(layer, ConvNormAct))
    return [layer for layer in found if id(layer) not in inside]


def _contexts(model):
    return model.context_layers().values() if hasattr(model, "context_layers") else ()


def _of_outputs(outputs):
    """The function that takes some of a tensor's outputs, its first axis, in their order."""
    return lambda values: values if outputs is None else values[outputs(len(values))]


class Report(NamedTuple):
    """What a transfer did not do.

    Attributes:
        left_over: names of the tensors that have no place in the model, sorted.
        kept: paths of the model's weights that were left as they are, sorted.
    """

    left_over: list[str]
    kept: list[str]


class Transfer:
    """Collects what each weight of a model is to become, and sets them all at the end.

    A name map goes through a model's layers and says which tensors each of them takes; nothing
    changes before `finish`, which refuses where something is missing or has no place.

    Args:
        tensors: dict of arrays by name, as `read_checkpoint` gives.
        path: where they come from, for the errors.
        prefix: str, what all names begin with; tensors of other names are none of this transfer's
            business. Defaults to "".
        statistics: names of the moving mean and variance: `PYTORCH` or `PADDLE`. Defaults to
            `PYTORCH`.
        positive_scale: float or `None`. In-place activated BN scales by abs(weight) + this.
            Defaults to `None`, the weight itself.
        optional: tuple of str; a variable whose path holds one of them keeps its value where its
            tensor is missing or has another shape. Defaults to ().

    Example:

    >>> layer = isa_tf.layers.ConvNormAct(2)
    >>> layer.build((None, None, None, 3))
    >>> tensors = {"stem.0.weight": np.zeros((2, 3, 1, 1), "float32")}
    >>> for name in ("weight", "bias", "running_mean", "running_var"):
    ...     tensors[f"stem.1.{name}"] = np.ones(2, "float32")
    >>> transfer = Transfer(tensors, "network.pth")
    >>> transfer.conv_norm(layer, "stem.0", "stem.1")
    >>> report = transfer.finish(layer)
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        path: StrPath,
        prefix: str = "",
        statistics: Sequence[str] = PYTORCH,
        positive_scale: float | None = None,
        optional: Sequence[str] = (),
    ) -> None:
        self.path = os.fspath(path)
        self.tensors = {name: t for name, t in tensors.items() if name.startswith(prefix)}
        self.prefix = prefix
        self.statistics = statistics
        self.positive_scale = positive_scale
        self.optional = tuple(optional)
        # By the ids of variables: (variable, value).
        self._values: dict[int, tuple[keras.Variable, np.ndarray]] = {}
        self._used: set[str] = set()
        self._kept: set[int] = set()  # ids of variables that stay as they are

    def __contains__(self, name):
        return self.prefix + name in self.tensors

    def take(self, name: str, variable: keras.Variable) -> np.ndarray:
        """The tensor of a name as float32, for a variable, both for the error if it is missing."""
        name = self.prefix + name
        self._used.add(name)
        if name not in self.tensors:
            raise ValueError(f"{self.path}: {name}, for {variable.path}, is missing")
        return np.asarray(self.tensors[name]).astype("float32")

    def put(self, variable: keras.Variable, value: np.ndarray, name: str) -> None:
        """Says what a variable becomes; `name` is the tensor's, for the error of a wrong shape."""
        self._check(variable, value, name)
        self._values[id(variable)] = (variable, value)

    def _check(self, variable, value, name):
        if value.shape != tuple(variable.shape):
            given = self.tensors.get(self.prefix + name, value)
            raise ValueError(
                f"{self.path}: {self.prefix}{name} of shape {np.shape(given)} doesn't fit "
                f"{variable.path} of shape {tuple(variable.shape)}"
            )

    def _maybe(self, variable, name, convert):
        """Takes, converts and puts one tensor, unless the variable may go without it."""
        try:
            self.put(variable, convert(self.take(name, variable)), name)
        except ValueError:
            if not any(part in variable.path for part in self.optional):
                raise
            self._used.discard(self.prefix + name)
            self._kept.add(id(variable))

    def conv(
        self,
        layer: keras.layers.Layer,
        name: str,
        inputs: Sequence[int] | np.ndarray | None = None,
        outputs: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        """Kernel of a convolution (also depthwise or transposed), and its bias if it has one.

        Args:
            layer: `keras.layers.Conv2D`, `DepthwiseConv2D` or `Conv2DTranspose`, or
                `isa_tf.layers.ConvBiasAct`.
            name: str, of the convolution in the checkpoint.
            inputs: permutation of its input channels, or `None`. Defaults to `None`.
            outputs: function of how many output channels the checkpoint's has to which of them are
                taken, in the model's order; `None` for all as they are. Defaults to `None`.
        """
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)

        def convert(kernel):
            if kernel.ndim != 4:
                return kernel
            kernel = kernel if inputs is None else kernel[:, inputs]
            kernel = _of_outputs(outputs)(kernel)
            # (C, 1, H, W) -> (H, W, C, 1), or OIHW -> HWIO, or a transposed one's IOHW -> HWOI.
            return kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))

        self._maybe(layer.kernel, f"{name}.weight", convert)
        if getattr(layer, "use_bias", True):
            self._maybe(layer.bias, f"{name}.bias", _of_outputs(outputs))

    def dense(
        self,
        layer: keras.layers.Layer,
        name: str,
        read_map: Sequence[int] | None = None,
        outputs: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        """Kernel and bias of a dense layer.

        Args:
            layer: `keras.layers.Dense`.
            name: str, of the layer in the checkpoint.
            read_map: (height, width, channels) of the map that was flattened before it, channels
                first in the checkpoint and last in the model; `None` where a vector is read.
                Defaults to `None`.
            outputs: as for `conv`. Defaults to `None`.
        """

        def convert(kernel):
            if kernel.ndim != 2:
                return kernel
            if read_map is not None and kernel.shape[1] == math.prod(read_map):
                height, width, channels = read_map
                kernel = kernel.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
                kernel = kernel.reshape(len(kernel), -1)
            return _of_outputs(outputs)(kernel).T

        self._maybe(layer.kernel, f"{name}.weight", convert)
        self._maybe(layer.bias, f"{name}.bias", _of_outputs(outputs))

    def norm(
        self, layer: keras.layers.Layer, name: str, shift: float | np.floating | np.ndarray = 0.0
    ) -> None:
        """Scale, offset and moving statistics of a batch normalisation.

        Args:
            layer: `keras.layers.BatchNormalization`.
            name: str, of the normalisation in the checkpoint.
            shift: vector added to what the layer reads in the checkpoint's network and not in the
                model: the bias of a convolution before it. It is taken off the moving mean, which
                is the same, and in training such a bias has no effect. Defaults to 0.
        """

        def scale(weight):
            if self.positive_scale is None:
                return weight
            return np.abs(weight) + np.float32(self.positive_scale)

        mean, variance = self.statistics
        self._maybe(layer.gamma, f"{name}.weight", scale)
        self._maybe(layer.beta, f"{name}.bias", np.asarray)
        self._maybe(layer.moving_mean, f"{name}.{mean}", lambda value: value - shift)
        self._maybe(layer.moving_variance, f"{name}.{variance}", np.asarray)

    def conv_norm(
        self,
        layer: ConvNormAct,
        conv: str,
        norm: str,
        inputs: Sequence[int] | np.ndarray | None = None,
        shift: np.ndarray | None = None,
    ) -> None:
        """A `ConvNormAct`; a bias of its convolution goes into the normalisation.

        Args:
            layer: `isa_tf.layers.ConvNormAct`.
            conv: str, of the convolution in the checkpoint.
            norm: str, of the normalisation.
            inputs: permutation of its input channels, or `None`. Defaults to `None`.
            shift: vector that is added to every input in the checkpoint's network and not in the
                model, for a 1x1 convolution; or `None`. Defaults to `None`.
        """
        self.conv(layer.conv, conv, inputs)
        total: np.floating | np.ndarray = np.float32(0)
        if f"{conv}.bias" in self:
            total = self.take(f"{conv}.bias", layer.norm.moving_mean)
            self._check(layer.norm.moving_mean, total, f"{conv}.bias")
        if shift is not None:
            kernel = self.take(f"{conv}.weight", layer.conv.kernel)
            total = total + (kernel[:, :, 0, 0].astype("float64") @ shift).astype("float32")
        self.norm(layer.norm, norm, total)

    def keep_contexts(self, backbone: keras.Model) -> None:
        """Leaves the context modules inside a backbone as they are."""
        self._kept |= {id(v) for module in _contexts(backbone) for v in module.variables}

    def include(self, other: "Transfer") -> None:
        """Takes over what another transfer from the same tensors, with a prefix, collected."""
        self._values.update(other._values)
        self._used |= other._used
        self._kept |= other._kept

    def finish(self, model: keras.layers.Layer, left_over: Sequence[str] = ()) -> Report:
        """Sets every weight of a model.

        Args:
            model: keras model or layer; each of its weights must have been named, but those of
                context modules inside a backbone (see `keep_contexts`).
            left_over: tuple of str, how the names of tensors begin that may have no place.

        Returns:
            `Report`.

        Raises:
            ValueError: for a tensor without a place, or a weight that was not named. The model is
                then as it was.
        """
        weights = [v for v in model.weights if "seed_generator" not in v.path]
        kept = sorted(v.path for v in weights if id(v) not in self._values)
        needed = sorted(v.path for v in weights if id(v) not in self._values.keys() | self._kept)
        unknown = [p for p in needed if not any(part in p for part in self.optional)]
        if unknown:
            raise ValueError(f"{self.path}: no names are known for {', '.join(unknown)}")
        left = sorted(self.tensors.keys() - self._used)
        left = [name for name in left if not name.endswith(_COUNTER)]
        allowed = tuple(self.prefix + start for start in left_over)
        unknown = [name for name in left if not name.startswith(allowed)]
        if unknown:
            raise ValueError(
                f"{self.path}: {model.name} has no place for {', '.join(unknown[:10])}"
                + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
            )
        for variable, value in self._values.values():
            variable.assign(value)
        return Report(left, kept)
