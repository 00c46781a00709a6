"""What a detector of boxes is made of beside convolutions; nothing here has weights.

A box is (x1, y1, x2, y2) in pixels of the image that the network reads. What is fewer than the
fixed number is filled up with zeros, and a bool says what counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Shape
from isa_tf.layers.twin import TwinOptions

ANCHORS = ("torchvision", "detectron")
# What the detectors in use leave out, in pixels.
_LEAST_PROPOSAL, _LEAST_DETECTION = 1e-3, 1e-2
# Of which a suppression makes detections: far more than reach a threshold in a trained network.
_MOST_CANDIDATES = 4096


@keras.saving.register_keras_serializable("isa_tf")
class FillPadding(keras.layers.Layer):
    """Gives what lies outside of the images in a padded batch one colour.

    With the colour that a backbone takes from images, padding becomes zeros behind that, whatever
    it was.

    Args:
        color: three floats, RGB. Defaults to black.

    Call arguments:
        inputs: list of images (B, H, W, 3) and their sizes (B, 2), heights and widths in pixels.

    Shapes:
        [(B, H, W, 3), (B, 2)] -> (B, H, W, 3), float32.

    Example:

    >>> image = np.ones((1, 2, 3, 3), "float32")
    >>> FillPadding()([image, np.array([[2, 1]])])[0, :, :, 0].numpy()
    array([[1., 0., 0.],
           [1., 0., 0.]], dtype=float32)
    """

    def __init__(self, color: Sequence[float] = (0.0, 0.0, 0.0), **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.color = tuple(map(float, color))

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        image, size = inputs
        size = tf.cast(size, tf.int32)
        height, width = ops.spatial_size(image)
        rows = tf.range(height)[None] < size[:, :1]
        columns = tf.range(width)[None] < size[:, 1:]
        inside = rows[:, :, None, None] & columns[:, None, :, None]
        return tf.where(inside, image, tf.constant(self.color, image.dtype))

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "color": self.color}


@keras.saving.register_keras_serializable("isa_tf")
class AddUpsampled(keras.layers.Layer):
    """Adds a coarser map to a finer one, each position the nearest of it.

    Call arguments:
        inputs: list of the finer map (B, H, W, C) and the coarser one (B, h, w, C).

    Shapes:
        [(B, H, W, C), (B, h, w, C)] -> (B, H, W, C).

    Paper: Lin et al., "Feature Pyramid Networks for Object Detection", arXiv 1612.03144.

    Example:

    >>> fine, coarse = np.zeros((1, 1, 4, 1), "float32"), np.array([1.0, 2.0]).reshape(1, 1, 2, 1)
    >>> AddUpsampled()([fine, coarse])[0, 0, :, 0].numpy()
    array([1., 1., 2., 2.], dtype=float32)
    """

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        fine, coarse = inputs
        for axis in (1, 2):
            size, own = tf.shape(fine)[axis], tf.shape(coarse)[axis]
            coarse = tf.gather(coarse, tf.range(size) * own // size, axis=axis)
        return fine + coarse

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return input_shape[0]


@keras.saving.register_keras_serializable("isa_tf")
class PyramidAnchors(keras.layers.Layer):
    """The anchors of a pyramid's maps.

    Args:
        sizes: for each map a float or floats, square roots of areas in pixels.
        aspect_ratios: floats, heights over widths. Defaults to (0.5, 1, 2).
        convention: "torchvision": corners are whole pixels, and positions stand image size // map
            size apart; or "detectron", of Detectron2 and mmdetection: corners are not rounded, and
            positions stand 4 pixels apart, or what `lowest_level` says, and twice as far on each
            following map. The two differ on maps whose stride does not divide the image. Defaults
            to "torchvision".
        lowest_level: int; the first map has stride 2^lowest_level. Defaults to 2.

    Call arguments:
        inputs: list of the images (B, H, W, 3) and the maps (B, h, w, C).

    Shapes:
        [(B, H, W, 3), (B, h, w, C), ...] -> [(h * w * A, 4), ...], float32.

    Raises:
        ValueError: for an unknown convention.

    Example:

    >>> maps = [np.zeros((1, 64 // s, 96 // s, 8), "float32") for s in (4, 8)]
    >>> anchors = PyramidAnchors((32, 64))([np.zeros((1, 64, 96, 3), "float32"), *maps])
    >>> [tuple(a.shape) for a in anchors]
    [(1152, 4), (288, 4)]
    """

    def __init__(
        self,
        sizes: Sequence[float | Sequence[float]],
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        convention: str = "torchvision",
        lowest_level: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        if convention not in ANCHORS:
            raise ValueError(f"convention must be one of {ANCHORS}, got {convention!r}")
        self.sizes = tuple(sizes)
        self.aspect_ratios = tuple(aspect_ratios)
        self.convention = convention
        self.lowest_level = lowest_level

    def call(self, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        image, *maps = inputs
        height, width = ops.spatial_size(image)
        sizes = [ops.spatial_size(m) for m in maps]
        exact = self.convention == "torchvision"
        if exact:
            strides = [(height // h, width // w) for h, w in sizes]
        else:
            strides = [2 ** (self.lowest_level + i) for i in range(len(maps))]
        return ops.pyramid_anchors(sizes, strides, self.sizes, self.aspect_ratios, rounded=exact)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sizes": self.sizes,
            "aspect_ratios": self.aspect_ratios,
            "convention": self.convention,
            "lowest_level": self.lowest_level,
        }


@keras.saving.register_keras_serializable("isa_tf")
class Proposals(keras.layers.Layer):
    """The boxes in which a proposal network sees something, those of the highest scores first.

    Args:
        before: (in training, else) ints, how many of each level are looked at. Defaults to
            (2000, 1000).
        after: (in training, else) ints, how many there are. Defaults to (2000, 1000).
        iou_threshold: float; of boxes of a level that overlap more, one is taken. Defaults to 0.7.

    Call arguments:
        inputs: dict of "logits", a list of (B, K_l); "codes", a list of (B, K_l, 4); "anchors", a
            list of (K_l, 4), of one element a level; and "size" (B, 2), the images' heights and
            widths.
        training: bool.

    Returns:
        (boxes, valid): (B, after, 4) float32 and (B, after) bool. No gradients flow.

    Paper: Ren et al., "Faster R-CNN", arXiv 1506.01497.

    Example:

    >>> anchors = np.array([[0.0, 0, 8, 8], [0, 0, 9, 8], [20, 20, 40, 40]], "float32")
    >>> boxes, valid = Proposals(after=(2, 2))(
    ...     {
    ...         "logits": [np.array([[2.0, 1.0, 0.0]], "float32")],
    ...         "codes": [np.zeros((1, 3, 4), "float32")],
    ...         "anchors": [anchors],
    ...         "size": np.array([[30, 30]]),
    ...     }
    ... )
    >>> boxes[0].numpy()
    array([[ 0.,  0.,  8.,  8.],
           [20., 20., 30., 30.]], dtype=float32)
    """

    def __init__(
        self,
        before: Sequence[int] = (2000, 1000),
        after: Sequence[int] = (2000, 1000),
        iou_threshold: float = 0.7,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.before = tuple(before)
        self.after = tuple(after)
        self.iou_threshold = iou_threshold

    def call(
        self, inputs: Mapping[str, Any], training: bool | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        before, after = self.before[not training], self.after[not training]
        found = []
        levels = zip(inputs["logits"], inputs["codes"], inputs["anchors"], strict=True)
        for level, (logits, codes, anchors) in enumerate(levels):
            scores, indices, valid = best_of(tf.stop_gradient(logits), before)
            codes = tf.gather(tf.stop_gradient(codes), indices, batch_dims=1)
            boxes = ops.decode_boxes(codes, tf.gather(anchors, indices))
            boxes = ops.clip_boxes(boxes, inputs["size"])
            width, height = ops.box_sides(boxes)
            valid &= (width >= _LEAST_PROPOSAL) & (height >= _LEAST_PROPOSAL)
            found.append((boxes, tf.sigmoid(scores), valid, tf.fill(tf.shape(scores), level)))
        boxes, scores, valid, levels = (tf.concat(parts, 1) for parts in zip(*found, strict=True))
        indices, valid = ops.non_max_suppression(
            boxes, scores, after, self.iou_threshold, levels, valid
        )
        boxes = tf.gather(boxes, indices, batch_dims=1)
        return tf.stop_gradient(tf.where(valid[..., None], boxes, 0.0)), valid

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "before": self.before,
            "after": self.after,
            "iou_threshold": self.iou_threshold,
        }


@keras.saving.register_keras_serializable("isa_tf")
class PyramidRoIAlign(keras.layers.Layer):
    """Maps of one size, one for each box, out of a pyramid; see `isa_tf.ops.pyramid_roi_align`.

    Args:
        output_size: int, height and width. Defaults to 7.
        sampling_ratio: int, samples a bin and axis. Defaults to 2.
        aligned: bool, as for `isa_tf.ops.roi_align`. Defaults to `False`.
        lowest_level: int; the first map has stride 2^lowest_level. Defaults to 2.
        jit_compile: bool, whether XLA compiles it, once for every shape. Defaults to `True`.

    Call arguments:
        inputs: list of the boxes (B, K, 4) and the maps (B, H_l, W_l, C).

    Shapes:
        [(B, K, 4), (B, H_l, W_l, C), ...] -> (B * K, output_size, output_size, C).

    Example:

    >>> maps = [np.ones((1, 32, 32, 3), "float32"), np.ones((1, 16, 16, 3), "float32")]
    >>> PyramidRoIAlign(7)([np.array([[[0.0, 0, 9, 9], [4, 4, 90, 90]]], "float32"), *maps]).shape
    TensorShape([2, 7, 7, 3])
    """

    def __init__(
        self,
        output_size: int = 7,
        sampling_ratio: int = 2,
        aligned: bool = False,
        lowest_level: int = 2,
        jit_compile: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.lowest_level = lowest_level
        self.jit_compile = jit_compile

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        boxes, *maps = inputs
        size = (self.output_size, self.output_size)
        y = ops.pyramid_roi_align(
            maps,
            boxes,
            size,
            self.lowest_level,
            self.sampling_ratio,
            self.aligned,
            jit_compile=self.jit_compile,
        )
        return tf.reshape(y, (-1, *y.shape[2:]))

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return (None, self.output_size, self.output_size, input_shape[1][-1])

    def inference_twin(self, options: TwinOptions) -> Self:
        config = {**self.get_config(), "jit_compile": options.jit_compile}
        return type(self).from_config(config)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "output_size": self.output_size,
            "sampling_ratio": self.sampling_ratio,
            "aligned": self.aligned,
            "lowest_level": self.lowest_level,
            "jit_compile": self.jit_compile,
        }


@keras.saving.register_keras_serializable("isa_tf")
class Detections(keras.layers.Layer):
    """What a box head tells of proposals, as detections: one class each, none twice.

    Args:
        max_detections: int, how many an image has at most. Defaults to 100.
        score_threshold: float; what is not above it is nothing. Defaults to 0.05.
        iou_threshold: float; of boxes of a class that overlap more, one is taken. Defaults to 0.5.
        weights: of the boxes' codes, see `isa_tf.ops.decode_boxes`. Defaults to (10, 10, 5, 5).

    Call arguments:
        inputs: dict of "logits" (B * K, 1 + classes), the background's first; "codes"
            (B * K, classes * 4); "proposals" (B, K, 4); "proposals_valid" (B, K); and "size"
            (B, 2).

    Returns:
        dict of "boxes" (B, max_detections, 4), "scores" and "classes" (B, max_detections), float32
        and int32, and "valid", bool; scores fall.

    Example:

    >>> found = Detections(max_detections=2)(
    ...     {
    ...         "logits": np.array([[0.0, 3.0, 0.0]], "float32"),
    ...         "codes": np.zeros((1, 8), "float32"),
    ...         "proposals": np.array([[[2.0, 2, 9, 9]]], "float32"),
    ...         "proposals_valid": np.array([[True]]),
    ...         "size": np.array([[8, 8]]),
    ...     }
    ... )
    >>> found["classes"].numpy(), found["boxes"].numpy()[0, 0], found["scores"].numpy().round(2)
    (array([[0, 0]], dtype=int32), array([2., 2., 8., 8.], dtype=float32), array([[0.91, 0.  ]],
      dtype=float32))
    """

    def __init__(
        self,
        max_detections: int = 100,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.max_detections = max_detections
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.code_weights = tuple(weights)

    def call(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        proposals, seen = inputs["proposals"], inputs["proposals_valid"]
        batch, number = tf.shape(proposals)[0], proposals.shape[1]
        classes = inputs["logits"].shape[-1] - 1
        scores = tf.nn.softmax(inputs["logits"])[:, 1:]
        scores = tf.reshape(scores, (batch, number, classes))
        scores = tf.where(seen[..., None], scores, 0.0)
        scores = tf.reshape(scores, (batch, number * classes))
        scores, indices, _ = best_of(scores, min(_MOST_CANDIDATES, number * classes))
        kinds = indices % classes
        codes = tf.reshape(inputs["codes"], (batch, number * classes, 4))
        boxes = ops.decode_boxes(
            tf.gather(codes, indices, batch_dims=1),
            tf.gather(proposals, indices // classes, batch_dims=1),
            self.code_weights,
        )
        boxes = ops.clip_boxes(boxes, inputs["size"])
        width, height = ops.box_sides(boxes)
        valid = (scores > self.score_threshold) & (width >= _LEAST_DETECTION)
        valid &= height >= _LEAST_DETECTION
        indices, valid = ops.non_max_suppression(
            boxes, scores, self.max_detections, self.iou_threshold, kinds, valid
        )
        boxes, scores, kinds = (tf.gather(x, indices, batch_dims=1) for x in (boxes, scores, kinds))
        return {
            "boxes": tf.where(valid[..., None], boxes, 0.0),
            "scores": tf.where(valid, scores, 0.0),
            "classes": tf.where(valid, kinds, 0),
            "valid": valid,
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_detections": self.max_detections,
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "weights": self.code_weights,
        }


@keras.saving.register_keras_serializable("isa_tf")
class MasksOfClasses(keras.layers.Layer):
    """Of the masks that a head makes for all classes, each detection's own, as probabilities.

    Call arguments:
        inputs: list of logits (B * D, m, m, classes), classes (B, D) and valid (B, D).

    Shapes:
        [(B * D, m, m, classes), (B, D), (B, D)] -> (B, D, m, m), float32; 0 where not valid.

    Example:

    >>> logits = np.zeros((2, 4, 4, 3), "float32")
    >>> classes, valid = np.array([[2, 0]]), np.array([[True, False]])
    >>> MasksOfClasses()([logits, classes, valid])[0, :, 0, 0].numpy()
    array([0.5, 0. ], dtype=float32)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        logits, classes, valid = inputs
        logits = tf.transpose(logits, (0, 3, 1, 2))
        own = tf.gather(logits, tf.reshape(classes, (-1,)), axis=1, batch_dims=1)
        masks = tf.reshape(tf.sigmoid(own), (-1, classes.shape[1], *logits.shape[2:]))
        return tf.where(valid[..., None, None], masks, 0.0)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return (*input_shape[1], *input_shape[0][1:3])


def best_of(scores: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The highest of scores (B, K): (scores, indices, valid), (B, count) each.

    Where there are fewer, what fills up has index 0 and is not valid; of a known K that is less,
    there are K.
    """
    places = tf.shape(scores)[-1]
    if scores.shape[-1] is None:
        lacking = tf.maximum(count - places, 0)
        lowest = scores.dtype.min
        scores = tf.pad(scores, [(0, 0), (0, lacking)], constant_values=lowest)
    scores, indices = tf.math.top_k(scores, min(count, scores.shape[-1] or count))
    valid = indices < places
    return scores, tf.where(valid, indices, 0), valid
