"""What every dataset is: names, colours, splits, and `read(split, index)`; reading in pipelines."""

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
import tensorflow as tf
from absl import logging

from isa_tf.files import FileFault
from isa_tf.hints import Colors, StrPath
from isa_tf.names import id_pairs
from isa_tf.runtime import processors

IGNORE_LABEL = 255
# A path, or a file in an archive, which is a `builders.archives.Member`.
AnyFile: TypeAlias = StrPath | tuple[str | None, str]


class DataError(FileFault):
    """A file or folder that cannot be used as it is: carries its `path` and the `reason`.

    Args:
        path: of the file, or what its str names, such as one in an archive.
        reason: str, what is wrong with it.
    """

    @classmethod
    def of_all(cls, faults: Sequence["DataError"], what: str = "such files") -> "DataError":
        """The first of several, which tells how many more there are."""
        first, *others = faults
        more = f" (and {len(others)} more {what})" if others else ""
        return cls(first.path, first.reason + more)


def voc_palette(num_classes: int) -> tuple[tuple[int, ...], ...]:
    """The PASCAL VOC colour map: `num_classes` RGB triples, class 0 black."""
    colors = []
    for index in range(num_classes):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colors.append(tuple(color))
    return tuple(colors)


class GraphReader(NamedTuple):
    """How a split is read by TensorFlow's operations, by many threads at once.

    Python runs one thread at a time, so what `SegmentationDataset.read` does costs a pipeline
    its threads. A reader may be strict: an example at which one of its operations fails is read
    once more, by `SegmentationDataset.read`, whose array or `DataError` counts.

    Attributes:
        read: function of a position in the split, an int64 scalar tensor, that gives the image
            (H, W, 3) and the label (H, W), uint8 tensors, as `SegmentationDataset.read` would.
        able: bool array, one an example, of those that `read` is asked for; `read` of the
            dataset reads the others. Defaults to `None`, for all.
        read_part: function of such a scalar and of a function `place_of`, for where decoding a
            part of an image is cheaper than decoding it. It gives the parts of image and label
            in the window `place_of(label)`, and that: an int32 (2, 2) tensor of the window's
            first row and column and of its height and width, of which `on_image` tells what
            lies on the image. Defaults to `None`, for `read` and cutting.

    Example:

    >>> images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.zeros((4, 32, 32), np.uint8)
    >>> reader = isa_tf.data.GraphReader(lambda index: (images[index], labels[index]))
    """

    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    able: np.ndarray | None = None
    read_part: Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]] | None = None


