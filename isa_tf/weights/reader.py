"""Reads checkpoints into NumPy arrays: without their frameworks, and without running anything.

A checkpoint of PyTorch or PaddlePaddle is a pickle, and a pickle is a program. The one here is
allowed to name the few things that tensors are made of, each of which stands for something of
this module's own; any other name is refused before it is looked up, so nothing is ever imported.
Arrays are views of bytes that were read, and no larger than those: a shape that lies about them
allocates nothing, here or where the array is used.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import safetensors

from isa_tf.files import INFLATED_FREE, INFLATED_RATIO, FileFault, check_inflated
from isa_tf.hints import StrPath

_HEAD = 512  # bytes of a file that tell its format
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
_PADDLE_DTYPES = {
    **{code: code for code in "b1 i1 i2 i4 i8 u1 u4 u8 f2 f4 f8 c8 c16".split()},
    "u2": ml_dtypes.bfloat16,  # Paddle has no uint16, and so writes bfloat16
}
_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class CheckpointError(FileFault):
    """A checkpoint that cannot be read: carries its `path` and the `reason`."""


def read_checkpoint(path: StrPath) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint, by name.

    The content tells the format, whatever the file is called:

    * PyTorch (`.pth`): the zip archive of version 1.6 and later, and the stream of pickles and
      raw storages before it;
    * PaddlePaddle (`.pdparams`): the pickle of `paddle.save`. Tensors that it cut into slices are
      joined again; and Detectron2 (`.pkl`), whose published files are such pickles of arrays;
    * safetensors (`.safetensors`);
    * NumPy (`.npz`), compressed or not.

    `state_dict` says what is taken of a nested one.

    What a file claims is held against what it has before any memory is taken for it: an archive
    may inflate to `isa_tf.files.INFLATED_FREE` bytes and `INFLATED_RATIO` times its size, an array
    must have exactly the bytes of its shape, and a tensor of PyTorch, whose strides may repeat
    numbers, no more bytes than its storage.

    Args:
        path: str or path-like.

    Returns:
        dict from tensor names to read-only arrays of the stored shapes and dtypes (bfloat16 as
        `ml_dtypes.bfloat16`). Tensors that share a storage share memory.

    Raises:
        CheckpointError: (a ValueError) where the file is cut short, is no checkpoint, claims more
            than it may, or its pickle names anything but tensors.
        OSError: where it cannot be opened.

    Example:

    >>> np.savez("weights.npz", stem=np.zeros((32, 3, 3, 3), "float32"))
    >>> read_checkpoint("weights.npz")["stem"].shape
    (32, 3, 3, 3)
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(_HEAD)
        file.seek(0)
        try:
            arrays = state_dict(_reader(head)(file))
        except _Refused as error:
            raise CheckpointError(path, str(error)) from None
        except Exception as error:
            # A damaged file can fail in nearly any way.
            raise CheckpointError(
                path, f"the checkpoint is damaged or cut short ({_describe(error)})"
            ) from error
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def state_dict(checkpoint: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a loaded checkpoint: of its "state_dict" or "model" entry where it has one.

    Entries that are no arrays (a version, an epoch) are left out.

    Args:
        checkpoint: dict of arrays by name, or {"state_dict": such a dict, ...} or, as Detectron2
            has it, {"model": such a dict, ...}.

    Raises:
        ValueError: where there is no array in it.
    """
    if isinstance(checkpoint, dict):
        inner = (checkpoint.get(name) for name in ("state_dict", "model"))
        entries = next((each for each in inner if isinstance(each, dict)), checkpoint)
        arrays = {str(key): _array(value) for key, value in entries.items()}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        if arrays:
            return arrays
    raise _Refused("the checkpoint holds no tensors by name")


