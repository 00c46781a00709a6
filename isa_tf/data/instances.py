"""What every dataset of instances is: images, with boxes, masks and classes of what is there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from isa_tf.data.base import Dataset, GraphReader, voc_palette
from isa_tf.hints import Colors


class Annotations(NamedTuple):
    """The instances of an image, in the order of the annotations.

    Attributes:
        boxes: float32 (n, 4), (x1, y1, x2, y2) in pixels of the image; as they were given, so that
            they may reach a little outside of it.
        classes: int32 (n,), 0 to the number of classes - 1.
        crowd: bool (n,), True for a region with many instances that are not told apart.
        masks: list of n dicts, run lengths as pycocotools has them: "size", the image's height and
            width, and "counts", bytes.
        ids: int64 (n,), of the annotations.
        areas: float32 (n,), in pixels, as they were given.

    Example:

    >>> data = isa_tf.data.SyntheticInstances(num_examples={"train": 4})
    >>> image, annotations = data.read("train", 0)
    >>> annotations.boxes.shape == (len(annotations.classes), 4)
    True
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    masks: list[dict[str, Any]]
    ids: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(
        cls,
        entries: Sequence[Mapping[str, Any]],
        masks: Sequence[dict[str, Any]],
        class_ids: Mapping[int, int],
    ) -> Self:
        """Of annotations as COCO's json has them.

        Args:
            entries: list of dicts of "bbox", "category_id", "iscrowd", "id" and "area".
            masks: list of run lengths, one an entry.
            class_ids: dict of category id to class id, see `InstanceDataset.class_ids`.
        """
        boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return cls(
            boxes.astype(np.float32),
            np.array([class_ids[entry["category_id"]] for entry in entries], np.int32),
            np.array([entry["iscrowd"] for entry in entries], bool),
            list(masks),
            np.array([entry["id"] for entry in entries], np.int64),
            np.array([entry["area"] for entry in entries], np.float32),
        )


class InstanceDataset(Dataset):
    """Images with instances, each of which has a box, a mask and a class, in named splits.

    A dataset is this class with `examples` and `read` filled in. What can tell more without
    decoding an image overrides `annotations`, `size_of`, `sizes` and `ground_truth`, and
    `image_reader` where TensorFlow can decode.

    Args:
        name: see `isa_tf.data.base.Dataset`.
        class_names: see there; background is none of them.
        splits: see there.
        palette: see there. Defaults to the PASCAL VOC colour map, without its black.
        category_ids: sequence of int, the ids that the data set itself gives to the classes, such
            as COCO's 1 to 90; results are written with them. Defaults to 1 to the number of
            classes.
        on_error: see there. Defaults to "raise".

    Shapes:
        `read` gives an image (H, W, 3), uint8, and `Annotations`.

    Raises:
        ValueError: for no classes, a palette of another length, `category_ids` that are not as
            many or not all different, or an unknown `on_error`.

    Example:

    >>> data = isa_tf.data.SyntheticInstances(num_examples={"train": 4, "val": 2})
    >>> data.splits, data.size("train"), data.class_names
    (('train', 'val'), 4, ('disc', 'square', 'triangle', 'ring'))
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        splits: Sequence[str],
        palette: Colors | None = None,
        category_ids: Sequence[int] | None = None,
        on_error: str = "raise",
    ) -> None:
        class_names = tuple(class_names)
        if not class_names:
            raise ValueError("class_names must be at least one, got none")
        palette = palette or voc_palette(len(class_names) + 1)[1:]
        super().__init__(name, class_names, splits, palette, on_error)
        given = range(1, len(class_names) + 1) if category_ids is None else category_ids
        self.category_ids = tuple(int(i) for i in given)
        if len({*self.category_ids}) != len(class_names):
            raise ValueError(
                f"category_ids must be one a class, no id twice, got {category_ids!r} for "
                f"{len(class_names)} classes"
            )

    @property
    def class_ids(self) -> dict[int, int]:
        """Dict of category id to class id."""
        return {category: i for i, category in enumerate(self.category_ids)}

    def read(self, split: str, index: int) -> tuple[np.ndarray, Annotations]:
        """Image (H, W, 3), uint8, and `Annotations`. Raises `DataError` for a bad file."""
        raise NotImplementedError

    def image_id(self, split: str, index: int) -> int:
        """int, what the data set calls an image; here its position and 1."""
        self._check_split(split)
        return int(index) + 1

    def annotations(self, split: str, index: int) -> Annotations:
        """`Annotations` of an image; here by reading it."""
        return self.read(split, index)[1]

    def size_of(self, split: str, index: int) -> tuple[int, ...]:
        """(height, width) of an image; here by reading it."""
        return self.read(split, index)[0].shape[:2]

    def image_reader(self, split: str) -> GraphReader | None:
        """A `GraphReader` of images alone, without labels, or `None` where there is `read` alone.

        Its `read` gives an image (H, W, 3), uint8.
        """
        return None

    def sizes(self, split: str) -> np.ndarray | None:
        """(height, width) of all images, ints (n, 2); `None` where one would have to read them."""
        return None

    def orientations(self, split: str) -> np.ndarray | None:
        """Bool array, which images stand, being higher than wide; `None` where nobody knows.

        Where it is told, training puts images into a batch that all stand or all lie.
        """
        sizes = self.sizes(split)
        return None if sizes is None else sizes[:, 0] > sizes[:, 1]

    def ground_truth(self, split: str) -> dict[str, list[dict[str, Any]]]:
        """What a split has, as COCO's json of instances: a dict of lists.

        Returns:
            dict of "images", "annotations", whose "segmentation" are run lengths, and "categories".
            Annotations have the dataset's `category_ids`; faulty ones that were left out are not
            there.
        """
        images, entries = [], []
        for index, name in enumerate(self.examples(split)):
            image_id, size = self.image_id(split, index), self.size_of(split, index)
            images.append(image_entry(image_id, name, size))
            found = self.annotations(split, index)
            for n, (x1, y1, x2, y2) in enumerate(found.boxes.astype(float).tolist()):
                entries.append(
                    {
                        "id": int(found.ids[n]),
                        "image_id": image_id,
                        "category_id": self.category_ids[found.classes[n]],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(found.areas[n]),
                        "iscrowd": int(found.crowd[n]),
                        "segmentation": found.masks[n],
                    }
                )
        return self._ground_truth(images, entries)

    def _ground_truth(self, images, entries):
        categories = [
            {"id": i, "name": name}
            for i, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": entries, "categories": categories}


def image_entry(image_id: int, name: str, size: Sequence[int]) -> dict[str, Any]:
    """An image as COCO's json has it.

    >>> image_entry(9, "a.jpg", (2, 3))
    {'id': 9, 'file_name': 'a.jpg', 'height': 2, 'width': 3}
    """
    height, width = map(int, size)
    return {"id": image_id, "file_name": name, "height": height, "width": width}
