"""Convolutions in a row and residual blocks: what ResNet and HRNet are made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from isa_tf.hints import DType
from isa_tf.layers import ConvNormAct, Recomputed
from isa_tf.layers.conv import BN_EPSILON


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Makes the layers of a network, each told what the whole network is.

    Args:
        recompute: bool, whether convolutions in a row are in a `isa_tf.layers.Recomputed`. Defaults
            to `False`.
        minimal_filtering: int or `None`, see `ConvNormAct`. Defaults to `None`.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        dtype: name or policy. Defaults to `None`, the global policy.
        epsilon: float, of the normalisations. Defaults to 1e-5.

    Example:

    >>> x = keras.Input((None, None, 16))
    >>> Blocks(recompute=True).block(x, "block1", 8, bottleneck=True).shape
    (None, None, None, 32)
    """

    recompute: bool = False
    minimal_filtering: int | None = None
    synchronized: bool = False
    dtype: DType = None
    epsilon: float = BN_EPSILON

    def conv(self, name: str, filters: int, kernel_size: int = 1, **arguments: Any) -> ConvNormAct:
        """A convolution with PyTorch's symmetric padding; `arguments` are those of the layer."""
        return ConvNormAct(
            filters,
            kernel_size,
            padding="symmetric",
            epsilon=self.epsilon,
            synchronized=self.synchronized,
            minimal_filtering=self.minimal_filtering,
            dtype=self.dtype,
            name=name,
            **arguments,
        )

    def run(
        self,
        x: keras.KerasTensor,
        name: str,
        convs: Sequence[ConvNormAct],
        convolve_again: bool = False,
    ) -> keras.KerasTensor:
        """The map that convolutions in a row make of `x`."""
        if self.recompute:
            name = f"{name}_recomputed"
            return Recomputed(convs, convolve_again, dtype=self.dtype, name=name)(x)
        for layer in convs:
            x = layer(x)
        return x

    def add(self, maps: Sequence[keras.KerasTensor], name: str) -> keras.KerasTensor:
        """The sum of maps, and a ReLU."""
        x = keras.layers.Add(dtype=self.dtype, name=f"{name}_add")(maps)
        return keras.layers.ReLU(dtype=self.dtype, name=f"{name}_relu")(x)

    def block(
        self,
        x: keras.KerasTensor,
        name: str,
        width: int,
        bottleneck: bool,
        strides: int = 1,
        rates: Sequence[int] = (1, 1),
        pool_shortcut: bool = False,
        keep_shortcut: bool = False,
        stride_in_1x1: bool = False,
    ) -> keras.KerasTensor:
        """A residual block.

        Args:
            x: keras tensor.
            name: str, before the names of its layers.
            width: int, filters of its 3x3 convolutions.
            bottleneck: bool: 1x1, 3x3 and 1x1 to four times the width, or two 3x3.
            strides: int, of the first 3x3 convolution, unless `stride_in_1x1`. Defaults to 1.
            rates: two ints, the dilation of the convolution that has the strides and of what comes
                after it. Defaults to (1, 1).
            pool_shortcut: bool, whether a shortcut with strides is 2x2 average pooling and a 1x1
                convolution. Defaults to `False`.
            keep_shortcut: bool, whether a shortcut's convolution is not recomputed, as it should
                where it is an expensive one. Defaults to `False`.
            stride_in_1x1: bool, whether the first convolution of a bottleneck has the strides.
                Defaults to `False`.
        """
        outputs = 4 * width if bottleneck else width
        first = strides if stride_in_1x1 else 1
        strided = {"kernel_size": 3, "strides": strides // first, "dilation_rate": rates[0]}
        if bottleneck:
            convs = [
                self.conv(f"{name}_conv1", width, strides=first),
                self.conv(f"{name}_conv2", width, **strided),
                self.conv(f"{name}_conv3", outputs, activation=None),
            ]
        else:
            last = {"kernel_size": 3, "dilation_rate": rates[1]}
            convs = [
                self.conv(f"{name}_conv1", width, **strided),
                self.conv(f"{name}_conv2", outputs, activation=None, **last),
            ]
        # The widest maps come of the cheapest convolutions.
        y = self.run(x, name, convs, convolve_again=bottleneck)
        if x.shape[-1] != outputs or strides > 1:
            if pool_shortcut and strides > 1:
                x = keras.layers.AveragePooling2D(
                    2, padding="same", dtype=self.dtype, name=f"{name}_pool"
                )(x)
                strides = 1
            shortcut = f"{name}_shortcut"
            layer = self.conv(shortcut, outputs, activation=None, strides=strides)
            cheap = bottleneck and not keep_shortcut
            x = self.run(x, shortcut, [layer], convolve_again=True) if cheap else layer(x)
        return self.add([y, x], name)
