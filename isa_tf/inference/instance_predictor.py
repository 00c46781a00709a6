"""From images to the instances in them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, overload

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from isa_tf.hints import Array
from isa_tf.inference.contract import seen_size
from isa_tf.inference.detection import DetectionProtocol
from isa_tf.inference.instances import InstanceContract, Instances
from isa_tf.inference.predictor import checked_images, predictors, resize_pictures


@predictors.register("instance_segmentation")
class InstancePredictor:
    """From images to the instances in them.

    `isa_tf.load_predictor` makes one of a file, `InstancePredictor.from_model` of a Keras model.

    Args:
        run: function from images, uint8 (B, H, W, 3), to what `isa_tf.inference.detect` gives.
        contract: `InstanceContract`, of whose facts the predictor has attributes: `num_classes`,
            `class_names`, `palette`, `category_ids`, `protocol`, `image_size` and `image_sizes`,
            these `None` for any. Images of another size than fixed ones are resized to the nearest,
            bilinearly, and what is found in them is resized back, masks to the nearest pixel.

    Shapes:
        images, uint8, RGB: one image (H, W, 3) -> `Instances`; a batch (B, H, W, 3), or a list of
        images of any sizes -> a list of them. Each has what is valid alone, n detections:
        boxes (n, 4), classes (n,), scores (n,) and masks (n, H, W), n = 0 where nothing is found.

    Raises:
        ValueError: from a call, for anything but such images.

    Example:

    >>> predictor = InstancePredictor.from_model(detector)
    >>> found = predictor(image)
    >>> found.boxes.shape == (len(found.scores), 4) and found.masks.shape[1:] == image.shape[:2]
    True
    >>> [part.masks.shape[1:] for part in predictor([image, image[:48]])]
    [(96, 128), (48, 128)]
    """

    task = InstanceContract.task

    def __init__(
        self,
        run: Callable[[np.ndarray], Mapping[str, Array]],
        contract: InstanceContract,
    ) -> None:
        self._run = run
        self.num_classes = contract.num_classes
        self.class_names = contract.class_names
        self.palette = contract.palette
        self.category_ids = contract.category_ids
        self.protocol = contract.protocol
        self.image_size = contract.fixed_size
        self.image_sizes = contract.image_sizes or (self.image_size and (self.image_size,))

    @classmethod
    def from_run(
        cls, run: Callable[[np.ndarray], Sequence[Array]], contract: InstanceContract
    ) -> Self:
        """A predictor over what an exported model with this contract answers, as a tuple."""
        return cls(lambda images: dict(zip(contract.outputs, run(images), strict=True)), contract)

    @classmethod
    def from_model(
        cls, model: keras.Model, protocol: DetectionProtocol | Mapping[str, Any] | None = None
    ) -> Self:
        """A predictor over a Keras model that finds instances, such as `isa_tf.models.MaskRCNN`.

        It uses the weights that the model has at each call, so it can follow a training. The model
        is traced once for images of all sizes.

        Args:
            model: `keras.Model`, see `isa_tf.inference.detect`.
            protocol: `DetectionProtocol`, or a mapping of its arguments; `None` for
                `model.protocol`, or the defaults where it has none. Defaults to `None`.

        Example:

        >>> predictor = InstancePredictor.from_model(detector, DetectionProtocol(400, 640))
        >>> predictor.protocol.short_side
        400
        """
        contract = InstanceContract.of(model)
        if protocol is not None:
            contract = contract.with_protocol(DetectionProtocol.of(protocol))

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
        def run(images):
            return contract.run(model, images)

        return cls(run, contract)

    @overload
    def __call__(self, images: np.ndarray) -> Any: ...  # `Instances` of one, a list of several

    @overload
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]: ...

    def __call__(self, images: Any) -> Any:
        if isinstance(images, (list, tuple)):
            return [self(image) for image in images]
        images = checked_images(images)
        if images.ndim == 3:
            return self(images[None])[0]
        size = images.shape[1:3]
        seen = seen_size(size, self.image_sizes)
        resized = seen != size
        if resized:
            images = resize_pictures(images, seen, Image.Resampling.BILINEAR)
        found = {name: np.asarray(value) for name, value in self._run(images).items()}
        each = [
            Instances(*(found[name][i][valid] for name in Instances._fields))
            for i, valid in enumerate(found["valid"].astype(bool))
        ]
        return [_of_size(part, seen, size) for part in each] if resized else each


def _of_size(instances, old, new):
    """Instances in an image of size `old`, in the same image resized to `new`."""
    ratio = np.float32([new[1] / old[1], new[0] / old[0]] * 2)
    masks = np.zeros((len(instances.masks), *new), bool)
    if len(masks):
        grey = instances.masks.astype(np.uint8)
        masks = resize_pictures(grey, new, Image.Resampling.NEAREST).astype(bool)
    return instances._replace(boxes=instances.boxes * ratio, masks=masks)
