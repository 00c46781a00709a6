"""Datasets by name."""

from isa_tf.data.folder import FolderDataset
from isa_tf.data.synthetic import SyntheticDataset
from isa_tf.names import Registry

_DATASETS = Registry("dataset")
_needs_files = {}  # name: whether `create` hands the builder a `data_dir`

# name: colour, in the order of the ids.
_CAMVID = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}

_CCP = (
    "null accessories bag belt blazer blouse bodysuit boots bra bracelet cape cardigan "
    "clogs coat dress earrings flats glasses gloves hair hat heels hoodie intimate jacket "
    "jeans jumper leggings loafers necklace panties pants pumps purse ring romper sandals "
    "scarf shirt shoes shorts skin skirt sneakers socks stockings suit sunglasses sweater "
    "sweatshirt swimwear t-shirt tie tights top vest wallet watch wedges"
).split()


def register(name, builder=None, needs_files=True):
    """Gives a dataset a name for `create`; without a builder, a decorator that does.

    `tools.check_dataset` hands the builder of one with files `on_error="skip"`, and
    `num_classes` where it is given.

    Args:
        name: str.
        builder: function or class that gives a `SegmentationDataset`: of (data_dir, **kwargs), or
            of (**kwargs) alone where there are no files. Defaults to `None`, for a decorator.
        needs_files: bool, whether it is read from files, so that `create` wants `data_dir`.
            Defaults to `True`.

    Returns:
        The builder.

    Raises:
        ValueError: for a name that is taken.

    Example:

    >>> @isa_tf.data.register("coast")
    ... def coast(data_dir, **kwargs):
    ...     return isa_tf.data.FolderDataset(data_dir, ["sea", "sand", "rock"], **kwargs)
    >>> isa_tf.data.create("coast", data_dir, on_error="skip").class_names
    ('sea', 'sand', 'rock')
    """
    if builder is None:
        return lambda builder: register(name, builder, needs_files)
    _DATASETS.register(name, builder)
    _needs_files[name] = needs_files
    return builder


@register("camvid")
def camvid(data_dir, **kwargs):
    """CamVid in SegNet's form: road scenes, 480x360, 11 classes, 255 ignored.

    Args:
        data_dir: path of a folder in a layout of `FolderDataset`.
        **kwargs: of `FolderDataset`.

    Example:

    >>> data = isa_tf.data.create("camvid", "camvid")

    Paper: Segmentation and Recognition Using Structure from Motion Point Clouds (Brostow et
    al., ECCV 2008).
    """
    return FolderDataset(data_dir, list(_CAMVID), palette=_CAMVID.values(), name="camvid", **kwargs)


@register("ccp")
def ccp(data_dir, **kwargs):
    """Clothing Co-Parsing: street fashion photographs, 59 classes of clothing and body.

    Args:
        data_dir: path of a folder in a layout of `FolderDataset`.
        **kwargs: of `FolderDataset`.

    Example:

    >>> data = isa_tf.data.create("ccp", "ccp")

    Paper: Clothing Co-Parsing by Joint Image Segmentation and Labeling
    (https://arxiv.org/abs/1502.00739).
    """
    return FolderDataset(data_dir, _CCP, name="ccp", **kwargs)


register("folder", FolderDataset)
register("synthetic", SyntheticDataset, needs_files=False)


def list_names():
    """Tuple of the names that `create` takes."""
    return tuple(sorted(_DATASETS))


def create(name, data_dir=None, **kwargs):
    """Makes a dataset by its name.

    Args:
        name: str, one of `list_names()`.
        data_dir: path of its files; not for one without files, such as "synthetic".
            Defaults to `None`.
        **kwargs: of the dataset.

    Raises:
        ValueError: for an unknown name, or a `data_dir` missing or not wanted.
        DataError: for files that cannot be used.

    Example:

    >>> data = isa_tf.data.create("folder", "my_images", num_classes=3)
    >>> data = isa_tf.data.create("synthetic", image_size=(128, 128))
    """
    builder = _DATASETS[name]
    if not _needs_files[name]:
        if data_dir is not None:
            raise ValueError(f"Dataset {name!r} takes no `data_dir`. Received: {data_dir}")
        return builder(**kwargs)
    if data_dir is None:
        raise ValueError(f"Dataset {name!r} needs `data_dir`, the folder of its files.")
    return builder(data_dir, **kwargs)
