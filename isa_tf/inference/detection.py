"""From uint8 images to detections in them: what surrounds a detector in inference."""

import dataclasses

import keras
import tensorflow as tf

from isa_tf import ops
from isa_tf.data.instance_pipeline import resized_size, resized_size_of
from isa_tf.hints import Array, Length
from isa_tf.inference.protocol import ProtocolBase


@dataclasses.dataclass(frozen=True)
class DetectionProtocol(ProtocolBase):
    """How a detector is shown an image: resized, keeping its proportions, and padded.

    The sides are multiplied by min(short_side / shorter, long_side / longer) and rounded down; the
    image is resized bilinearly, without antialiasing, and padded at its bottom and right.

    Args:
        short_side: int, pixels that the shorter side gets, unless the longer would be too long.
            Defaults to 800.
        long_side: int, pixels that the longer side has at most. Defaults to 1333.
        size_divisor: int, a multiple of which both sides are padded to. Defaults to 32.

    Raises:
        ValueError: for anything but ints above 0.

    Source: `torchvision.models.detection.transform.GeneralizedRCNNTransform`.

    Example:

    >>> protocol = DetectionProtocol()
    >>> protocol.resized(480, 640), protocol.resized(400, 1000)
    ((800, 1066), (533, 1333))
    >>> DetectionProtocol.from_dict(protocol.to_dict()) == protocol
    True
    """

    short_side: int = 800
    long_side: int = 1333
    size_divisor: int = 32

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an int above 0, got {value!r}")

    def resized(self, height: Length, width: Length) -> tuple[Length, Length]:
        """The size, (height, width), that an image is resized to: ints of ints, else tensors.

        Both are at least 1 pixel, however thin the image.
        """
        limits = self.short_side, self.long_side
        if isinstance(height, int) and isinstance(width, int):
            return resized_size_of((height, width), *limits)
        return tuple(tf.unstack(resized_size(tf.stack([height, width]), *limits)))

    def fit(self, images: Array) -> tuple[tf.Tensor, tuple[Length, Length]]:
        """Images as a detector is shown them.

        Args:
            images: tensor (B, h, w, 3), RGB 0..255, of any dtype.

        Returns:
            (image, size): float32 (B, H, W, 3), padded by zeros, and the ints or tensors (height,
            width) of what is not padding.

        Example:

        >>> image, size = DetectionProtocol(40, 60, 32).fit(np.zeros((1, 20, 25, 3), "uint8"))
        >>> image.shape.as_list(), size
        ([1, 64, 64, 3], (40, 50))
        """
        size = self.resized(*sizes(images))
        resized = tf.image.resize(tf.cast(images, tf.float32), size, "bilinear")
        # Not -side % size_divisor: remainders in ONNX have the sign of what is divided.
        divisor = self.size_divisor
        below, right = ((side + divisor - 1) // divisor * divisor - side for side in size)
        return tf.pad(resized, [(0, 0), (0, below), (0, right), (0, 0)]), size


def sizes(images: Array) -> tuple[Length, Length]:
    """(height, width) of images (B, h, w, ...): ints where they are known, else tensors."""
    images = tf.convert_to_tensor(images)
    return tuple(
        known if known is not None else tf.shape(images)[axis + 1]
        for axis, known in enumerate(images.shape[1:3])
    )


def detect(
    model: keras.Model, images: Array, protocol: DetectionProtocol, least: int = 0
) -> dict[str, tf.Tensor]:
    """Detections in images, in pixels of these images.

    Args:
        model: a detector, such as `isa_tf.models.MaskRCNN`: from a dict of "image", float32
            (B, H, W, 3), and "size", int32 (B, 2), to a dict of "boxes", "scores", "classes",
            "valid" and "masks" of a fixed number of detections, those that are valid first.
        images: uint8 tensor (B, h, w, 3), RGB, of any size.
        protocol: `DetectionProtocol`.
        least: int, how many places there are at least. Defaults to 0.

    Returns:
        dict of tensors, n being the most detections that an image of the batch has, or `least`; of
        images with fewer the rest is zeros:

        * "boxes": float32 (B, n, 4), (x1, y1, x2, y2) in pixels of the image;
        * "classes": int32 (B, n), from 0;
        * "scores": float32 (B, n), falling;
        * "valid": bool (B, n);
        * "masks": bool (B, n, h, w).

    Example:

    >>> found = detect(detector, images, DetectionProtocol(64, 96))
    >>> found["masks"].shape[2:] == images.shape[1:3]
    True
    """
    images = tf.convert_to_tensor(images)
    size = sizes(images)
    image, resized = protocol.fit(images)
    resized = tf.stack(resized)
    found = model(
        {"image": image, "size": tf.tile(resized[None], (tf.shape(images)[0], 1))}, training=False
    )
    found = {name: tf.convert_to_tensor(value) for name, value in found.items()}
    ratio = tf.cast(tf.stack(size), tf.float32) / tf.cast(resized, tf.float32)
    ratio = tf.reverse(ratio, [0])
    boxes = ops.clip_boxes(
        tf.cast(found["boxes"], tf.float32) * tf.concat([ratio, ratio], 0), tf.stack(size)
    )
    valid = found["valid"]
    most = tf.reduce_max(tf.reduce_sum(tf.cast(valid, tf.int32), 1))
    # One is pasted even where there is none, for a loop of no turns has no shape.
    places = tf.maximum(most, max(least, 1))
    pasted = ops.paste_masks(found["masks"][:, :places], boxes[:, :places], size)
    answer = {
        "boxes": tf.where(valid[..., None], boxes, 0),
        "classes": tf.where(valid, tf.cast(found["classes"], tf.int32), 0),
        "scores": tf.where(valid, tf.cast(found["scores"], tf.float32), 0),
        "valid": valid,
        "masks": pasted & valid[:, :places, None, None],
    }
    most = tf.maximum(most, least)
    return {name: value[:, :most] for name, value in answer.items()}
