"""The battery of a data set, of labels or of instances."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from isa_tf.data import (
    Annotations,
    InstanceDataset,
    SegmentationDataset,
    eval_pipeline,
    instance_train_pipeline,
    train_pipeline,
)
from isa_tf.data.base import Dataset
from isa_tf.testing.battery import Battery


class DatasetBattery(Battery):
    """What holds for every data set: names, splits, what `read` gives, order, and the pipelines.

    What `read` gives is looked at for the first examples of each split. A data set whose files may
    be faulty is checked whole by `isa-tf check`.

    Args:
        dataset: `isa_tf.data.SegmentationDataset` or `isa_tf.data.InstanceDataset`.
        examples: int, how many of each split are read. Defaults to 8.

    Example:

    >>> from isa_tf.testing import DatasetBattery
    >>> DatasetBattery(isa_tf.data.SyntheticDataset(num_examples={"train": 4, "val": 2})).run()
    """

    def __init__(self, dataset: Dataset, examples: int = 8) -> None:
        self.dataset: Any = dataset  # of either kind
        self.examples = examples
        self.subject = getattr(dataset, "name", type(dataset).__name__)
        self.finds_instances = isinstance(dataset, InstanceDataset)

    def applies(self, name: str) -> bool:
        of_instances = {"instances", "ground_truth"}
        of_labels = {"labels", "graph_reader", "eval_pipeline"}
        return name not in (of_labels if self.finds_instances else of_instances)

    def _first(self, split):
        return range(min(self.examples, self.dataset.size(split)))

    def _each(self):
        """(split, index, where that is, what `read` gives) of the first examples."""
        for split in self.dataset.splits:
            for index in self._first(split):
                yield split, index, f"{split} {index}", self.dataset.read(split, index)

    def check_names(self) -> None:
        """Classes, colours and splits are told; an unknown split is refused."""
        data = self.dataset
        kinds = SegmentationDataset, InstanceDataset
        kind = type(data).__name__
        self.expect(
            isinstance(data, kinds),
            f"is a {kind}, neither isa_tf.data.SegmentationDataset nor InstanceDataset",
        )
        self.expect(data.splits, "has no splits")
        for what in ("class_names", "splits"):
            names = getattr(data, what)
            are_names = all(isinstance(n, str) and n for n in names)
            self.expect(are_names, f"{what} are not all names: {names!r}")
            self.expect(len({*names}) == len(names), f"one of {what} stands there twice: {names}")
        for color in data.palette:
            is_one = len(color) == 3 and all(0 <= part <= 255 for part in color)
            self.expect(is_one, f"{color} in its palette is no RGB triple of 0..255")
        for ask in (data.examples, data.size, lambda split: data.read(split, 0)):
            try:
                ask("no such split")
            except ValueError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"{self.subject}: an unknown split raises {error!r}, no ValueError"
                ) from error
            self.expect(False, "an unknown split is not refused (ValueError)")

    def check_examples(self) -> None:
        """Each example of a split has a name of its own."""
        for split in self.dataset.splits:
            names = self.dataset.examples(split)
            self.expect(isinstance(names, tuple), f"{split}: examples are no tuple")
            self.expect(names, f"{split}: there are no examples")
            self.expect(all(isinstance(n, str) for n in names), f"{split}: a name is no str")
            self.expect(len({*names}) == len(names), f"{split}: a name stands there twice")
            size = self.dataset.size(split)
            self.expect(size == len(names), f"{split}: size tells {size}, examples {len(names)}")
            self.expect(names == self.dataset.examples(split), f"{split}: names change")

    def check_images(self) -> None:
        """Images are uint8 (H, W, 3)."""
        for _, _, where, (image, _) in self._each():
            self._check_image(image, where)

    def _check_image(self, image, where):
        is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
        self.expect(is_array, f"{where}: the image is no array of uint8, but {_kind(image)}")
        is_map = image.ndim == 3 and image.shape[2] == 3 and image.size
        self.expect(is_map, f"{where}: the image is {image.shape}, not (H, W, 3)")

    def check_labels(self) -> None:
        """Labels are uint8 class ids of the image's size, or 255."""
        data = self.dataset
        for _, _, where, (image, label) in self._each():
            is_array = isinstance(label, np.ndarray) and label.dtype == np.uint8
            self.expect(is_array, f"{where}: the label is no array of uint8, but {_kind(label)}")
            self.expect(
                label.shape == image.shape[:2],
                f"{where}: the label is {label.shape}, the image {image.shape[:2]}",
            )
            ids = np.unique(label)
            wrong = ids[(ids >= data.num_classes) & (ids != data.ignore_label)]
            self.expect(
                not len(wrong),
                f"{where}: the label has {', '.join(map(str, wrong))}; classes are 0 to "
                f"{data.num_classes - 1}, and {data.ignore_label} is ignored",
            )

    def check_order(self) -> None:
        """An example is the same whenever and in whichever thread it is read."""
        for split in self.dataset.splits:
            places = list(self._first(split))
            expected = [self.dataset.read(split, index) for index in places]
            with ThreadPoolExecutor(4) as pool:
                again = pool.map(self.dataset.read, [split] * len(places), reversed(places))
                for index, found in zip(reversed(places), again, strict=True):
                    same = _same(found, expected[index])
                    self.expect(same, f"{split} {index}: is another when it is read again")

    def check_graph_reader(self) -> None:
        """What TensorFlow's operations read is what `read` does."""
        import tensorflow as tf

        for split in self.dataset.splits:
            reader = self.dataset.graph_reader(split)
            if reader is None:
                continue
            size, able = self.dataset.size(split), reader.able
            told = able is None or len(able) == size
            self.expect(told, f"{split}: its graph reader tells of {able} of {size} examples")
            for index in self._first(split):
                if able is not None and not able[index]:
                    continue
                found = tuple(
                    np.asarray(part) for part in reader.read(tf.constant(index, tf.int64))
                )
                same = _same(found, self.dataset.read(split, index))
                self.expect(same, f"{split} {index}: its graph reader gives other pixels than read")

    def check_instances(self) -> None:
        """Boxes, classes, crowds, masks, ids and areas are one an instance, of the image's size."""
        data, fields = self.dataset, Annotations._fields
        for split, index, where, (image, found) in self._each():
            is_one = isinstance(found, Annotations)
            self.expect(is_one, f"{where}: read gives {_kind(found)}, no Annotations")
            count = len(found.classes)
            for name in fields:
                part = getattr(found, name)
                self.expect(len(part) == count, f"{where}: {len(part)} {name}, {count} classes")
            self.expect(found.boxes.shape == (count, 4), f"{where}: boxes are {found.boxes.shape}")
            known = np.all((found.classes >= 0) & (found.classes < data.num_classes))
            self.expect(known, f"{where}: classes {found.classes.tolist()} of {data.num_classes}")
            ordered = np.all(found.boxes[:, 2:] >= found.boxes[:, :2])
            self.expect(ordered, f"{where}: a box ends before it begins, (x1, y1, x2, y2)")
            size = image.shape[:2]
            for lengths in found.masks:
                of = tuple(lengths["size"])
                self.expect(of == size, f"{where}: a mask of {of} in an image of {size}")
            for ask, expected in (("size_of", size), ("annotations", found)):
                same = _same(getattr(data, ask)(split, index), expected)
                self.expect(same, f"{where}: {ask} tells otherwise than read")

    def check_ground_truth(self) -> None:
        """What is told in COCO's form is what was read, with ids that nothing else has."""
        data = self.dataset
        for split in data.splits:
            truth = data.ground_truth(split)
            images = {entry["id"]: entry for entry in truth["images"]}
            self.expect(
                len(images) == data.size(split), f"{split}: {len(images)} ids of images differ"
            )
            ids = [entry["id"] for entry in truth["annotations"]]
            self.expect(len({*ids}) == len(ids), f"{split}: instances have the same id")
            categories = [entry["id"] for entry in truth["categories"]]
            self.expect(
                tuple(categories) == data.category_ids, f"{split}: other categories {categories}"
            )
            lost = [e["id"] for e in truth["annotations"] if e["category_id"] not in categories]
            self.expect(not lost, f"{split}: instances {lost} are of no category")

    def check_train_pipeline(self) -> None:
        """Batches of the first split, of one size, come out of the training pipeline."""
        split = self.dataset.splits[0]
        if self.finds_instances:
            sides: dict[str, Any] = {"short_side": 64, "long_side": 96, "mask_size": 8}
            batch = next(iter(instance_train_pipeline(self.dataset, split, 2, **sides)))
            count = batch[0]["image"].shape[0] if isinstance(batch[0], dict) else len(batch[0])
            self.expect(count == 2, f"{split}: a batch of {count} where 2 were asked for")
            return
        image, label = next(iter(train_pipeline(self.dataset, split, 2, 32)))
        shapes = tuple(image.shape), tuple(label.shape)
        self.expect(shapes == ((2, 32, 32, 3), (2, 32, 32)), f"{split}: batches of {shapes}")

    def check_eval_pipeline(self) -> None:
        """Every example of the last split comes once, whole, as it was read."""
        split = self.dataset.splits[-1]
        batches = eval_pipeline(self.dataset, split, with_index=True)
        seen = []
        for batch in batches.take(len(self._first(split))):
            index = int(batch["index"][0])
            seen.append(index)
            found = np.asarray(batch["image"][0]), np.asarray(batch["label"][0])
            same = _same(found, self.dataset.read(split, index))
            self.expect(same, f"{split} {index}: the pipeline gives other pixels than read")
        expected = list(self._first(split))
        self.expect(seen == expected, f"{split}: the pipeline gives {seen} for {expected}")


def _same(found, expected):
    """Whether nested tuples and lists hold the same arrays."""
    if isinstance(expected, (tuple, list)):
        return len(found) == len(expected) and all(map(_same, found, expected))
    return np.array_equal(found, expected)


def _kind(value):
    """What something is, for people."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return f"a {type(value).__name__}"
