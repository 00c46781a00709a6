"""The parts of Mask R-CNN that have weights, each a functional network: pyramid and heads."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras

from isa_tf.hints import DType
from isa_tf.layers import AddUpsampled, ConvBiasAct, ConvNormAct

PYRAMID_LEVELS = ("c2", "c3", "c4", "c5")


@dataclasses.dataclass(frozen=True)
class Parts:
    """Makes a detector's parts, each told what the whole network is.

    Args:
        filters: int, width of the pyramid and of convolutions in heads. Defaults to 256.
        normalized: bool, whether 3x3 convolutions of pyramid, box and mask head are without a bias
            and followed by batch normalisation, as in torchvision's second version. Defaults to
            `False`.
        momentum: float, of those normalisations. Defaults to 0.9.
        synchronized: bool, whether replicas share their statistics. Defaults to `False`.
        dtype: name or policy. Defaults to `None`, the global policy.

    Example:

    >>> Parts(filters=16).mask_head(5).output_shape
    (None, 28, 28, 5)

    Papers: Lin et al., "Feature Pyramid Networks for Object Detection"; He et al., "Mask R-CNN".
    """

    filters: int = 256
    normalized: bool = False
    momentum: float = 0.9
    synchronized: bool = False
    dtype: DType = None

    def pyramid(self, widths: Mapping[str, int]) -> keras.Model:
        """From a backbone's maps to those of a pyramid, and one more of half the last's size.

        Args:
            widths: dict from the names of the backbone's maps to their channels, fine to coarse.

        Shapes:
            {"c2": (B, H, W, C), ...} -> ["p2", ...], a list of maps (B, H, W, filters).
        """
        inputs = {
            name: keras.Input((None, None, width), name=name) for name, width in widths.items()
        }
        outputs: list[keras.KerasTensor] = []
        x = None
        for name, map_in in reversed(inputs.items()):
            level = name.removeprefix("c")
            lateral = self._conv(f"inner{level}", 1, None)(map_in)
            if x is not None:
                lateral = AddUpsampled(dtype=self.dtype, name=f"add{level}")([lateral, x])
            x = lateral
            outputs.insert(0, self._conv(f"outer{level}", 3, None)(x))
        # Of one position in four: a pooling of windows of one.
        pool = keras.layers.MaxPooling2D(1, 2, dtype=self.dtype, name="pool")
        outputs.append(pool(outputs[-1]))
        return keras.Model(inputs, outputs, name="pyramid")

    def proposal_head(self, anchors: int, convs: int = 1) -> keras.Model:
        """From a pyramid's map to what it says of its anchors, whose number a position has.

        Shapes:
            (B, H, W, filters) -> logits (B, H * W * anchors), codes (B, H * W * anchors, 4).
        """
        inputs = x = keras.Input((None, None, self.filters), name="map")
        for i in range(1, convs + 1):
            x = self._plain(f"conv{i}", self.filters, 3, "relu", 0.01)(x)
        logits = self._plain("logits", anchors, 1, None, 0.01, "float32")(x)
        codes = self._plain("codes", 4 * anchors, 1, None, 0.01, "float32")(x)
        logits = keras.layers.Reshape((-1,), dtype="float32", name="flat_logits")(logits)
        codes = keras.layers.Reshape((-1, 4), dtype="float32", name="flat_codes")(codes)
        return keras.Model(inputs, [logits, codes], name="rpn_head")

    def box_head(
        self, num_classes: int, size: int = 7, convs: int = 0, units: Sequence[int] = (1024, 1024)
    ) -> keras.Model:
        """From boxes' maps to logits, the background's first, and the codes of each class.

        Shapes:
            (R, size, size, filters) -> (R, 1 + num_classes), (R, 4 * num_classes).
        """
        inputs = x = keras.Input((size, size, self.filters), name="map")
        for i in range(1, convs + 1):
            x = self._conv(f"conv{i}", 3, "relu")(x)
        x = keras.layers.Flatten(dtype=self.dtype, name="flatten")(x)
        for i, width in enumerate(units, 1):
            x = keras.layers.Dense(width, "relu", dtype=self.dtype, name=f"dense{i}")(x)
        heads = []
        for name, width, deviation in (
            ("logits", 1 + num_classes, 0.01),
            ("codes", 4 * num_classes, 0.001),
        ):
            head = keras.layers.Dense(
                width, kernel_initializer=_normal(deviation), dtype="float32", name=name
            )
            heads.append(head(x))
        return keras.Model(inputs, heads, name="box_head")

    def mask_head(self, num_classes: int, size: int = 14, convs: int = 4) -> keras.Model:
        """From boxes' maps to the logits of a mask of each class, twice the size.

        Shapes:
            (R, size, size, filters) -> (R, 2 * size, 2 * size, num_classes).
        """
        inputs = x = keras.Input((size, size, self.filters), name="map")
        for i in range(1, convs + 1):
            x = self._conv(f"conv{i}", 3, "relu")(x)
        x = keras.layers.Conv2DTranspose(
            self.filters,
            2,
            2,
            activation="relu",
            kernel_initializer="he_normal",
            dtype=self.dtype,
            name="upsample",
        )(x)
        x = self._plain("logits", num_classes, 1, None, None, "float32")(x)
        return keras.Model(inputs, x, name="mask_head")

    def _conv(self, name, kernel_size, activation):
        if self.normalized:
            return ConvNormAct(
                self.filters,
                kernel_size,
                activation=activation,
                momentum=self.momentum,
                synchronized=self.synchronized,
                dtype=self.dtype,
                name=name,
            )
        return self._plain(name, self.filters, kernel_size, activation)

    def _plain(self, name, filters, kernel_size, activation, deviation=None, dtype=None):
        return ConvBiasAct(
            filters,
            kernel_size,
            activation=activation,
            kernel_initializer="he_normal" if deviation is None else _normal(deviation),
            dtype=dtype or self.dtype,
            name=name,
        )


def _normal(deviation):
    return keras.initializers.RandomNormal(stddev=deviation)
