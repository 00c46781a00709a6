"""Datasets by name: how each is read and, where it has a builder, prepared."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isa_tf import files
from isa_tf.data import label_sets
from isa_tf.data.base import DataError, Dataset
from isa_tf.data.coco import CocoDataset
from isa_tf.data.folder import FolderDataset
from isa_tf.data.prepared import prepared_folders
from isa_tf.data.synthetic import SyntheticDataset
from isa_tf.data.synthetic_instances import SyntheticInstances
from isa_tf.hints import StrPath
from isa_tf.names import Registry

_DATASETS = Registry("dataset")  # functions of (data_dir, **kwargs), or of (**kwargs) alone
_BUILDERS = Registry("builder")  # classes, or "module:Class", imported when they are asked for


def register(
    name: str,
    make: Callable[..., Dataset] | None = None,
    builder: type | str | None = None,
) -> Any:
    """Gives a dataset a name for `create`; without a function or a builder, a decorator.

    `tools.check_dataset` hands a dataset that is read from files `on_error="skip"`, and
    `num_classes` where it is given.

    Args:
        name: str.
        make: function or class that gives a `SegmentationDataset` or an `InstanceDataset`: of
            (data_dir, **kwargs), or of (**kwargs) alone where there are no files. With a builder,
            it reads what is not prepared, and may be `None`. Defaults to `None`.
        builder: subclass of `isa_tf.data.builders.base.Builder`, or the text
            "module:Class" of one. What it has prepared is read first. Defaults to `None`.

    Returns:
        What was given.

    Raises:
        ValueError: for a name that is taken.

    Example:

    >>> @isa_tf.data.register("coast")
    ... def coast(data_dir, **kwargs):
    ...     return isa_tf.data.FolderDataset(data_dir, ["sea", "sand", "rock"], **kwargs)
    >>> isa_tf.data.create("coast", data_dir, on_error="skip").class_names
    ('sea', 'sand', 'rock')
    """
    if make is None and builder is None:
        return lambda make: register(name, make)
    _DATASETS.register(name, make or _not_prepared)
    if builder is not None:
        _BUILDERS.register(name, builder)
    return make or builder


def _not_prepared(data_dir, **kwargs):
    raise DataError(data_dir, "no data set is prepared here")


def _folder_of(labels, name):
    """Reads a data set from a plain folder."""

    def make(data_dir, **kwargs):
        return FolderDataset(
            data_dir, labels.class_names, palette=labels.palette, name=name, **kwargs
        )

    make.__qualname__ = f"folder of {name}"
    return make


def _builder(path):
    return f"isa_tf.data.builders.{path}"


register("ade20k", builder=_builder("ade20k:Ade20k"))
register("camvid", _folder_of(label_sets.CAMVID, "camvid"), _builder("camvid:CamVid"))
register("ccp", _folder_of(label_sets.CCP, "ccp"), _builder("ccp:Ccp"))
register("cityscapes", builder=_builder("cityscapes:Cityscapes"))
register("coco", CocoDataset, _builder("coco:Coco"))
register("coco_stuff10k", builder=_builder("coco_stuff:CocoStuff10k"))
register("coco_stuff164k", builder=_builder("coco_stuff:CocoStuff164k"))
register("folder", FolderDataset, _builder("folder:Folder"))
register("lip", builder=_builder("lip:Lip"))
register("pascal_context", builder=_builder("pascal_context:PascalContext"))
register("pascal_context60", builder=_builder("pascal_context:PascalContext60"))
register("synthetic", SyntheticDataset)
register("synthetic_instances", SyntheticInstances)
register("voc2012", builder=_builder("voc2012:Voc2012"))


def list_names() -> tuple[str, ...]:
    """Tuple of the names that `create` takes."""
    return tuple(sorted(_DATASETS))


def list_builders() -> tuple[str, ...]:
    """Tuple of the names that `prepare` and `builder` take."""
    return tuple(sorted(_BUILDERS))


def builder(name: str) -> type[Any]:
    """The class that prepares a data set; once imported, tensorflow-datasets knows it too.

    Args:
        name: str, one of `list_builders()`.

    Raises:
        ValueError: for a name without a builder.

    Example:

    >>> isa_tf.data.builder("voc2012").name
    'isa_tf_voc2012'
    """
    found = _BUILDERS[name]
    if isinstance(found, str):
        module, _, cls = found.partition(":")
        found = getattr(importlib.import_module(module), cls)
    return found


def create(name: str, data_dir: StrPath | None = None, **kwargs: Any) -> Any:
    """Makes a dataset by its name.

    Of a data set with a builder, what `isa_tf.data.prepare` made below `data_dir` is read;
    "camvid", "ccp", "coco" and "folder" are read from plain folders, too.

    Args:
        name: str, one of `list_names()`.
        data_dir: path of its files, or of the folder of all prepared data sets; not for one
            without files, such as "synthetic". Defaults to `None`.
        **kwargs: of the dataset: of `PreparedDataset` or `PreparedInstances` for one that
            is prepared.

    Raises:
        ValueError: for an unknown name, or a `data_dir` missing or not wanted.
        DataError: for files that cannot be used, or a data set that is not prepared; for a folder
            of another one that is.

    Example:

    >>> data = isa_tf.data.create("folder", "my_images", num_classes=3)
    >>> data = isa_tf.data.create("synthetic", image_size=(128, 128))
    """
    make = _DATASETS[name]
    if "data_dir" not in inspect.signature(make).parameters:
        if data_dir is not None:
            raise ValueError(f"data set {name!r} takes no data_dir, got {data_dir}")
        return make(**kwargs)
    if data_dir is None:
        raise ValueError(f"data set {name!r} needs data_dir, the folder of its files")
    folder = _prepared(name, Path(data_dir)) if name in _BUILDERS else None
    if folder is not None:
        kwargs.pop("num_classes", None)  # it is known
        return builder(name).dataset(folder, **kwargs)
    if make is _not_prepared:
        raise DataError(
            data_dir,
            f"{name} is not prepared here; to do so: isa-tf prepare --name={name} "
            f"--manual_dir=... --data_dir={data_dir}",
        )
    return make(data_dir, **kwargs)


def _prepared(name, data_dir):
    """The folder of what is prepared of a data set, or `None`."""
    info = data_dir / "dataset_info.json"
    if info.is_file():
        wanted = builder(name).name
        found = (files.read_json(info) or {}).get("name", wanted)  # what is damaged is told later
        if found != wanted:
            raise DataError(data_dir, f"what is prepared here is {found}, not {wanted}")
        return data_dir
    found = prepared_folders(data_dir, name)
    if not found:
        return None
    version = str(builder(name).VERSION)
    fitting = [path for path in found if path.name == version]
    if not fitting:
        raise DataError(
            found[-1],
            f"prepared as version {found[-1].name}, and this is for {version}: prepare it anew",
        )
    if len(fitting) > 1:
        raise DataError(
            data_dir / f"isa_tf_{name}",
            f"there are several: {', '.join(map(str, fitting))}; give the one that is meant",
        )
    return fitting[0]
