"""What every builder of a data set is, and what those of segmentation are."""

import collections
import functools
import io
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from isa_tf.data import pictures
from isa_tf.data.base import IGNORE_LABEL, DataError, Dataset
from isa_tf.data.builders.archives import Archive, Files, Member
from isa_tf.data.label_sets import LabelSet
from isa_tf.data.prepared import PreparedDataset
from isa_tf.runtime import processors

_REFUSED = -1  # in a table of ids


class Example(NamedTuple):
    """An image and its label, before they are read.

    Attributes:
        name: str, unlike that of the split's others.
        image: `Member`.
        label: `Member`; or what else `SegmentationBuilder.read_ids` makes a label of; `None` for
            an image without one, all of whose pixels are ignored then.
    """

    name: str
    image: Member
    label: Any


def id_table(
    train_ids: dict[int, int] | Iterable[int], ignored: Collection[int] = ()
) -> np.ndarray:
    """A table from the ids that are stored to those that are trained on.

    Args:
        train_ids: dict of stored id to train id, or a sequence of stored ids in the order of the
            train ids.
        ignored: sequence of stored ids that become 255. Defaults to none.

    Returns:
        int32 array; -1 stands for ids that no label may have.

    Example:

    >>> id_table([7, 8, 11], ignored=[0, 255])[[0, 7, 8, 9]]
    array([255,   0,   1,  -1], dtype=int32)
    """
    if not isinstance(train_ids, dict):
        train_ids = {stored: i for i, stored in enumerate(train_ids)}
    table = np.full(max(*train_ids, *ignored, IGNORE_LABEL) + 1, _REFUSED, np.int32)
    for stored, train_id in train_ids.items():
        table[stored] = train_id
    table[list(ignored)] = IGNORE_LABEL
    return table


def pair(
    images: Sequence[Member],
    labels: Sequence[Member],
    image_name: Callable[[str], str] = lambda stem: stem,
    label_name: Callable[[str], str] = lambda stem: stem,
) -> list[Example]:
    """Images and their labels, by name.

    Args:
        images: list of `Member`.
        labels: list of `Member`.
        image_name: function from the stem of an image's file to the example's name. Defaults to
            the stem.
        label_name: the same for a label's.

    Returns:
        List of `Example`, in the order of the names.

    Raises:
        DataError: for one without the other, naming the first and telling how many there are.

    Example:

    >>> images, labels = [Member(None, "a.jpg")], [Member(None, "a_id.png")]
    >>> [example.name for example in pair(images, labels, label_name=lambda s: s[:-3])]
    ['a']
    """
    image_of = {image_name(member.stem): member for member in images}
    label_of = {label_name(member.stem): member for member in labels}
    for these, those, what in ((image_of, label_of, "label"), (label_of, image_of, "image")):
        if alone := [name for name in these if name not in those]:
            raise DataError(
                these[alone[0]],
                f"it has no {what}, as {len(alone)} of {len(these)} have not: is the archive "
                "incomplete?",
            )
    return [Example(name, image_of[name], label_of[name]) for name in sorted(image_of)]


