"""Presets: models kept as folders or published under names, with versions; after KerasHub's.

A preset is a folder of `config.json`, `model.weights.h5` and `metadata.json`, which
`model.save_to_preset(folder)` writes, or a name that was given to `register`; published models and
backbones are. Both may have versions: "NAME/2" is one of them, "NAME" the newest; of folders, those
inside that are called by numbers. `from_preset` of a class, and `isa_tf.models.from_preset`, take
either.
"""

import datetime
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import h5py
import keras

from isa_tf import plugins
from isa_tf.files import digest, read_json, replacing_folder, write_json
from isa_tf.hints import StrPath
from isa_tf.names import Registry, unknown
from isa_tf.version import __version__
from isa_tf.weights.reader import check_declared

FORMAT = 1  # of the folders; one that is newer is refused
CONFIG, WEIGHTS, METADATA = FILES = ("config.json", "model.weights.h5", "metadata.json")

_NAMED = Registry("preset")  # by name and version, "NAME/1"
_HANDLE = re.compile(r"(.+)/(\d+)")
# What says which classes there are; others than the preset's own have new classifiers.
_CLASSES = ("num_classes", "class_names", "palette", "category_ids")
# What a model's backbone and context module are told as well, where they know of it.
_SHARED = ("dtype", "synchronized")


class Named(NamedTuple):
    """A preset that was given to `register`.

    Attributes:
        name: str.
        version: int.
        source: path of a folder, or a function from `load_weights` and the model's arguments to a
            model.
        kind: class of the model; `None` for what a folder's config says.
        told: what there is to know of it, or `None`.
        aliases: other names of it.
    """

    name: str
    version: int
    source: StrPath | Callable[..., keras.Model]
    kind: type | None
    told: Any
    aliases: tuple[str, ...]

    @property
    def made(self) -> type | None:
        """The class of the model, as far as that can be told without making it."""
        if self.kind is not None or callable(self.source):
            return self.kind
        try:
            folder = _newest(Path(self.source))
        except (OSError, ValueError):  # which `load` tells of
            return None
        config = read_json(folder / CONFIG) or {}
        return keras.saving.get_registered_object(config.get("registered_name"))


def register(
    name: str,
    source: StrPath | Callable[..., keras.Model],
    version: int = 1,
    kind: type | None = None,
    told: Any = None,
    aliases: tuple[str, ...] = (),
) -> None:
    """Gives a preset a name, which `from_preset` then knows.

    Args:
        name: str.
        source: path of a folder that `save_to_preset` wrote, or of one that has such folders in it,
            called by their versions, of which it is the newest; or a function from `load_weights`
            and the model's other arguments to a model.
        version: int from 1 on. Defaults to 1.
        kind: class of the model that a function makes. Defaults to `None`, for a folder.
        told: what `presets` of a class shows of it. Defaults to `None`: the source.
        aliases: other names. Defaults to none.

    Raises:
        ValueError: for a name and version that are taken, a version below 1, or a function without
            a kind.

    Example:

    >>> for version, stride in ((1, 4), (2, 8)):
    ...     isa_tf.backbones.TinyNet(output_stride=stride).save_to_preset(f"small/{version}")
    ...     register("small", f"small/{version}", version)
    >>> [load(handle).output_stride for handle in ("small", "small/1")]
    [8, 4]
    """
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"the version of a preset is an int from 1 on, got {version!r}")
    if callable(source) and kind is None:
        raise ValueError(f"preset {name!r}: a function is registered with the kind that it makes")
    entry = Named(name, version, source, kind, source if told is None else told, tuple(aliases))
    _NAMED.register(f"{name}/{version}", entry)


def list_names(kind: type[Any] = keras.Model) -> list[str]:
    """The names of the registered presets of a class.

    Args:
        kind: class of models. Defaults to `keras.Model`, all of them.

    Example:

    >>> list_names(isa_tf.backbones.HRNet)[0]
    'open-mmlab://msra/hrnetv2_w18'
    """
    return list(_told(kind))


def _told(kind):
    """By name, what is known of the newest version of each preset of a class."""
    found = {}
    for name, versions in _versions().items():
        newest = versions[max(versions)]
        if name == newest.name:
            made = newest.made
            if kind is keras.Model or (made is not None and issubclass(made, kind)):
                found[name] = newest.told
    return found


