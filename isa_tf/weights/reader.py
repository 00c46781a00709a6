"""Reads PyTorch checkpoints into NumPy arrays: without PyTorch, and without running anything.

A checkpoint is a pickle, and a pickle is a program. The one here is allowed to name the few
things that tensors are made of, each of which stands for something of this module's own; any
other name is refused before it is looked up, so no class is ever imported.
"""

import collections
import os
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message has its path and the reason."""

    def __init__(self, path, reason):
        super().__init__(f"{os.fspath(path)}: {reason}")


def read_checkpoint(path) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch checkpoint, by name.

    Both of PyTorch's forms are read: the zip archive of version 1.6 and later, and the stream
    of pickles and raw storages before it. `state_dict` says what is taken of a nested one.

    Args:
        path: str or path-like.

    Returns:
        dict from tensor names to read-only arrays of the stored shapes and dtypes (bfloat16 as
        `ml_dtypes.bfloat16`). Tensors that share a storage share memory.

    Raises:
        CheckpointError: (a ValueError) where the file is cut short, is no checkpoint, or its
            pickle names anything but tensors.
        OSError: where it cannot be opened.

    Example:

    >>> tensors = read_checkpoint("efficientnet-lite0.pth")
    >>> tensors["_conv_stem.weight"].shape
    (32, 3, 3, 3)
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(0)
        if not head:
            raise CheckpointError(path, "the file is empty")
        if head.lstrip().startswith(b"<"):
            raise CheckpointError(path, "this is a web page (HTML), not a checkpoint")
        if head.startswith(b"PK\x03\x04"):
            read = _read_zip
        elif head.startswith(b"\x80"):
            read = _read_legacy
        else:
            raise CheckpointError(path, "this is not a PyTorch checkpoint")
        try:
            return state_dict(_resolve(read(file)))
        except _Refused as error:
            raise CheckpointError(path, str(error)) from None
        except Exception as error:
            # A damaged pickle can fail in nearly any way.
            raise CheckpointError(
                path, f"the checkpoint is damaged or cut short ({_describe(error)})"
            ) from error


def state_dict(checkpoint) -> dict[str, np.ndarray]:
    """The tensors of a loaded checkpoint: of its "state_dict" entry where it has one.

    Entries that are no arrays (a version, an epoch) are left out.

    Args:
        checkpoint: dict of arrays by name, or {"state_dict": such a dict, ...}.

    Raises:
        ValueError: where there is no array in it.
    """
    if isinstance(checkpoint, dict):
        inner = checkpoint.get("state_dict", checkpoint)
        if isinstance(inner, dict):
            arrays = {str(k): v for k, v in inner.items() if isinstance(v, np.ndarray)}
            if arrays:
                return arrays
    raise _Refused("the checkpoint holds no tensors by name")


class _Refused(ValueError):
    """A reason that is worth telling as it stands."""


def _describe(error):
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# === Stand-ins for what a checkpoint's pickle may name ===


class _StandIn:
    __slots__ = ()

    def __setstate__(self, state):
        raise _Refused("its pickle changes what it may only name; refused")


class _StorageType(_StandIn):
    __slots__ = ("dtype",)

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


class _Storage(_StandIn):
    __slots__ = ("data", "dtype", "numel")

    def __init__(self, dtype, numel):
        if type(numel) is not int or numel < 0:
            raise _Refused(f"a storage of {numel!r} numbers")
        self.dtype = dtype
        self.numel = numel
        self.data = None  # bytes, once they are read

    @property
    def nbytes(self):
        return self.numel * self.dtype.itemsize


class _Tensor(_StandIn):
    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, shape, strides):
        if not isinstance(storage, _Storage):
            raise _Refused("a tensor without a storage")
        self.storage = storage
        self.offset = offset
        self.shape = tuple(shape)
        self.strides = tuple(strides)

    def array(self) -> np.ndarray:
        """The view of its storage, read-only as bytes are; NumPy checks that it lies within."""
        dtype = self.storage.dtype
        return np.ndarray(
            self.shape,
            dtype,
            self.storage.data,
            self.offset * dtype.itemsize,
            [stride * dtype.itemsize for stride in self.strides],
        )


class _RebuildTensor(_StandIn):
    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        return _Tensor(storage, offset, shape, strides)


class _RebuildParameter(_StandIn):
    __slots__ = ()

    def __call__(self, data, *_):
        return data


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows the names in `_ALLOWED`, no others; `storages` has what the tensors refer to."""

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages = {}

    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(
                f"its pickle asks for {module}.{name}, which no tensor needs; refused"
            ) from None

    def persistent_load(self, pid):
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise _Refused(f"its pickle refers to {pid!r}, which is no storage")
        if any(v is not None for v in view):
            raise _Refused("it stores views of storages, a form older than PyTorch 0.4")
        dtype = storage_type.dtype
        storage = self.storages.setdefault(key, _Storage(dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise _Refused(f"storage {key} is described in two ways")
        return storage


def _resolve(obj):
    """`obj` with each tensor in its dicts, lists and tuples made an array."""
    if isinstance(obj, _Tensor):
        return obj.array()
    if isinstance(obj, dict):
        return {key: _resolve(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_resolve(value) for value in obj]
    return obj


# === The two forms of file ===


def _read_legacy(file):
    """Magic number, protocol, system, object, storage keys: five pickles; then raw storages."""
    if _Unpickler(file).load() != _MAGIC:
        raise _Refused("this is a pickle, but not a PyTorch checkpoint")
    protocol = _Unpickler(file).load()
    if protocol != _PROTOCOL:
        raise _Refused(f"the protocol is {protocol}; known is {_PROTOCOL}")
    if not _Unpickler(file).load()["little_endian"]:
        raise _Refused("it was written by a big-endian machine")
    unpickler = _Unpickler(file)
    obj = unpickler.load()
    keys = _Unpickler(file).load()
    missing = unpickler.storages.keys() - set(keys)
    if missing:
        raise _Refused(f"the storages {sorted(missing)} are missing")
    left = os.fstat(file.fileno()).st_size - file.tell()
    for key in keys:
        storage = unpickler.storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storage.numel:
            raise _Refused(f"storage {key} has {numel} numbers, {storage.numel} are expected")
        left -= 8 + storage.nbytes
        if left < 0:
            raise _Refused(f"the file is cut short: storage {key} lacks {-left} bytes")
        storage.data = file.read(storage.nbytes)
    return obj


def _read_zip(file):
    """<root>/data.pkl, and every storage uncompressed in <root>/data/<key>."""
    with zipfile.ZipFile(file) as archive:
        roots = [n[: -len("data.pkl")] for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _Refused("this is a zip archive, but not a PyTorch checkpoint")
        (root,) = roots
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Refused("it is compressed, which PyTorch's archives are not")
        if f"{root}byteorder" in archive.namelist():
            if archive.read(f"{root}byteorder") != b"little":
                raise _Refused("it was written by a big-endian machine")
        with archive.open(f"{root}data.pkl") as data:
            unpickler = _Unpickler(data)
            obj = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.data = archive.read(f"{root}data/{key}")
            if len(storage.data) != storage.nbytes:
                raise _Refused(
                    f"storage {key} has {len(storage.data)} bytes, {storage.nbytes} are expected"
                )
    return obj
