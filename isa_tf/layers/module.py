"""What every context module is."""

from typing import Any

import keras
import tensorflow as tf

from isa_tf.hints import Activation, Shape
from isa_tf.layers import twin
from isa_tf.layers.conv import BN_EPSILON, BN_MOMENTUM, ConvNormAct
from isa_tf.layers.fused import ConvBiasAct, check_map
from isa_tf.layers.policy import checked_policy
from isa_tf.layers.twin import TwinOptions


def check_positive(**counts: int | None) -> None:
    """Raises ValueError where a count is below 1; `None` leaves it to the module."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class ContextModule(keras.layers.Layer):
    """A layer from a map (B, H, W, C) to one of the same height and width: the base of them all.

    A subclass has arguments of its own before these, calls `super().build(input_shape)` first, and
    makes its convolutions by `conv_norm` and `linear`.

    Args:
        filters: int, output channels; `None` for as many as the input has. Defaults to `None`.
        dropout: float, channel-wise (spatial) dropout, for the subclass to put on its output as
            `self.drop`. Defaults to 0.
        activation: name or callable, after the normalisations. Defaults to "relu".
        epsilon: float, of the normalisations. Defaults to 1e-5.
        momentum: float, of the normalisations, in Keras's sense. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.
        minimal_filtering: int or `None`, of its convolutions, see `ConvNormAct`. Defaults to
            `None`.
        residual: bool, whether the output is added to the input. What reads out then has no
            activation and a normalisation whose scale begins at zero, so that a fresh module is the
            identity. (Behind a ReLU a scale of zero would stay zero: it has no gradient there.)
            Defaults to `None`, as the module is by itself: see its attribute `residual`.
        **kwargs: of `keras.layers.Layer`.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for filters below 1, a dropout outside [0, 1), an input that is no map, a module
            that cannot be residual, or not otherwise; or, where it adds to its input, filters
            other than the input's channels; and for a policy that `checked_policy` refuses.
    """

    residual = False  # whether the output is added to the input; by itself, on the class
    both_forms = False  # whether the argument may say otherwise: it reads out by `read_out_conv`
    # Of its twin; `None` where nothing in it is computed otherwise in inference.
    twin_class: type[Any] | None = None

    def __init__(
        self,
        filters: int | None = None,
        dropout: float = 0.0,
        activation: Activation = "relu",
        epsilon: float = BN_EPSILON,
        momentum: float = BN_MOMENTUM,
        synchronized: bool = False,
        minimal_filtering: int | None = None,
        residual: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checked_policy(self.dtype_policy, self.name)
        check_positive(filters=filters)
        if residual is not None and bool(residual) != self.residual:
            if not self.both_forms:
                form = "always adds to its input" if self.residual else "has no residual form"
                raise ValueError(f"{type(self).__name__} {form}, got residual={residual!r}")
            self.residual = bool(residual)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.filters = filters
        self.dropout = dropout
        self.activation = keras.activations.get(activation)
        self.epsilon = epsilon
        self.momentum = momentum
        self.synchronized = synchronized
        self.minimal_filtering = minimal_filtering
        self.drop = keras.layers.SpatialDropout2D(dropout, dtype=self.dtype_policy, name="drop")

    def build(self, input_shape: Shape) -> None:
        check_map(self, input_shape)
        channels = input_shape[-1]
        self.drop.build(input_shape)  # a layer looks its path up in a `DTypePolicyMap` once built
        if self.residual and self.filters not in (None, channels):
            raise ValueError(
                f"{self.name} adds to its input of {channels} channels; filters must be None or "
                f"{channels}, got {self.filters}"
            )

    @property
    def norm_arguments(self) -> dict[str, Any]:
        """What all its normalisations and activations have in common, for `ConvNormAct`."""
        return {
            "activation": self.activation,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "synchronized": self.synchronized,
            "minimal_filtering": self.minimal_filtering,
            "dtype": self.dtype_policy,
        }

    @property
    def wide_dtype(self) -> str:
        """The dtype of long sums: float32 where the computations are in half precision."""
        return keras.backend.result_type(self.compute_dtype, "float32")

    def own(self, x: tf.Tensor) -> tf.Tensor:
        """What a layer inside gave, in the dtype of this one: a `DTypePolicyMap` may tell others.

        What is joined with something else goes through it: the input, another layer's output.
        """
        return tf.cast(x, self.compute_dtype)

    def conv_norm(
        self, name: str, filters: int | None, reads: int, **arguments: Any
    ) -> keras.layers.Layer:
        """A built `ConvNormAct` that reads maps of `reads` channels."""
        layer = ConvNormAct(filters, name=name, **{**self.norm_arguments, **arguments})
        layer.build((None, None, None, reads))
        return layer

    def read_out_conv(
        self, name: str, filters: int | None, reads: int, **arguments: Any
    ) -> keras.layers.Layer:
        """The `conv_norm` whose output `finish` takes: where the module is residual, a zero one."""
        if self.residual:
            arguments |= {"activation": None, "gamma_initializer": "zeros"}
        return self.conv_norm(name, filters, reads, **arguments)

    def finish(self, inputs: tf.Tensor, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The module's output, of what was read out."""
        x = inputs + self.own(x) if self.residual else x
        return self.own(self.drop(x, training=training))

    def linear(
        self,
        name: str,
        filters: int,
        reads: int,
        use_bias: bool = False,
        kernel_initializer: str | keras.initializers.Initializer = "he_normal",
    ) -> keras.layers.Layer:
        """A built 1x1 convolution that reads maps of `reads` channels."""
        layer = keras.layers.Conv2D(
            filters,
            1,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build((None, None, None, reads))
        return layer

    def inference_twin(self, options: TwinOptions) -> keras.layers.Layer:
        """The module for inference: of class `twin_class`, or a copy. See `isa_tf.layers.twin`."""
        if self.twin_class is None:
            return twin.copy(self, type(self))
        known = self.twin_class.twin_arguments
        return twin.copy(self, self.twin_class, **{name: getattr(options, name) for name in known})

    def fill_twin(self, other: keras.layers.Layer) -> None:
        if self.twin_class is None:  # the other is a copy, whose convolutions are these
            other.set_weights(self.get_weights())
        else:
            twin.fill_parts(self, other)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.filters or input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "dropout": self.dropout,
            "activation": keras.activations.serialize(self.activation),
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "synchronized": self.synchronized,
            "minimal_filtering": self.minimal_filtering,
            "residual": self.residual,
        }