def _array(value):
    """The array that an entry of a checkpoint stands for; None where it stands for none."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]  # Paddle writes some tensors as (name, array)
    if isinstance(value, (_Tensor, _Array)):
        return value.array()
    return value if isinstance(value, np.ndarray) else None


def _reader(head):
    """The function that reads a file which begins with `head`."""
    if not head:
        raise _Refused("the file is empty")
    # The first of a safetensors file is a number, and so may look like anything: it is asked
    # first. The number is the length of the header, of at most 100 MB.
    if head[4:9] == b"\0\0\0\0{":
        return _read_safetensors
    if head.lstrip(b"\xef\xbb\xbf\t\n\r ").startswith(b"<"):
        raise _Refused("this is a web page (HTML), not a checkpoint")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_zip
    if head.startswith(b"\x80"):
        legacy = _MAGIC.to_bytes(10, "little") in head[:32]
        return _read_legacy if legacy else _read_paddle
    if len(head) < 9:
        raise _Refused(f"the file is cut short: it has {len(head)} bytes")
    raise _Refused("this is not a checkpoint of PyTorch, PaddlePaddle, safetensors or NumPy")


class _Refused(ValueError):
    """A reason that is worth telling as it stands."""


def _describe(error):
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def check_declared(group: h5py.Group, size: int) -> None:
    """Refuses weights that declare far more bytes than there are, before any are read.

    Args:
        group: an open HDF5 file, or a group of it.
        size: int, bytes of the file.

    Raises:
        ValueError: where they declare more than `files.INFLATED_FREE` and `files.INFLATED_RATIO`
            times the size.
    """
    declared = 0

    def add(_, item):
        nonlocal declared
        if isinstance(item, h5py.Dataset):
            # Not `nbytes`, which overflows.
            declared += int(np.prod(item.shape, dtype=object)) * item.dtype.itemsize

    group.visititems(add)
    allowed = INFLATED_FREE + INFLATED_RATIO * size
    if declared > allowed:
        raise ValueError(
            f"weights of {size:,} bytes that would inflate to {declared:,}; at most {allowed:,} "
            "are read of them"
        )


def _count_bytes(shape, dtype):
    if not all(type(size) is int and size >= 0 for size in shape):
        raise _Refused("an array has a shape that is none")
    return math.prod(shape) * dtype.itemsize


def _check_bytes(shape, dtype, nbytes):
    """Refuses a shape and dtype that are not of exactly so many bytes."""
    expected = _count_bytes(shape, dtype)
    if nbytes != expected:
        raise _Refused(f"an array of shape {shape} has {nbytes} bytes, {expected} are expected")


def _view(data, shape, dtype, order="C"):
    """An array over `data`, which must be of exactly its size."""
    shape = tuple(shape)
    _check_bytes(shape, dtype, len(data))
    return np.ndarray(shape, dtype, data, order=order)


# === Stand-ins for what a checkpoint's pickle may name ===


class _StandIn:
    """Can be named; what more a pickle may do with it, the subclasses say."""

    __slots__ = ()

    def __call__(self, *_):
        raise _Refused("its pickle calls what it may only name; refused")

    def __setstate__(self, state):
        raise _Refused("its pickle changes what it may only name; refused")


class _Dict(dict[str, Any]):
    """What an OrderedDict becomes. Attributes that it had (`_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _MakeDict(_StandIn):
    __slots__ = ()

    def __call__(self, *items):
        return _Dict(*items)


class _StorageType(_StandIn):
    __slots__ = ("dtype",)

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


class _Storage(_StandIn):
    __slots__ = ("data", "dtype", "numel")

    def __init__(self, dtype, numel):
        if type(numel) is not int or numel < 0:
            raise _Refused("the size of a storage is no size")
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
        """The view of its storage; NumPy checks that it lies within.

        With strides of 0 it could lie within and still be of any size, once somebody copies it.
        """
        dtype = self.storage.dtype
        nbytes = _count_bytes(self.shape, dtype)
        if nbytes > self.storage.nbytes:
            raise _Refused(
                f"a tensor of shape {self.shape} has {nbytes} bytes, its storage only "
                f"{self.storage.nbytes}; refused"
            )
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


class _DType(_StandIn):
    """A dtype of numbers, which gets its byte order as a state."""

    __slots__ = ("dtype",)

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)

    def __setstate__(self, state):
        _, order, subarray, names, fields, *_ = state
        if order not in ("<", ">", "=", "|") or (subarray, names, fields) != (None,) * 3:
            raise _Refused("its pickle holds an array of structures; refused")
        self.dtype = self.dtype.newbyteorder(order)


class _MakeDType(_StandIn):
    __slots__ = ()

    def __call__(self, code, *_):
        if type(code) is not str or code not in _PADDLE_DTYPES:
            what = "objects" if code in ("O", "O8") else "what is no number"
            raise _Refused(f"its pickle holds an array of {what}; refused")
        return _DType(_PADDLE_DTYPES[code])


class _Array(_StandIn):
    """An array, which gets all that it has as a state."""

    __slots__ = ("_view",)

    def __init__(self):
        self._view = None

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        if isinstance(data, str):  # as Python 2 wrote it
            data = data.encode("latin1")
        if self._view is not None or not isinstance(dtype, _DType) or type(data) is not bytes:
            raise _Refused("its pickle holds an array that is not made as NumPy makes it; refused")
        self._view = _view(data, shape, dtype.dtype, "F" if is_fortran else "C")

    def array(self) -> np.ndarray:
        if self._view is None:
            raise _Refused("an array without contents")
        return self._view


class _Reconstruct(_StandIn):
    __slots__ = ()

    def __call__(self, *_):
        return _Array()


class _Encode(_StandIn):
    """`_codecs.encode`, by which protocol 2 writes bytes; a text said twice is encoded once."""

    __slots__ = ("_encoded",)

    def __init__(self):
        self._encoded = {}

    def __call__(self, text, encoding):
        if type(text) is not str or encoding != "latin1":
            raise _Refused("its pickle asks for an encoding that no tensor needs; refused")
        if text not in self._encoded:
            self._encoded[text] = text.encode("latin1")
        return self._encoded[text]


class _NoBytes(_StandIn):
    """`bytes`, by which protocol 2 writes that there are none."""

    __slots__ = ()

    def __call__(self):
        return b""


class _Pair(_StandIn):
    """`tuple`, by which Paddle writes a tensor with its name."""

    __slots__ = ()

    def __call__(self, items):
        if type(items) is not tuple:
            raise _Refused("its pickle asks for a tuple of what is none; refused")
        return items


_DICT_NAMES = {("collections", "OrderedDict"): _MakeDict()}
_TORCH_NAMES = {
    **_DICT_NAMES,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}
_NUMPY_NAMES = {
    **_DICT_NAMES,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): _StandIn(),
    ("numpy", "dtype"): _MakeDType(),
    ("__builtin__", "bytes"): _NoBytes(),
    ("__builtin__", "tuple"): _Pair(),
    ("builtins", "tuple"): _Pair(),
}


class _Unpickler(pickle.Unpickler):
    """Knows the names in `allowed`, no others."""

    def __init__(self, file, allowed, encoding):
        _check_opcodes(file)
        super().__init__(file, encoding=encoding)
        self.allowed = allowed

    def find_class(self, module, name):
        try:
            return self.allowed[module, name]
        except KeyError:
            raise _Refused(
                f"its pickle asks for {module}.{name}, which no tensor needs; refused"
            ) from None


class _TorchUnpickler(_Unpickler):
    """`storages` has what the tensors refer to."""

    def __init__(self, file):
        super().__init__(file, _TORCH_NAMES, "utf-8")
        self.storages = {}

    def persistent_load(self, pid):
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or type(key) is not str:
            raise _Refused("its pickle refers to something that is no storage; refused")
        if any(v is not None for v in view):
            raise _Refused("it stores views of storages, a form older than PyTorch 0.4")
        dtype = storage_type.dtype
        storage = self.storages.setdefault(key, _Storage(dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise _Refused(f"storage {key} is described in two ways")
        return storage


def _check_opcodes(file):
    """Refuses the opcodes of the pickle to come that reach past `find_class` and the bytes there.

    An extension's code may stand for a class that was imported before; the index of a memo
    would have as many places made for it.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name.startswith("EXT"):
            raise _Refused(
                f"its pickle asks for the extension {argument} ({opcode.name}), "
                "which no tensor needs; refused"
            )
        if opcode.name.endswith("PUT") and argument > count:
            raise _Refused(f"its pickle remembers {argument} things, but has {count}; refused")
    file.seek(start)


# === The forms of file ===


def _read_legacy(file):
    """Magic number, protocol, system, object, storage keys: five pickles; then raw storages."""
    if _TorchUnpickler(file).load() != _MAGIC:
        raise _Refused("this is a pickle, but not a PyTorch checkpoint")
    if _TorchUnpickler(file).load() != _PROTOCOL:
        raise _Refused(f"its protocol is not {_PROTOCOL}, the only one that is known")
    if not _TorchUnpickler(file).load()["little_endian"]:
        raise _Refused("it was written by a big-endian machine")
    unpickler = _TorchUnpickler(file)
    obj = unpickler.load()
    keys = _TorchUnpickler(file).load()
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
    """PyTorch's archive has a data.pkl in its one folder; NumPy's has arrays alone."""
    with zipfile.ZipFile(file) as archive:
        stored = sum(info.compress_size for info in archive.infolist())
        if stored > os.fstat(file.fileno()).st_size:
            raise _Refused("the zip archive claims more bytes than the file has")
        try:
            check_inflated(file)
        except ValueError as error:
            raise _Refused(str(error)) from None
        names = archive.namelist()
        roots = [name[: -len("data.pkl")] for name in names if name.endswith("/data.pkl")]
        if len(roots) == 1:
            return _read_torch(archive, roots[0])
        if all(name.endswith(".npy") for name in names):
            return {
                info.filename.removesuffix(".npy"): _read_npy(archive, info)
                for info in archive.infolist()
            }
        raise _Refused("this is a zip archive, but not a checkpoint of PyTorch or NumPy")


def _read_torch(archive, root):
    """<root>/data.pkl, and every storage uncompressed in <root>/data/<key>."""
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise _Refused("it is compressed, which PyTorch's archives are not")
    if f"{root}byteorder" in archive.namelist():
        if archive.read(f"{root}byteorder") != b"little":
            raise _Refused("it was written by a big-endian machine")
    unpickler = _TorchUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")))
    obj = unpickler.load()
    for key, storage in unpickler.storages.items():
        storage.data = archive.read(f"{root}data/{key}")
        if len(storage.data) != storage.nbytes:
            raise _Refused(
                f"storage {key} has {len(storage.data)} bytes, {storage.nbytes} are expected"
            )
    return obj


def _read_npy(archive, info):
    """The array of an .npy file: a version, a header, raw numbers, which are read at the end."""
    name = info.filename
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise _Refused(f"{name} is of version {version[0]}.{version[1]}, which no numbers need")
        if version == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
        if dtype.hasobject:
            raise _Refused(f"{name} is an array of objects, which only a pickle can hold; refused")
        if dtype.kind not in "biufc":
            raise _Refused(f"{name} is an array of {dtype}, which is no number")
        _check_bytes(shape, dtype, info.file_size - file.tell())
        return _view(file.read(), shape, dtype, "F" if is_fortran else "C")


def _read_safetensors(file):
    """The length of the header, the header, raw numbers; the library checks each against all."""
    data = file.read()
    lacking = 8 + int.from_bytes(data[:8], "little") - len(data)
    if lacking > 0:
        raise _Refused(f"the file is cut short: its header lacks {lacking} bytes")
    arrays = {}
    for name, tensor in safetensors.deserialize(data):
        if tensor["dtype"] not in _SAFETENSORS_DTYPES:
            raise _Refused(f"tensor {name} is of dtype {tensor['dtype']}, which is not read")
        dtype = np.dtype(_SAFETENSORS_DTYPES[tensor["dtype"]])
        arrays[name] = _view(tensor["data"], tensor["shape"], dtype)
    return arrays


def _read_paddle(file):
    """A pickled dict of NumPy arrays; "UnpackBigParamInfor@@" tells which were cut into slices."""
    data = file.read()
    names = {**_NUMPY_NAMES, ("_codecs", "encode"): _Encode()}
    obj = _Unpickler(io.BytesIO(data), names, "latin1").load()
    if not isinstance(obj, dict):
        return obj
    cut = obj.pop("UnpackBigParamInfor@@", {})
    slices = {key: [_array(obj.pop(name)) for name in cut[key]["slices"]] for key in cut}
    if sum(part.nbytes for parts in slices.values() for part in parts) > len(data):
        raise _Refused("its slices of tensors are larger than the file; refused")
    for key, parts in slices.items():
        joined = np.concatenate(parts, dtype=parts[0].dtype, casting="no")
        obj[key] = _view(joined.view(np.uint8), cut[key]["OriginShape"], joined.dtype)
    return obj