def _versions() -> dict[str, dict[int, Named]]:
    """{name: {version: `Named`}} of all that is registered, by aliases too.

    What plug-ins add is among them, as one may have a newer version.
    """
    found: dict[str, dict[int, Named]] = {}
    for _, entry in _NAMED.items():
        for name in (entry.name, *entry.aliases):
            found.setdefault(name, {})[entry.version] = entry
    return found


def find(preset: StrPath) -> Named | Path:
    """What a handle stands for.

    Args:
        preset: the name of a registered preset, as it is or with its version, "NAME/1"; or the path
            of a folder, which a `pathlib.Path` is in any case.

    Returns:
        `Named`, or the path of the folder that has the files.

    Raises:
        ValueError: for an unknown name or version, with the nearest ones, or for a file.
        FileNotFoundError: for a `pathlib.Path` at which there is nothing.

    Example:

    >>> find("timm/hrnet_w18.ms_in1k/1").version
    1
    """
    if not isinstance(preset, str):
        return _newest(Path(preset))
    known = _versions()
    name, version = preset, None
    handle = _HANDLE.fullmatch(preset)
    if preset not in known and handle and handle[1] in known:
        name, version = handle[1], int(handle[2])
    if name in known:
        versions = known[name]
        if version is None:
            version = max(versions)
        if version not in versions:
            _refuse_version(f"preset {name!r}", version, versions)
        return versions[version]
    path = Path(preset)
    if path.exists() or (handle and Path(handle[1]).is_dir()):
        return _newest(path)
    parts = [unknown("preset", preset, list(known)), "nor is there such a folder"]
    raise ValueError("; ".join([*parts, *plugins.load()]))


def _newest(folder):
    """The folder of a preset: itself, or the newest of its versions."""
    if folder.is_file():
        told = (
            "isa_tf.models.load reads it" if folder.suffix == ".keras" else "a preset is a folder"
        )
        raise ValueError(f"{folder}: a file; {told}")
    if not folder.is_dir():
        versions = _inside(folder.parent)
        if versions and folder.name.isdecimal():
            _refuse_version(f"{folder.parent}: a preset", int(folder.name), versions)
        raise FileNotFoundError(f"{folder}: no such folder")
    if not (folder / CONFIG).exists() and (versions := _inside(folder)):
        return versions[max(versions)]
    return folder


def _inside(folder):
    """{version: folder} of the versions that lie in a folder."""
    if not folder.is_dir():
        return {}
    found = (path for path in folder.iterdir() if path.name.isdecimal())
    return {int(path.name): path for path in found if (path / CONFIG).exists()}


def _refuse_version(what: str, version: int, versions: Iterable[int]) -> NoReturn:
    known = ", ".join(map(str, sorted(versions)))
    raise ValueError(f"{what} has no version {version}; there is {known}")


def load(
    preset: StrPath, kind: type[Any] = keras.Model, load_weights: bool = True, **arguments: Any
) -> keras.Model:
    """The model of a preset; arguments and errors as of `PresetModel.from_preset`.

    Args:
        preset: see `find`.
        kind: class that the model is to be of. Defaults to `keras.Model`.
        load_weights: bool. Defaults to `True`.
        **arguments: of the model, in place of what the preset has.

    Example:

    >>> isa_tf.backbones.create("tiny").save_to_preset("tiny_preset")
    >>> load("tiny_preset").output_stride
    4
    """
    found = find(preset)
    make: Callable[..., keras.Model]
    source = found.source if isinstance(found, Named) else found
    if callable(source):
        made, make = getattr(found, "kind", None), source
    else:
        folder = _newest(Path(source))
        config, metadata = _read_folder(folder)
        made = keras.saving.get_registered_object(config.get("registered_name"))
        make = functools.partial(_load_folder, folder, config, metadata)
    if made is None or issubclass(made, kind):
        model = make(load_weights=load_weights, **arguments)
        if isinstance(model, kind):
            return model
        made = type(model)
    part = getattr(kind, "preset_part", None)
    if part is None or not issubclass(made, PresetModel):
        _refuse_kind(preset, made, kind)
    whole: Any = getattr(make(load_weights=load_weights), part, None)
    if not isinstance(whole, kind):
        _refuse_kind(preset, made if whole is None else type(whole), kind)
    # One of its own, as the other's layers belong to the whole model.
    model = _made({"config": whole.get_config()}, arguments, type(whole).from_config, preset)
    if load_weights:
        model.take_weights(whole)
    return model


