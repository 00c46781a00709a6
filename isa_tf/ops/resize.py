"""Bilinear resizing, by the three conventions in use."""

from collections.abc import Sequence

import tensorflow as tf

# How an output position x reads the input at scale s = input / output: at (x + 0.5) s - 0.5, which
# is what `tf.image.resize` and PyTorch's align_corners=False do; from corner to corner,
# align_corners=True; or at x s, Paddle's align_mode=1.
COORDINATES = ("half_pixel", "align_corners", "asymmetric")


def check_coordinates(coordinates: str) -> None:
    """Raises ValueError unless `coordinates` is one of `COORDINATES`."""
    if coordinates not in COORDINATES:
        known = ", ".join(COORDINATES)
        raise ValueError(f"coordinates must be one of {known}, got {coordinates!r}")


def resize_bilinear(
    x: tf.Tensor, size: Sequence[int] | tf.Tensor, coordinates: str = "half_pixel"
) -> tf.Tensor:
    """Resizes maps bilinearly; nothing is smoothed before it shrinks.

    Args:
        x: tensor (B, h, w, C).
        size: (height, width), ints or a tensor.
        coordinates: where an output position lies in the input, in ONNX's terms: "half_pixel",
            "align_corners" or "asymmetric". Defaults to "half_pixel".

    Returns:
        float32 tensor (B, height, width, C).

    Raises:
        ValueError: for unknown coordinates.

    Example:

    >>> x = tf.reshape([0.0, 1.0], (1, 1, 2, 1))
    >>> resize_bilinear(x, (1, 3), "align_corners")[0, 0, :, 0].numpy()
    array([0. , 0.5, 1. ], dtype=float32)
    """
    check_coordinates(coordinates)
    if x.dtype in (tf.bfloat16, tf.float16):
        # The numbers are the same; but XLA's gradient of the operation is float32 for any image,
        # and a program with such a one is no valid StableHLO.
        x = tf.cast(x, tf.float32)
    return tf.raw_ops.ResizeBilinear(
        images=x,
        size=size,
        align_corners=coordinates == "align_corners",
        half_pixel_centers=coordinates == "half_pixel",
    )