class Dataset:
    """What the datasets of all tasks share: classes, splits, and what becomes of faults.

    What pipelines with `cache=True` have decoded is kept here, once for all of them, as long as
    the dataset is.

    Args:
        name: str, shown in logs and tables.
        class_names: sequence of str; class ids are positions in it.
        splits: sequence of str, such as `("train", "val")`.
        palette: sequence of RGB triples, one a class.
        on_error: "raise" or "skip": what pipelines do about an example that `read` raises
            `DataError` for. "skip" leaves it out and logs a warning, once a file. Defaults to
            "raise".

    Raises:
        ValueError: for a palette of another length, two classes of one name, by which scores are
            told, or an unknown `on_error`.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        splits: Sequence[str],
        palette: Colors,
        on_error: str = "raise",
    ) -> None:
        self.class_names = tuple(class_names)
        self.palette: tuple[tuple[int, ...], ...] = tuple(map(tuple, palette))
        if len(self.palette) != len(self.class_names):
            raise ValueError(
                f"palette must have one colour a class, got {len(self.palette)} colours for "
                f"{len(self.class_names)} classes"
            )
        ids: dict[str, int] = {}
        for class_id, class_name in enumerate(self.class_names):
            if (first := ids.setdefault(class_name, class_id)) != class_id:
                raise ValueError(
                    f"class_names must differ, got {class_name!r} for both {first} and {class_id}"
                )
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
        self.name = name
        self.splits = tuple(splits)
        self.on_error = on_error
        self._logged: set[str] = set()
        self._last_fault: dict[str, DataError] = {}  # by split
        self._decoded: dict[tuple[Any, ...], tuple[Any, ...]] = {}  # (split, index, ...): arrays

    @property
    def num_classes(self) -> int:
        """int, the number of classes."""
        return len(self.class_names)

    def size(self, split: str) -> int:
        """int, the number of examples of a split."""
        return len(self.examples(split))

    def examples(self, split: str) -> tuple[str, ...]:
        """Tuple of str, what names each example (a path for files), in the order of `read`."""
        raise NotImplementedError

    def read(self, split: str, index: int) -> Any:
        """An example, arrays. Raises `DataError` for a bad file."""
        raise NotImplementedError

    def _check_split(self, split):
        if split not in self.splits:
            raise ValueError(
                f"data set {self.name!r} has no split {split!r}; it has "
                f"{', '.join(map(repr, self.splits))}"
            )


class SegmentationDataset(Dataset):
    """Images with one class id a pixel, in named splits, in a fixed order.

    A dataset is this class with `examples` and `read` filled in. `load` and the pipelines are
    built on them alone, so a dataset read from elsewhere needs nothing more.

    `read` runs in Python, which runs one thread at a time. A dataset whose examples TensorFlow
    can read overrides `graph_reader` too: pipelines then ask that, and `read` for what it
    cannot do. Both give the same pixels.

    Args:
        name: see `Dataset`.
        class_names: see `Dataset`.
        splits: see `Dataset`.
        palette: see `Dataset`. Defaults to the PASCAL VOC colour map.
        on_error: see `Dataset`; for `load` as well. Defaults to "raise".
        flip_pairs: pairs of class ids that change places in a mirror, such as left and right arm:
            what mirrors an image exchanges them in its label. Defaults to `()`.

    Shapes:
        `read` gives an image (H, W, 3) and a label (H, W), both uint8; 255 is ignored.

    Raises:
        ValueError: for no classes, more than 255 of them, a palette of another length, an
            unknown `on_error`, or `flip_pairs` that are no pairs of these classes, each once.

    Example:

    >>> data = isa_tf.data.SyntheticDataset(num_examples={"train": 4, "val": 2})
    >>> data.splits, data.size("train"), data.num_classes
    (('train', 'val'), 4, 7)
    >>> image, label = data.read("train", 0)
    """

    ignore_label = IGNORE_LABEL

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        splits: Sequence[str],
        palette: Colors | None = None,
        on_error: str = "raise",
        flip_pairs: Sequence[Sequence[int]] = (),
    ) -> None:
        class_names = tuple(class_names)
        if not 1 <= len(class_names) <= IGNORE_LABEL:
            raise ValueError(
                f"class_names must be 1 to {IGNORE_LABEL} ({IGNORE_LABEL} itself is the ignored "
                f"label), got {len(class_names)} class names"
            )
        palette = palette or voc_palette(len(class_names))
        super().__init__(name, class_names, splits, palette, on_error)
        self.flip_pairs = _checked_pairs(flip_pairs, len(class_names))

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and label (H, W), uint8 arrays. Raises `DataError` for a bad file."""
        raise NotImplementedError

    def graph_reader(self, split: str) -> GraphReader | None:
        """The `GraphReader` of a split, or `None` where there is `read` alone, as here."""
        return None

    def load(self, split: str) -> tf.data.Dataset:
        """`tf.data.Dataset` of `{"image": (H, W, 3), "label": (H, W)}`, uint8, in order."""
        data = read_indices(self, split, tf.data.Dataset.range(self.size(split)))
        return data.map(lambda _, image, label: {"image": image, "label": label})


def _checked_pairs(flip_pairs, num_classes):
    with contextlib.suppress(ValueError):
        pairs = id_pairs("flip_pairs", flip_pairs)
        if all(max(pair) < num_classes for pair in pairs):
            return pairs
    raise ValueError(
        f"flip_pairs must be pairs of class ids, 0 to {num_classes - 1}, no id twice, "
        f"got {flip_pairs!r}"
    )