def _refuse_kind(preset: StrPath, made: type, kind: type) -> NoReturn:
    raise ValueError(
        f"{preset}: a preset of {made.__name__}, not of {kind.__name__}; "
        "isa_tf.models.from_preset loads it"
    )


# === Folders ===


def _read_folder(folder):
    """The checked config and metadata of a folder."""
    for name in (CONFIG, METADATA):
        _check_there(folder, name)
    metadata, config = (read_json(folder / name) for name in (METADATA, CONFIG))
    for name, content in ((METADATA, metadata), (CONFIG, config)):
        if content is None:
            raise ValueError(f"{folder / name}: no JSON, or not the whole of it")
    written = metadata.get("isa_tf_version")
    numbers = (metadata.get("format"), metadata.get("weights_bytes"))
    if written is None or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"{folder}: no preset of isa_tf, by its {METADATA}")
    if metadata["format"] > FORMAT:
        raise ValueError(
            f"{folder}: of format {metadata['format']}, written by isa_tf {written}; this one, "
            f"{__version__}, reads formats up to {FORMAT}"
        )
    if not isinstance(config.get("config"), dict) or not config.get("class_name"):
        raise ValueError(f"{folder / CONFIG}: no config of a model")
    return config, metadata


def _check_there(folder, name):
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder}: no {name}; a preset has {', '.join(FILES)}")


def _load_folder(folder, config, metadata, load_weights=True, **arguments):
    """The model of a folder, of which all but the weights was read."""
    if load_weights:
        _check_weights(folder, metadata)
    given = {name: arguments.pop(name) for name in _CLASSES if name in arguments}
    own = config["config"].get("num_classes")
    if "num_classes" not in config["config"] or given.get("num_classes") in (None, own):
        arguments |= {name: value for name, value in given.items() if value is not None}
        given = {}
    faults = plugins.load()  # they register the classes that the config may name

    def revive(changed):
        try:
            return keras.saving.deserialize_keras_object({**config, "config": changed})
        except (TypeError, ValueError, ImportError) as error:
            told = "; ".join([_brief(error), *faults])
            what = config["class_name"]
            raise ValueError(f"{folder}: {what} cannot be made ({told})") from error

    model = _made(config, arguments, revive, folder)
    if not isinstance(model, PresetModel):
        raise ValueError(f"{folder}: no preset of isa_tf, but of {type(model).__name__}")
    if load_weights:
        try:
            _take_weights(model, folder / WEIGHTS)
        except (ValueError, UserWarning) as error:
            if not arguments:
                told = _brief(error)
                raise ValueError(f"{folder}: its weights are not its model's ({told})") from error
            # Keras counts layers where it loads, so that a part left out moves all others.
            whole = revive(config["config"])
            _take_weights(whole, folder / WEIGHTS)
            _take_by_name(model, whole, folder)
    return model.for_classes(**given) if given else model


def _brief(error):
    """What an error of Keras says, without the config that it tells along."""
    text = str(error).rpartition("Exception encountered: ")[2]
    return text.partition(" Full object config")[0].partition("\n")[0]


def _take_weights(model, path):
    with warnings.catch_warnings():
        # Keras warns of parts that it finds nothing for, and leaves them as they began.
        warnings.simplefilter("error", UserWarning)
        model.load_preset_weights(path)


def _take_by_name(model, whole, folder):
    """Gives a model's layers the weights of those of the same names, or says which do not fit."""
    theirs = {layer.name: layer for layer in whole.layers}
    others = [
        layer.name
        for layer in model.layers
        if layer.weights and _shapes(layer) != _shapes(theirs.get(layer.name))
    ]
    if others:
        raise ValueError(
            f"{folder}: with these arguments its weights do not fit {', '.join(others)}; "
            "load_weights=False is without them"
        )
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(theirs[layer.name].get_weights())


def _shapes(layer):
    return None if layer is None else [tuple(weight.shape) for weight in layer.weights]