def listed(
    names: Sequence[str], images: Mapping[str, Member], labels: Mapping[str, Any], files: Files
) -> list[Example]:
    """The examples that a list names.

    Args:
        names: list of str, in the order of the examples.
        images: dict of `Member` by name.
        labels: dict of labels by name.
        files: `Files`, for the error.

    Returns:
        List of `Example`.

    Raises:
        DataError: for a name without an image or a label.

    Example:

    >>> image, label, files = Member(None, "a.jpg"), Member(None, "a.png"), Files(".", ".")
    >>> [example.name for example in listed(["a"], {"a": image}, {"a": label}, files)]
    ['a']
    """
    for name in names:
        for what, those in (("image", images), ("label", labels)):
            if name not in those:
                raise DataError(files.folder, f"there is no {what} of {name}, which is listed")
    return [Example(name, images[name], labels[name]) for name in names]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS's own
    """Prepares a data set once: shards of images as they came, and of what belongs to them.

    What the builders of all tasks share: archives, sizes, threads. A task's is this class with
    `features`, `told` and `maker` filled in, a data set's is that with the attributes below and
    `examples`. Examples keep the order that `examples` gives them.

    Attributes:
        name: str, "isa_tf_" and the data set's.
        dataset: class that reads what was prepared, of its folder.
        labels: `LabelSet`.
        archives: tuple of `Archive`, for the instructions.
        sizes: dict of split to its official number of images.
        description, homepage, citation, licence: str.

    Args:
        check_sizes: bool, whether splits must have their official sizes. Defaults to `True`.
        num_threads: int, that read and encode at once. Defaults to the number of cores.
        use_beam: bool, whether examples are made by Apache Beam. Defaults to `False`.
        progress: function that is called with (split, number of examples made, of all), or `None`.
        **kwargs: of `tfds.core.GeneratorBasedBuilder`: data_dir, config, version, file_format.

    Library: https://www.tensorflow.org/datasets/add_dataset
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The first."}

    dataset: type[Dataset]
    labels: LabelSet
    archives: tuple[Archive, ...] = ()
    sizes: dict[str, int] = {}
    supervised_keys: tuple[str, str] | None = None
    description = homepage = citation = licence = ""

    def __init_subclass__(cls, **kwargs):
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = "\n".join(
            ["manual_dir has these, or what is unpacked of them:"]
            + [f"* {archive.file}, from {archive.source}" for archive in cls.archives]
        )
        super().__init_subclass__(**kwargs)

    def __init__(
        self,
        *,
        check_sizes: bool = True,
        num_threads: int | None = None,
        use_beam: bool = False,
        progress: Callable[[str, int, int], object] | None = None,
        **kwargs: Any,
    ) -> None:
        self.check_sizes, self._use_beam, self._progress = check_sizes, use_beam, progress
        self._num_threads = num_threads or processors()
        self._scratch = self._files = None
        super().__init__(**kwargs)

    @classmethod
    def config_of(cls, manual_dir: Path) -> tfds.core.BuilderConfig | None:
        """The `tfds.core.BuilderConfig` of what lies in a folder; here `None`, for the only one."""
        return None

    def examples(self, files: Files) -> dict[str, list[Any]]:
        """Finds what there is: a dict of split to a list of examples, each with a `name`.

        Args:
            files: `Files` over the folder of the archives.

        Raises:
            DataError: for what is missing.
        """
        raise NotImplementedError

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """The features of an example: a dict of `tfds.features`."""
        raise NotImplementedError

    def told(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """What the metadata have beside names of classes and examples: a dict.

        Args:
            examples: what `examples` gave.
        """
        return {}

    def maker(self, files: Files) -> Callable[[Any], dict[str, Any]]:
        """A function of an example that gives its features; it can be pickled.

        Args:
            files: see `examples`.
        """
        raise NotImplementedError

    # === tensorflow-datasets ===

    def _info(self):
        # (`dataset_info_from_configs` looks for files in a module's package, which may have none.)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.description}\n\nLicence: {self.licence}",
            features=tfds.features.FeaturesDict(self.features()),
            supervised_keys=self.supervised_keys,
            homepage=self.homepage,
            citation=self.citation,
            license=self.licence,
            disable_shuffling=True,  # examples stay in the order that they have in `names`
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, *args, **kwargs):
        # `data_dir` is now a folder that is removed if anything fails, and what a killed process
        # leaves of it is removed by the next.
        with tempfile.TemporaryDirectory(dir=self.data_dir) as self._scratch:
            try:
                super()._download_and_prepare(*args, **kwargs)
            finally:
                if self._files is not None:
                    self._files.close()

    def _split_generators(self, dl_manager):
        self._files = files = Files(dl_manager.manual_dir, self._scratch)
        examples = self.examples(files)
        if empty := [split for split, some in examples.items() if not some]:
            raise DataError(files.folder, f"no images of split {', '.join(empty)} are here")
        if self.check_sizes:
            self._refuse_other_sizes(files, {split: len(some) for split, some in examples.items()})
        self.info.metadata.update(
            class_names=list(self.labels.class_names),
            palette=[list(map(int, color)) for color in self.labels.palette],
            sizes_checked=self.check_sizes,
            names={split: [e.name for e in some] for split, some in examples.items()},
            **self.told(examples),
        )
        make = self.maker(files)
        return {
            split: self._generate_examples(split, make, some) for split, some in examples.items()
        }

    def _generate_examples(self, split, make, examples):
        if self._use_beam:
            beam = tfds.core.lazy_imports.apache_beam
            return (
                beam.Create(list(enumerate(examples)))
                | beam.Reshuffle()
                | beam.MapTuple(lambda key, example: (key, make(example)))
            )
        return self._by_threads(split, make, examples)

    def _by_threads(self, split, make, examples):
        # Pillow and zlib let other threads run.
        with ThreadPoolExecutor(self._num_threads) as pool:
            made, waiting = 0, collections.deque()
            for example in [*examples, *[None] * self._num_threads * 2]:
                if example is not None:
                    waiting.append(pool.submit(make, example))
                if waiting and (example is None or len(waiting) > 2 * self._num_threads):
                    yield made, waiting.popleft().result()
                    made += 1
                    if self._progress:
                        self._progress(split, made, len(examples))

    def _refuse_other_sizes(self, files, found):
        wrong = [
            f"split {split} has {found.get(split, 0)} images, not {size}"
            for split, size in self.sizes.items()
            if found.get(split, 0) != size
        ]
        if wrong:
            raise DataError(
                files.folder,
                f"{'; '.join(wrong)}: is an archive incomplete? (Part of a data set is prepared "
                "with check_sizes=False.)",
            )


class SegmentationBuilder(Builder, skip_registration=True):
    """Prepares a data set of segmentation: images as they came and labels as PNGs of train ids.

    A data set is this class with the attributes below, those of `Builder` and `examples` filled in,
    which gives lists of `Example`. Examples have features `image`, `label` (255 is ignored),
    `name`; `upright` (whether the label is of the image turned as its EXIF orientation says) and
    `plain` (whether TensorFlow decodes the image to the pixels that Pillow does).
    `isa_tf.data.PreparedDataset` reads what was prepared.

    Attributes:
        train_ids: array, of `id_table`.
        flip_pairs: pairs of classes that change places in a mirror.
        labels_upright: bool, whether a label that fits an image both as it is stored and as its
            EXIF orientation turns it is of the latter.
        submission_ids: of each class the id that the benchmark's server reads; `None` for those
            that it is trained by.
        submission_palette: of an id in such a file the colour, for a palette PNG; `None` for grey.

    Args:
        **kwargs: see `Builder`.

    Raises:
        DataError: while preparing, naming what is missing, damaged or has an id out of the table.

    Example:

    >>> builder = isa_tf.data.builder("voc2012")(data_dir="prepared")
    >>> builder.info.features["label"].shape
    (None, None, 1)
    """

    dataset = PreparedDataset
    supervised_keys = ("image", "label")
    train_ids: np.ndarray
    flip_pairs: tuple[tuple[int, int], ...] = ()
    labels_upright = False
    submission_ids: tuple[int, ...] | None = None
    submission_palette: tuple[tuple[int, ...], ...] | None = None

    @staticmethod
    def read_ids(files: Files, label: Any) -> np.ndarray:
        """The stored ids of a label, an int array (H, W); here of a `Member`, a PNG.

        Args:
            files: `Files`.
            label: of an `Example`.

        Raises:
            DataError: for what cannot be read.
        """
        return pictures.read_ids(label, files.read(label))

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        names = list(self.labels.class_names) if hasattr(self, "labels") else None
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.LabeledImage(labels=names, shape=(None, None, 1)),
            "name": tfds.features.Text(),
            "upright": tfds.features.Scalar(np.bool_),
            "plain": tfds.features.Scalar(np.bool_),
        }

    def told(self, examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
        return {
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "submission_ids": self.submission_ids and list(self.submission_ids),
            "submission_palette": self.submission_palette
            and list(map(list, self.submission_palette)),
        }

    def maker(self, files: Files) -> Callable[[Example], dict[str, Any]]:
        return functools.partial(_make, files, self.read_ids, self.train_ids, self.labels_upright)


def _make(files, read_ids, table, labels_upright, example):
    """The features of an example."""
    image = files.read(example.image)
    look = pictures.look_at_image(example.image, image)
    if example.label is None:
        ids = np.full(look.stored, IGNORE_LABEL, np.uint8)
    else:
        ids = _train_ids(example, read_ids(files, example.label), table)
    if ids.shape not in (look.stored, look.upright):
        raise DataError(
            _label_place(example),
            f"the label is {ids.shape[1]}x{ids.shape[0]} and the image {example.image} "
            f"{look.stored[1]}x{look.stored[0]} (width x height)",
        )
    # Publishers label what is stored, whatever EXIF says of it: most tools do not ask. (Of a PNG
    # `look` may not know yet.)
    upright = ids.shape == look.upright if labels_upright else ids.shape != look.stored
    encoded = io.BytesIO()
    Image.fromarray(ids).save(encoded, "PNG")
    return {
        "image": image,
        "label": encoded.getvalue(),
        "name": example.name,
        "upright": upright,
        "plain": look.plain and not (upright and look.turned),
    }


def _label_place(example):
    return example.label if isinstance(example.label, Member) else example.image


def _train_ids(example, stored, table):
    stored = np.asarray(stored, np.int64)
    outside = (stored < 0) | (stored >= len(table))
    ids = table[np.where(outside, 0, stored)]
    refused = outside | (ids == _REFUSED)
    if refused.any():
        raise DataError(
            _label_place(example),
            f"label value {pictures.shown_values(stored[refused])} in {int(refused.sum())} "
            "pixels, which this data set does not have",
        )
    return ids.astype(np.uint8)
