"""Convolutions of whose maps a step of training keeps few, and computes the others again."""

from collections.abc import Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from isa_tf.hints import Shape
from isa_tf.layers import twin
from isa_tf.layers.conv import ConvNormAct


@keras.saving.register_keras_serializable("isa_tf")
class Recomputed(keras.layers.Layer):
    """`ConvNormAct`s one after the other that keep little for their gradients.

    A step of training keeps of each of them the convolution's result, which the normalisation
    reads, and the activation's, which the next convolution reads. Between them the second is not
    kept here: it is made again from the first by one pass over the map and no convolution. With
    `convolve_again` the last convolution's result is not kept either and costs that convolution
    once more: worth it where this is a cheap one that makes a wide map, as the last 1x1 of a
    bottleneck is. Outputs, gradients and moving statistics are those of the layers themselves,
    which are called one after the other outside of training, and where one of them is frozen or
    synchronised.

    Args:
        convs: list of `ConvNormAct`, in the order in which they read each other.
        convolve_again: bool, whether the last convolution is done again. Defaults to `False`.

    Shapes:
        (B, H, W, C) -> those of the layers in a row.

    Raises:
        ValueError: for anything but `ConvNormAct`s, or none.

    Example:

    >>> convs = [layers.ConvNormAct(8), layers.ConvNormAct(16, 3, activation=None)]
    >>> Recomputed(convs)(np.zeros((1, 6, 6, 4), "float32"), training=True).shape
    TensorShape([1, 6, 6, 16])

    Paper: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174; as
    `recompute_grad` of DeepLab2 wraps whole blocks.
    """

    def __init__(
        self, convs: Sequence[keras.layers.Layer], convolve_again: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        convs = list(convs)
        if not convs or not all(isinstance(conv, ConvNormAct) for conv in convs):
            raise ValueError(f"{self.name} is made of ConvNormActs, at least one, got {convs}")
        self.convs = convs
        self.convolve_again = convolve_again

    def build(self, input_shape: Shape) -> None:
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = conv.compute_output_shape(input_shape)

    def inference_twin(self, options: twin.TwinOptions) -> keras.layers.Layer:
        """The twins of the layers, in a `keras.Sequential`."""
        twins = [twin.inference_twin(conv, options) for conv in self.convs]
        return keras.Sequential(twins, name=self.name)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if training and all(conv.norm.uses_batch_statistics(inputs) for conv in self.convs):
            return self._train(inputs)
        for conv in self.convs:
            inputs = conv(inputs, training=training)
        return tf.cast(inputs, self.compute_dtype)  # a `DTypePolicyMap` may tell the last another

    def _train(self, inputs):
        kernels = [tf.convert_to_tensor(conv.conv.kernel) for conv in self.convs]
        pairs = [conv.norm.scale_and_offset() for conv in self.convs]
        outputs, *statistics = _normalized(self.convs, self.convolve_again, inputs, kernels, pairs)
        for conv, mean, variance in zip(self.convs, statistics[::2], statistics[1::2], strict=True):
            conv.norm.update_moving_statistics(mean, variance)
        return self.convs[-1].activation(outputs)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        for conv in self.convs:
            input_shape = conv.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "convs": [conv.get_config() for conv in self.convs],
            "convolve_again": self.convolve_again,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        convs = [ConvNormAct.from_config(conv) for conv in config["convs"]]
        return cls(**{**config, "convs": convs})


def _normalized(convs, convolve_again, inputs, kernels, pairs):
    """What the last normalisation gives, then mean and variance of each normalisation's inputs."""
    count = len(convs)

    @tf.custom_gradient
    def run(x, *weights):
        kernels, scales, offsets = weights[:count], weights[count::2], weights[count + 1 :: 2]
        read, maps, reserved, statistics = x, [], [], []
        for conv, kernel, scale, offset in zip(convs, kernels, scales, offsets, strict=True):
            maps.append(conv.convolve(read, kernel))
            y, mean, variance, *kept = conv.norm.normalize(maps[-1], scale, offset)
            read = conv.activation(y) if len(maps) < count else y
            reserved.append(kept)
            statistics += [mean, variance]
        if convolve_again:
            maps[-1] = None

        def gradients(gradient, *_):
            of_kernels, of_pairs = [], []
            for i in reversed(range(count)):
                norm, after = convs[i].norm, gradient
                if maps[i] is not None:
                    after, *outer = norm.gradients(gradient, maps[i], scales[i], reserved[i])
                # Nothing is made again before its gradient is there; nor is the kernel read, which
                # minimal filtering would transform at once.
                (kernel,) = _later([kernels[i]], after)
                if i == 0:
                    (before,) = _later([x], after)
                else:
                    again = _later([maps[i - 1], scales[i - 1], offsets[i - 1]], after)
                    normalized = convs[i - 1].norm.normalize(*again)[0]
                    with tf.GradientTape() as activation:
                        activation.watch(normalized)
                        before = convs[i - 1].activation(normalized)
                with tf.GradientTape() as convolution:
                    convolution.watch([before, kernel])
                    z = convs[i].convolve(before, kernel)
                if maps[i] is None:
                    after, *outer = norm.gradients(gradient, z, scales[i], reserved[i])
                gradient, of_kernel = convolution.gradient(z, [before, kernel], after)
                if i > 0:
                    gradient = activation.gradient(before, normalized, gradient)
                of_kernels.insert(0, of_kernel)
                of_pairs = [*outer, *of_pairs]
            return gradient, *of_kernels, *of_pairs

        return (read, *statistics), gradients

    return run(inputs, *kernels, *(t for pair in pairs for t in pair))


def _later(tensors, gradient):
    """The tensors, for computations that begin no sooner than the gradient is there."""
    with tf.control_dependencies([gradient]):
        return [tf.identity(t) for t in tensors]  # else they were those that are done already