def _made(config, arguments, make, where):
    """What `make` gives of a config in which some arguments are others."""
    changed = dict(config["config"])
    for name, value in arguments.items():
        if name not in changed:
            what = f"argument of {config.get('class_name', 'the preset')}"
            raise ValueError(f"{where}: {unknown(what, name, list(changed))}")
        inside = changed[name]
        if _is_nested(inside) and isinstance(value, Mapping) and "class_name" not in value:
            value = {**inside, "config": {**inside["config"], **value}}
        changed[name] = value
    shared = {name: arguments[name] for name in _SHARED if name in arguments}
    return make(_share(changed, shared, arguments))


def _is_nested(value):
    return isinstance(value, Mapping) and isinstance(value.get("config"), Mapping)


def _share(config, shared, given=()):
    """A model's config whose parts are told what all of them are told."""
    if shared and "graph" in config:  # of a backbone whose config has each layer's
        raise ValueError(
            f"{config.get('name')}: a network of Keras's keeps the {', '.join(shared)} that it was "
            "saved with; isa_tf.backbones.create makes one of another"
        )
    config = dict(config)
    parts = {name: config[name] for name in ("backbone", "context") if name in config}
    for name, part in parts.items():
        if _is_nested(part) and not (name in given and "class_name" in given[name]):
            own = given[name] if name in given and isinstance(given[name], Mapping) else ()
            told = {key: value for key, value in shared.items() if key not in own}
            config[name] = _told_too(part, told)
    if isinstance(config.get("context_at"), Mapping):
        places = config["context_at"].items()
        config["context_at"] = {
            level: _told_too(part, shared) if _is_nested(part) else part for level, part in places
        }
    return config


def _told_too(part, shared):
    told = {name: value for name, value in shared.items() if name in part["config"]}
    return {**part, "config": _share({**part["config"], **told}, shared)}


def _check_weights(folder, told):
    """Refuses a file of weights that is not the one that was saved."""
    _check_there(folder, WEIGHTS)
    path = folder / WEIGHTS
    size, expected = path.stat().st_size, told["weights_bytes"]
    if size != expected:
        raise ValueError(
            f"{path}: not the file that was saved, or not the whole of it: {size:,} bytes for "
            f"{expected:,}"
        )
    if digest(path) != told.get("weights_sha256"):
        raise ValueError(f"{path}: not the file that was saved: its bytes have another sum")
    with h5py.File(path) as weights:
        check_declared(weights, size)


def save(model: keras.Model, folder: StrPath) -> None:
    """Writes a model into the folder of a preset; see `PresetModel.save_to_preset`.

    Args:
        model: `PresetModel`: a `Segmenter`, a `MaskRCNN`, a backbone.
        folder: path.

    Example:

    >>> save(isa_tf.backbones.create("tiny"), "tiny_preset")
    >>> sorted(path.name for path in Path("tiny_preset").iterdir())
    ['config.json', 'metadata.json', 'model.weights.h5']
    """
    folder = Path(folder)
    if not isinstance(model, PresetModel):
        raise ValueError(
            f"{folder}: a preset is of a Segmenter, a MaskRCNN or a backbone, not of "
            f"{type(model).__name__}; isa_tf.files.save_model keeps any Keras model"
        )
    if folder.is_file():
        raise ValueError(f"{folder}: there is a file; nothing was written")
    if versions := _inside(folder):
        raise ValueError(
            f"{folder}: it has versions inside; the next is {folder / str(max(versions) + 1)}; "
            "nothing was written"
        )
    others = {path.name for path in folder.iterdir()} - {*FILES} if folder.exists() else set()
    if others:
        raise ValueError(
            f"{folder}: there is {', '.join(sorted(others)[:3])}, which is of no preset; nothing "
            "was written"
        )
    config = keras.saving.serialize_keras_object(model)
    for name in ("build_config", "compile_config"):
        config.pop(name, None)
    with replacing_folder(folder) as new:
        new.mkdir()
        write_json(new / CONFIG, config, indent=2)
        model.save_weights(new / WEIGHTS)
        now = datetime.datetime.now(datetime.UTC)
        metadata = {
            "format": FORMAT,
            "isa_tf_version": __version__,
            "keras_version": keras.__version__,
            "date_saved": now.isoformat(timespec="seconds"),
            "parameter_count": model.count_params(),
            "weights_bytes": (new / WEIGHTS).stat().st_size,
            "weights_sha256": digest(new / WEIGHTS),
        }
        write_json(new / METADATA, metadata, indent=2)
        _check_saved(model, new, folder)