class ModuleTwin:
    """What makes a context module's class that of its twin: its convolutions are `ConvBiasAct`s.

    It stands before the module's class among the bases, and so has all of that one's arguments;
    those of batch normalisations are without effect.

    Args:
        product_dtype: see `ConvBiasAct`. Defaults to `None`.
        compile_transforms: see `ConvBiasAct`. Defaults to `True`.
        **kwargs: of the module, `minimal_filtering` among them, which here is that of inference.
    """

    # Of `twin.TwinOptions`.
    twin_arguments: tuple[str, ...] = ("minimal_filtering", "product_dtype", "compile_transforms")

    def __init__(
        self,
        *args: Any,
        product_dtype: str | None = None,
        compile_transforms: bool = True,
        **kwargs: Any,
    ) -> None:
        self.product_dtype = product_dtype
        self.compile_transforms = compile_transforms
        super().__init__(*args, **kwargs)

    @property
    def norm_arguments(self) -> dict[str, Any]:
        return {**super().norm_arguments, **self._of_convolutions}  # type: ignore[misc]

    @property
    def _of_convolutions(self):
        return {name: getattr(self, name) for name in ("product_dtype", "compile_transforms")}

    def conv_norm(
        self, name: str, filters: int | None, reads: int, **arguments: Any
    ) -> keras.layers.Layer:
        arguments = {**self.norm_arguments, **arguments}
        of_training = ("epsilon", "momentum", "synchronized")
        for told in (*of_training, "gamma_initializer", "kernel_initializer"):
            arguments.pop(told, None)
        layer = ConvBiasAct(filters, name=name, **arguments)
        layer.build((None, None, None, reads))
        return layer

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._of_convolutions}  # type: ignore[misc]


class AttentionModule(ContextModule):
    """A context module that can return what its positions attended to.

    Call arguments:
        inputs: feature map (B, H, W, C).
        training: bool.
        return_affinity: bool, whether to return (output, affinity).
    """

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, return_affinity: bool = False
    ) -> Any:
        if return_affinity:
            return keras.Operation.compute_output_spec(
                self, inputs, training=training, return_affinity=True
            )
        return super().compute_output_spec(inputs, training=training)