class _Calls:
    """The calls of Python by running pipelines, which must be over when the interpreter ends.

    From then on a thread that asks for the interpreter is ended, so a call that it runs never
    returns; and an iterator that is deleted waits for its calls, for ever.
    """

    _PATIENCE = 10.0  # seconds, for calls that run
    _QUIET = 0.25  # seconds without a call, after which pipelines are taken to have stopped

    def __init__(self):
        self._lock = threading.Lock()
        self._running, self._latest, self._closed = 0, None, False

    def guard(self, function):
        """`function`, refused once the interpreter ends."""

        def call(*args):
            with self._lock:
                self._latest = time.monotonic()
                if self._closed:
                    raise RuntimeError("Python ends, so nothing more is read")
                self._running += 1
            try:
                return function(*args)
            finally:
                with self._lock:
                    self._running -= 1

        return call

    def close(self):
        """Refuses calls and waits for those that run. Pipelines full of refusals call no more."""
        with self._lock:
            self._closed = True
            if self._latest is None:
                return
            self._latest = time.monotonic()  # some may wait to begin
        end = self._latest + self._PATIENCE
        while (now := time.monotonic()) < end:
            if not self._running and now - self._latest > self._QUIET:
                break
            time.sleep(0.01)


_calls = _Calls()
atexit.register(_calls.close)


def python_operation(
    function: Callable[..., Any],
    inputs: Sequence[tf.Tensor],
    dtypes: tf.DType | Sequence[tf.DType],
) -> tf.Tensor | list[tf.Tensor]:
    """`tf.numpy_function` that does not keep the process from ending while pipelines run.

    Args:
        function: of arrays, that gives arrays or bytes.
        inputs: list of tensors.
        dtypes: of the outputs, as of `tf.numpy_function`.

    Example:

    >>> python_operation(lambda n: n + 1, [tf.constant(1)], tf.int32)
    <tf.Tensor: shape=(), dtype=int32, numpy=2>
    """
    return tf.numpy_function(_calls.guard(function), inputs, dtypes)