def _check_saved(model, new, folder):
    """Refuses what was written unless the same model comes back."""
    try:
        again = load(new, type(model))
    except Exception as error:
        raise ValueError(
            f"{folder}: {model.name} cannot be loaded of what was written ({error}); what was "
            "there is as it was"
        ) from error
    pairs = zip(again.weights, model.weights, strict=False)
    same = len(again.weights) == len(model.weights) and all(
        a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs
    )
    if not same:
        raise ValueError(
            f"{folder}: {model.name} comes back with other weights; what was there is as it was"
        )


# === Models ===


class _OfClass:
    """A property of a class: the function gets the class."""

    def __init__(self, function):
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance, owner):
        return self.function(owner)


class PresetModel(keras.Model):
    """A model that is saved to presets and made of them: the base of all models and backbones here.

    Attributes:
        presets: dict from the names of the registered presets of this class, and of those that
            derive from it, to what is known of them.

    Example:

    >>> model = isa_tf.models.Segmenter("tiny", None, num_classes=3, head_filters=8)
    >>> model.save_to_preset("coast_preset")
    >>> isa_tf.models.Segmenter.from_preset("coast_preset", dropout=0.3).dropout
    0.3
    >>> isa_tf.models.Segmenter.presets["isanet_r50-d8_4xb2-80k_cityscapes-769x769"].miou
    79.29
    """

    # The attribute under which models of other classes have one of this class: "backbone".
    preset_part: str | None = None

    @_OfClass
    def presets(cls) -> dict[str, Any]:
        return _told(cls)

    @classmethod
    def from_preset(cls, preset: StrPath, load_weights: bool = True, **arguments: Any) -> Self:
        """The model of a preset: of a folder, or of a name.

        Args:
            preset: path of a folder that `save_to_preset` wrote, or of one that has such folders
                in it, called by their versions; or the name of a registered preset, see `presets`.
                "NAME/1" is version 1, "NAME" the newest one. A name counts before a folder of the
                same name; "./NAME" is the folder.
            load_weights: bool; `False` for random weights. Defaults to `True`.
            **arguments: of the class, in place of those that the preset has. `dtype` and
                `synchronized` are told to backbone and context module too; a dict for one of these
                has arguments of it. Other `num_classes` than the preset's go with new classifiers
                (see `isa_tf.models.load`), and all other weights are the preset's.

        Returns:
            A model of this class. A backbone's class takes presets of whole models as well, and
            gives their backbone.

        Raises:
            ValueError: for an unknown name, version or argument, with the nearest; a preset of
                another class, one that a newer version of this package wrote, damaged weights, or
                weights that do not fit the arguments.
            FileNotFoundError: where a folder, or a file in it, is missing.
            OSError: where published weights cannot be fetched.

        Example:

        >>> model = isa_tf.models.Segmenter("tiny", None, num_classes=3, head_filters=8)
        >>> model.save_to_preset("kept")
        >>> other = isa_tf.models.Segmenter.from_preset("kept", num_classes=5)
        >>> backbone = isa_tf.backbones.Backbone.from_preset("kept")
        >>> other.num_classes, backbone.name
        (5, 'tiny')
        """
        return load(preset, cls, load_weights, **arguments)

    def save_to_preset(self, folder: StrPath) -> None:
        """Writes the model into a folder: `config.json`, `model.weights.h5`, `metadata.json`.

        The folder takes its place when it is complete and gives the same weights, bit for bit; an
        older preset there is as it was until then. What the model was compiled with is left out.

        Args:
            folder: path, such as "coast", or "coast/2" for the second version; it may hold an older
                preset, and nothing else. Its parents are made.

        Raises:
            ValueError: where something else lies there, or the model does not come back.
            OSError: where it cannot be written.
        """
        save(self, folder)

    def load_preset_weights(self, path: Path) -> None:
        """Takes the weights of a preset's file; for a class whose files may fit otherwise too."""
        self.load_weights(path)

    def for_classes(self, num_classes: int, **labels: Any) -> Any:
        """The model for other classes than its own, where its class knows how."""
        raise ValueError(f"{self.name}: {type(self).__name__} has no classifiers to change")
