"""A tiny backbone that sees little at a time: for demonstrations of what context adds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from isa_tf.backbones.backbone import Backbone, check_output_stride, image_input, normalize
from isa_tf.hints import DType, StrPath
from isa_tf.layers.conv import ConvNormAct


@keras.saving.register_keras_serializable("isa_tf")
class TinyNet(Backbone):
    """Two or three 3x3 convolutions of stride 2, then one of stride 1.

    Its receptive field is small on purpose (`receptive_field` tells): whatever its features
    know of the rest of the image, a context module has brought there.

    Args:
        widths: three ints, filters of the convolutions; at output stride 8, which has four, the
            last counts twice. Defaults to (16, 24, 32).
        output_stride: int, 4 or 8. Defaults to 4.
        weights: `None` for random ones, or a path to such a backbone's `.weights.h5`. Defaults
            to `None`.
        minimal_filtering: int or `None`, see `ConvNormAct`. Defaults to `None`.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        dtype: name or policy of the layers. Defaults to `None`, the global policy.
        **kwargs: name, trainable, last_level.

    Shapes:
        (B, H, W, 3), RGB 0..255 -> {"c1", "c2"} of strides 2 and 4, "c3" at output stride 8.
        The last of them has `widths[2]` channels.

    Raises:
        ValueError: for other than three widths, an unknown output stride or kind of weights.

    Example:

    >>> backbone = TinyNet(output_stride=8)
    >>> backbone(np.zeros((1, 64, 64, 3), "float32"))["c3"].shape
    TensorShape([1, 8, 8, 32])
    >>> backbone.receptive_field()
    31
    """

    output_strides = (4, 8)

    def __init__(
        self,
        widths: Sequence[int] = (16, 24, 32),
        output_stride: int = 4,
        weights: StrPath | None = None,
        minimal_filtering: int | None = None,
        synchronized: bool = False,
        dtype: DType = None,
        **kwargs: Any,
    ) -> None:
        widths = tuple(widths)
        if len(widths) != 3:
            raise ValueError(f"widths must be three, got {widths}")
        check_output_stride(output_stride, self.output_strides)
        if weights is not None and not str(weights).endswith(".weights.h5"):
            raise ValueError(f"weights must be the path of a .weights.h5 file, got {weights!r}")
        kwargs.setdefault("name", "tiny")

        def conv(name, filters, strides):
            return ConvNormAct(
                filters,
                3,
                strides,
                synchronized=synchronized,
                minimal_filtering=minimal_filtering,
                dtype=dtype,
                name=name,
            )

        # === Layers and functional model ===
        inputs = image_input()
        x = normalize(127.5, 127.5)(inputs)
        maps: dict[str, keras.KerasTensor] = {}
        map_strides: dict[str, int] = {}
        stride = 1
        while stride < output_stride:
            level = len(maps) + 1
            x = conv(f"conv{level}", widths[level - 1], strides=2)(x)
            stride *= 2
            if stride == output_stride:
                x = conv(f"conv{level + 1}", widths[-1], strides=1)(x)
            maps[f"c{level}"], map_strides[f"c{level}"] = x, stride
        super().__init__(inputs, maps, map_strides, dtype=dtype, **kwargs)

        # === Config ===
        self.widths = widths
        self.output_stride = output_stride
        self.minimal_filtering = minimal_filtering
        self.synchronized = synchronized

        if weights is not None:
            self.load_weights(Path(weights))

    def receptive_field(self) -> int:
        """The extent in input pixels (one side) that one position of the last map sees."""
        extent, step = 1, 1
        for layer in self.layers:
            if isinstance(layer, ConvNormAct):
                extent += (layer.kernel_size - 1) * layer.dilation_rate * step
                step *= layer.strides
        return extent

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "widths": self.widths,
            "output_stride": self.output_stride,
            "weights": None,
            "minimal_filtering": self.minimal_filtering,
            "synchronized": self.synchronized,
        }