def on_image(place: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What of a window lies on an image: its first row and column, and those behind its last.

    Args:
        place: int32 (2, 2) tensor, the window's first row and column, and its height and width.
        size: int32 (2,) tensor, the image's height and width.
    """
    return tf.maximum(place[0], 0), tf.minimum(place[0] + place[1], size)


def read_indices(
    dataset: "SegmentationDataset",
    split: str,
    running: tf.data.Dataset,
    to_index: Callable[[tf.Tensor], tf.Tensor] = lambda i: i,
    cache: bool = False,
    place_of: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Reads examples named by their position.

    Args:
        dataset: `SegmentationDataset`.
        split: str.
        running: `tf.data.Dataset` of int64 scalars.
        to_index: function from such a scalar to a position in the split. Defaults to itself.
        cache: bool, whether decoded examples stay in memory, with the dataset. Defaults to
            `False`.
        place_of: function of such a scalar and a label that gives the window to read of an
            example, as an int32 (2, 2) tensor of its first row and column and of its height and
            width. Defaults to `None`, for whole examples.

    Returns:
        `tf.data.Dataset` of (scalar, image (H, W, 3), label (H, W)), in the order of `running`;
        with `place_of`, of these cut to the part of the window that lies on the image, and of
        the window.
    """
    dataset.size(split)  # an unknown split is an error now, not at the first batch
    # What is kept is kept in Python, which to ask is cheap; only the first epoch would gain.
    reader = None if cache else dataset.graph_reader(split)
    read = PythonReader(dataset, split, cache)
    whole = place_of is None

    def cut(i, image, label):
        place = place_of(i, label)
        first, last = on_image(place, tf.shape(label))
        image = image[first[0] : last[0], first[1] : last[1]]
        return image, label[first[0] : last[0], first[1] : last[1]], place

    def by_python(i):
        example = _checked(python_operation(read, [to_index(i)], (tf.uint8, tf.uint8)))
        return example if whole else cut(i, *example)

    def by_graph(i):
        if whole:
            return _checked(reader.read(to_index(i)))
        if reader.read_part is None:
            return cut(i, *_checked(reader.read(to_index(i))))
        image, label, place = reader.read_part(to_index(i), lambda label: place_of(i, label))
        return *_checked((image, label)), place

    if reader is None:
        return read_each(read, running, to_index, by_python)
    return read_each(read, running, to_index, by_python, by_graph, reader.able)


def read_each(
    read: "PythonReader",
    running: tf.data.Dataset,
    to_index: Callable[[tf.Tensor], tf.Tensor],
    by_python: Callable[..., Any],
    by_graph: Callable[..., Any] | None = None,
    able: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Reads examples by Python or, where it can, by a graph; leaves out what is to be skipped.

    Args:
        read: `PythonReader`, of which the examples are.
        running: `tf.data.Dataset` of int64 scalars.
        to_index: function from such a scalar to a position in the split.
        by_python: function of such a scalar that gives an example, a tuple of tensors of which the
            first is the image, by `read`.
        by_graph: function that gives the same by TensorFlow's operations. Where one of them fails,
            `by_python` is asked. Defaults to `None`.
        able: bool array, see `GraphReader`. Defaults to `None`, for all.

    Returns:
        `tf.data.Dataset` of (scalar, *example), in the order of `running`.
    """

    def by_either(i):
        # A graph cannot catch an error, but a dataset can pass over it. This one, of one
        # element, goes on with Python's where TensorFlow's is missing.
        one = tf.data.Dataset.from_tensors(i)
        example = one.map(by_graph).ignore_errors().concatenate(one.map(by_python)).take(1)
        return example.get_single_element()

    def fetch(i):
        return i, *example_of(i)

    def example_of(i):
        if by_graph is None:
            return by_python(i)
        if able is None or np.all(able):
            return by_either(i)
        asked = tf.gather(tf.constant(able, tf.bool), to_index(i))
        return tf.cond(asked, lambda: by_either(i), lambda: by_python(i))

    data = running.map(fetch, num_parallel_calls=processors(), deterministic=True)
    if read.dataset.on_error == "skip":
        data = _without_empty(data, read.dataset.size(read.split), to_index, read)
    return data


# What stands for an example that cannot be read, until it is left out.
_EMPTY = np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.uint8)


def _checked(example):
    image, label = example
    return tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(label, (None, None))


class PythonReader:
    """Examples of one split for `tf.numpy_function`, and what `on_error` makes of faults.

    Args:
        dataset: `Dataset`.
        split: str.
        cache: bool, whether what was read stays in memory, with the dataset.
        load: function of split and position that gives a tuple of arrays, of which the first is
            the image, or raises `DataError`. Defaults to `None`, for the dataset's `read`.
        empty: tuple of arrays that stand for an example that cannot be read, until it is left out;
            the image has no pixels. Defaults to those of an image and a label.
        kind: tuple, what `load` was made with, if there are several kinds in the cache. Defaults
            to `()`.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        cache: bool,
        load: Callable[[str, int], tuple[np.ndarray, ...]] | None = None,
        empty: tuple[np.ndarray, ...] = _EMPTY,
        kind: tuple[Any, ...] = (),
    ) -> None:
        self.dataset, self.split = dataset, split
        self._cache, self._load, self._empty, self._kind = cache, load, empty, kind

    def __call__(self, index: int) -> tuple[Any, ...]:
        key = self.split, int(index), *self._kind
        if self._cache and key in self.dataset._decoded:
            return self.dataset._decoded[key]
        try:
            example = (self._load or self.dataset.read)(self.split, int(index))
        except DataError as error:
            if self.dataset.on_error == "raise":
                raise
            self.dataset._last_fault[self.split] = error
            if error.path not in self.dataset._logged:
                self.dataset._logged.add(error.path)
                logging.warning("Left out of %s/%s: %s", self.dataset.name, self.split, error)
            return self._empty  # which is not kept: a disk may have been away
        if self._cache:
            self.dataset._decoded[key] = example
        return example

    def refuse(self) -> NoReturn:
        """Raises the `DataError` of a split of which nothing can be read."""
        name, size = self.dataset.name, self.dataset.size(self.split)
        raise DataError(
            f"{name}/{self.split}",
            f"none of its {size} examples can be read; the last fault: "
            f"{self.dataset._last_fault[self.split]}",
        )


def _without_empty(data, size, to_index, read):
    """Leaves empty examples out; an error once every example has been empty, and none not."""

    def count(failed, example):
        i, image = example[:2]

        def one_more():
            after = tf.tensor_scatter_nd_update(failed, [[to_index(i)]], [True])
            refusals = tf.cond(
                tf.reduce_all(after),
                lambda: python_operation(read.refuse, [], tf.bool),
                lambda: tf.constant(False),
            )
            with tf.control_dependencies([refusals]):
                return tf.identity(after)

        # What failed before one that was read counts no more: a disk may have been away.
        after = tf.cond(tf.size(image) > 0, lambda: failed & False, one_more)
        return after, example

    data = data.scan(tf.zeros((size,), tf.bool), lambda failed, example: count(failed, example))
    return data.filter(lambda i, image, *_: tf.size(image) > 0)
