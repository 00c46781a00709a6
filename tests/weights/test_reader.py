"""The reader, against checkpoints that are written here as their frameworks write them."""

import collections
import contextlib
import copyreg
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import isa_tf
from isa_tf.weights import CheckpointError, read_checkpoint, reader, state_dict

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
STORAGES = {
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


class Storage:
    def __init__(self, values):
        self.values = np.asarray(values).ravel()
        self.key = str(id(self))


class Tensor:
    """A view of a storage; `parameter` wraps it as torch.nn.Parameter is wrapped."""

    def __init__(self, storage, shape, strides=None, offset=0, parameter=False):
        self.storage = storage if isinstance(storage, Storage) else Storage(storage)
        self.shape, self.offset, self.parameter = tuple(shape), offset, parameter
        if strides is None:
            strides = np.cumprod([1, *self.shape[:0:-1]])[::-1].tolist()[: len(self.shape)]
        self.strides = tuple(strides)

    @classmethod
    def of(cls, values):
        return cls(values, np.shape(values))


def _rebuild_tensor_v2():
    pass


def _rebuild_parameter():
    pass


@contextlib.contextmanager
def fake_torch():
    """Modules by PyTorch's names, for as long as their names are being written."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES:
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for function in (_rebuild_tensor_v2, _rebuild_parameter):
        function.__module__ = "torch._utils"
        setattr(utils, function.__name__, function)
    before = {name: sys.modules.pop(name, None) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield torch
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


class Pickler(pickle.Pickler):
    def __init__(self, file, torch, legacy):
        super().__init__(file, protocol=2)
        self.torch, self.legacy, self.storages = torch, legacy, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj
        name = next(n for n, dtype in STORAGES.items() if obj.values.dtype == dtype)
        pid = ("storage", getattr(self.torch, name), obj.key, "cpu", obj.values.size)
        return (*pid, None) if self.legacy else pid

    def reducer_override(self, obj):
        if not isinstance(obj, Tensor):
            return NotImplemented
        hooks = collections.OrderedDict()
        if obj.parameter:
            tensor = Tensor(obj.storage, obj.shape, obj.strides, obj.offset)
            return _rebuild_parameter, (tensor, True, hooks)
        arguments = (obj.storage, obj.offset, obj.shape, obj.strides, False, hooks)
        return _rebuild_tensor_v2, arguments


def legacy_bytes(obj, system=SYSTEM):
    file = io.BytesIO()
    with fake_torch() as torch:
        pickler = Pickler(file, torch, legacy=True)
        pickler.dump(obj)
    data = legacy_around(file.getvalue(), system, sorted(pickler.storages))
    for _, storage in sorted(pickler.storages.items()):
        data += struct.pack("<q", storage.values.size) + storage.values.tobytes()
    return data


def legacy_around(data, system=SYSTEM, keys=()):
    """A legacy file around a pickle that is made by hand."""
    headers = [pickle.dumps(header, protocol=2) for header in (MAGIC, 1001, system)]
    return b"".join([*headers, data, pickle.dumps(list(keys), protocol=2)])


def zip_bytes(obj, compression=zipfile.ZIP_STORED, byteorder="little"):
    data = io.BytesIO()
    with fake_torch() as torch:
        pickler = Pickler(data, torch, legacy=False)
        pickler.dump(obj)
    storages = {key: storage.values.tobytes() for key, storage in pickler.storages.items()}
    return zip_around(data.getvalue(), storages, compression, byteorder)


def zip_around(data, storages=(), compression=zipfile.ZIP_STORED, byteorder="little"):
    """An archive around a pickle that is made by hand."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("model/data.pkl", data)
        archive.writestr("model/byteorder", byteorder)
        for key in storages:
            archive.writestr(f"model/data/{key}", storages[key])
        archive.writestr("model/version", "3\n")
    return file.getvalue()


def paddle_bytes(arrays, protocol=4):
    """As paddle.save writes a state_dict: arrays, and a table of their other names."""
    table = {name: f"conv2d_{i}.w_0" for i, name in enumerate(arrays)}
    return pickle.dumps({**arrays, "StructuredToParameterName@@": table}, protocol)


def safetensors_bytes(tensors, data=b"", **more):
    """A safetensors file around a header that is made by hand: {name: (dtype, shape, ends)}"""
    entries = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, offsets) in tensors.items()
    }
    header = json.dumps(entries | more).encode()
    return struct.pack("<Q", len(header)) + header + data


def npz_bytes(compressed=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy_bytes(header, data=b"", version=(1, 0)):
    """An .npz file of one array "a", the header of which is made by hand."""
    file = io.BytesIO()
    text = str(header).encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY" + bytes(version) + length + text + data)
    return file.getvalue()


def text(value):
    """The opcode that pushes a str."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def good_files():
    """A file of each kind, with the same two tensors in it."""
    arrays = example()
    tensors = ordered(**{name: Tensor.of(values) for name, values in arrays.items()})
    return {
        "legacy": legacy_bytes(tensors),
        "zip": zip_bytes(tensors),
        "paddle2": paddle_bytes(arrays, 2),
        "paddle3": paddle_bytes(arrays, 3),
        "paddle4": paddle_bytes(arrays, 4),
        "safetensors": safetensors.numpy.save(arrays, {"format": "pt"}),
        "npz": npz_bytes(**arrays),
        "npz_compressed": npz_bytes(compressed=True, **arrays),
    }


def example():
    rng = np.random.default_rng(1)
    return {
        "conv.weight": rng.standard_normal((4, 5)).astype("float32"),
        "bn.steps": rng.integers(-9, 9, 3),
    }


@pytest.fixture(params=[legacy_bytes, zip_bytes], ids=["legacy", "zip"])
def to_bytes(request):
    return request.param


@pytest.fixture
def read(tmp_path):
    def read(data):
        path = tmp_path / "model.pth"
        path.write_bytes(data)
        return read_checkpoint(path)

    return read


def refused_in_little_memory(read, data, reason):
    """A file of lies about its size must cost less than a megabyte."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=rf"model\.pth: .*{reason}"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def ordered(**tensors):
    """As a module's state_dict: ordered, with metadata in an attribute."""
    result = collections.OrderedDict(tensors)
    result._metadata = collections.OrderedDict({"": {"version": 1}})
    return result


# === What is read ===


@pytest.mark.parametrize("dtype", STORAGES.values(), ids=STORAGES)
def test_dtypes(to_bytes, read, dtype):
    values = np.arange(-6, 6).astype(dtype).reshape(3, 4)
    result = read(to_bytes(ordered(a=Tensor.of(values))))
    assert list(result) == ["a"]
    assert result["a"].dtype == dtype
    np.testing.assert_array_equal(result["a"], values)


def test_shapes_strides_offsets_and_shared_storages(to_bytes, read):
    storage = Storage(np.arange(24, dtype="float32"))
    result = read(
        to_bytes(
            ordered(
                whole=Tensor(storage, (2, 3, 4)),
                transposed=Tensor(storage, (4, 6), (1, 4)),
                part=Tensor(storage, (2, 2), (6, 2), offset=5),
                expanded=Tensor(storage, (3, 2), (0, 1), offset=22),
                scalar=Tensor(np.int64(7), ()),
                empty=Tensor(np.zeros(0, "float32"), (0, 3)),
                parameter=Tensor(storage, (3,), parameter=True),
            )
        )
    )
    values = np.arange(24, dtype="float32")
    np.testing.assert_array_equal(result["whole"], values.reshape(2, 3, 4))
    np.testing.assert_array_equal(result["transposed"], values.reshape(6, 4).T)
    np.testing.assert_array_equal(result["part"], [[5, 7], [11, 13]])
    np.testing.assert_array_equal(result["expanded"], [[22, 23]] * 3)
    assert result["scalar"] == 7 and result["scalar"].shape == ()
    assert result["empty"].shape == (0, 3)
    np.testing.assert_array_equal(result["parameter"], [0, 1, 2])
    assert np.shares_memory(result["whole"], result["part"])
    assert not result["whole"].flags.writeable


def test_nested(to_bytes, read):
    model = ordered(w=Tensor.of(np.ones(3, "float32")))
    nested = {"state_dict": model, "epoch": 4, "optimizer": {"lr": [0.1]}}
    assert list(read(to_bytes(nested))) == ["w"]


def test_state_dict_leaves_out_what_is_no_tensor():
    array = np.zeros(2)
    assert state_dict({"a": array, "version": 3}) == {"a": array}
    assert state_dict({"state_dict": {"b": array}, "a": array}) == {"b": array}
    assert state_dict({"model": {"b": array}, "__author__": "somebody"}) == {"b": array}
    assert state_dict({"model": array}) == {"model": array}
    with pytest.raises(ValueError, match="no tensors"):
        state_dict({"epoch": 3})


@pytest.mark.parametrize("kind", good_files())
def test_content_tells_the_format(tmp_path, kind):
    for suffix in (".pth", ".pdparams", ".safetensors", ".npz", ""):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(good_files()[kind])
        assert_same(read_checkpoint(path), example())


def assert_same(result, expected):
    assert set(result) == set(expected)
    for name, values in expected.items():
        assert result[name].dtype == values.dtype
        assert not result[name].flags.writeable
        np.testing.assert_array_equal(result[name], values, strict=True)


def test_attributes_of_dicts_are_dropped(to_bytes, read):
    values = np.ones(3, "float32")
    for attributes in ({"_metadata": 1}, {"items": 1, "get": 2, "__class__": 3}):
        # As a dict's own attributes, and as those that are set one by one.
        for state in (attributes, (None, attributes)):
            items = iter([("w", Tensor.of(values))])
            model = Reduced(collections.OrderedDict, (), state, None, items)
            assert_same(read(to_bytes(model)), {"w": values})


# === PaddlePaddle ===

NUMBERS = "bool int8 int16 int32 int64 uint8 uint32 uint64 float16 float32 float64".split()
RECONSTRUCT = np.zeros(0).__reduce__()[0]


class Reduced:
    """Is pickled as `reduced` says."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def array_of(state):
    """Is pickled as an array, with a state that no array would have."""
    return Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), state)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", [*NUMBERS, "complex64", ">f4", ">i2"])
def test_paddle_dtypes(read, dtype, protocol):
    values = np.arange(-6, 6).astype(dtype).reshape(3, 4)
    assert_same(read(paddle_bytes({"a": values}, protocol)), {"a": values})


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_shapes(read, protocol):
    arrays = {
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), "float32"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(24).reshape(2, 3, 4)[:, ::2, 1:],
    }
    assert_same(read(paddle_bytes(arrays, protocol)), arrays)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_paddle_of_either_numpy(read, protocol, module):
    data = paddle_bytes(example(), protocol)
    written = RECONSTRUCT.__module__.encode()
    assert written in data
    assert_same(read(data.replace(written, module)), example())


def test_paddle_bfloat16(read):
    values = np.array([1.5, -2.25, 3e30], ml_dtypes.bfloat16)
    assert_same(read(paddle_bytes({"a": values.view(np.uint16)})), {"a": values})


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_parameters(read, protocol):
    pairs = {
        name: Reduced(tuple, ((f"linear_0.{name}", values),)) for name, values in example().items()
    }
    model = collections.OrderedDict(pairs)
    assert_same(read(pickle.dumps(model, protocol)), example())
    nested = {"state_dict": model, "epoch": 3, "opt": [model]}
    assert_same(read(pickle.dumps(nested, protocol)), example())


def test_paddle_of_python_2(read):
    values = np.array([1.5, -300.25], "float32")
    data = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + values.tobytes() + b"tbs."
    )
    assert_same(read(data), {"a": values})


def sliced(arrays, size, protocol=2):
    """As paddle.save cuts the large ones, above `size` numbers, in protocols 2 and 3."""
    small = {name: values for name, values in arrays.items() if values.size <= size}
    table = {}
    for name in arrays.keys() - small.keys():
        values = arrays[name].flatten()
        starts = range(0, values.size, size)
        parts = {f"{name}@@.{i}": values[start : start + size] for i, start in enumerate(starts)}
        small.update(parts)
        table[name] = {"OriginShape": arrays[name].shape, "slices": list(parts)}
    return {**small, "UnpackBigParamInfor@@": table}


@pytest.mark.parametrize("size", [1, 3, 7, 19, 20])
def test_paddle_slices(read, size):
    assert_same(read(pickle.dumps(sliced(example(), size), 2)), example())


def test_paddle_slices_of_bfloat16(read):
    values = np.arange(9).astype(ml_dtypes.bfloat16)
    data = pickle.dumps(sliced({"a": values.view(np.uint16)}, 4), 2)
    assert_same(read(data), {"a": values})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entry: entry.update(OriginShape=(4, 6)), "96 are expected"),
        (lambda entry: entry.update(OriginShape=(-1, 5)), "shape that is none"),
        (lambda entry: entry.update(OriginShape=(1 << 40, 1 << 40)), "are expected"),
        (lambda entry: entry["slices"].append(entry["slices"][0]), "KeyError"),
        (lambda entry: entry["slices"].pop(), "80 are expected"),
        (lambda entry: entry.pop("slices"), "slices"),
    ],
)
def test_paddle_slices_that_do_not_fit(read, change, reason):
    cut = sliced(example(), 7)
    change(cut["UnpackBigParamInfor@@"]["conv.weight"])
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{reason}"):
        read(pickle.dumps(cut, 2))


def test_paddle_slices_of_two_dtypes(read):
    cut = sliced(example(), 7)
    cut["conv.weight@@.1"] = cut["conv.weight@@.1"].astype("int32")
    with pytest.raises(CheckpointError, match="Cannot cast"):
        read(pickle.dumps(cut, 2))


def test_paddle_slices_that_share_their_bytes_multiply_nothing(read):
    # Forty names for one array of a megabyte, to be joined: forty megabytes of a file of one.
    values = np.zeros(1 << 17)
    cut = {f"a@@.{i}": values for i in range(40)}
    table = {"a": {"OriginShape": (40 << 17,), "slices": list(cut)}}
    data = pickle.dumps({**cut, "UnpackBigParamInfor@@": table}, 4)
    assert len(data) < 1.1 * values.nbytes
    with pytest.raises(CheckpointError, match="larger than the file"):
        read(data)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ((1, (3,), np.dtype("f4"), False, bytes(8)), "12 are expected"),
        ((1, (1,), np.dtype("f4"), False, bytes(8)), "4 are expected"),
        ((1, (1 << 40,), np.dtype("f4"), False, bytes(8)), "are expected"),
        ((1, (1 << 40,) * 9, np.dtype("f4"), False, bytes(8)), "are expected"),
        ((1, (-2, -1), np.dtype("f4"), False, bytes(8)), "shape that is none"),
        ((1, (True, 2), np.dtype("f4"), False, bytes(8)), "shape that is none"),
        ((1, ("2",), np.dtype("f4"), False, bytes(8)), "shape that is none"),
        ((1, (1,) * 99, np.dtype("f4"), False, bytes(4)), "damaged"),
        ((1, (2,), "f4", False, bytes(8)), "not made as NumPy"),
        ((1, (2,), np.dtype("f4"), False, [1, 2]), "not made as NumPy"),
        ((1, (2,), np.dtype("f4"), False, None), "not made as NumPy"),
        ((1, (2,), np.dtype("f4")), "damaged"),
        (None, "without contents"),
        ((1, (1,), np.dtype("O"), False, [print]), "array of objects"),
        ((1, (1,), np.dtype("U2"), False, bytes(8)), "no number"),
        ((1, (1,), np.dtype("M8[s]"), False, bytes(8)), "no number"),
        ((1, (1,), np.dtype([("x", "f4"), ("y", "O")]), False, bytes(8)), "no number"),
        ((1, (1,), np.dtype(("f4", (2,))), False, bytes(8)), "no number"),
        (
            (1, (1,), Reduced(np.dtype, ("f4",), (3, "<", None, ("x",), {"x": 1})), False, b"1234"),
            "array of structures",
        ),
        (
            (1, (1,), Reduced(np.dtype, ("f4",), (3, "os", None, None, None)), False, b"1234"),
            "array of structures",
        ),
        ((1, (1,), Reduced(np.dtype, (["f4"],)), False, bytes(4)), "no number"),
    ],
)
def test_paddle_arrays_that_lie(read, state, reason):
    data = pickle.dumps({"a": np.ones(3), "b": array_of(state)}, 2)
    refused_in_little_memory(read, data, reason)


@pytest.mark.parametrize(
    ("again", "reason"),
    [
        (b"h\x00b", "not made as NumPy"),
        (b"N\x85R", "calls what"),
        (b"Nb", "damaged"),
        (b"N}X\x05\x00\x00\x00_viewNs\x86b", "damaged"),
    ],
)
def test_paddle_arrays_are_made_once(read, again, reason):
    # The state is remembered as 0. Then the array gets a second state, is called, ...
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x04\x85cnumpy\ndtype\n"
        b"X\x02\x00\x00\x00i1\x85R\x89C\x04abcdtq\x00b"
    )
    start = b"\x80\x03}X\x01\x00\x00\x00a" + array
    assert read(start + b"s.")["a"].tobytes() == b"abcd"
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{reason}"):
        read(start + again + b"s.")


# === safetensors and NumPy ===


@pytest.mark.parametrize("dtype", [*NUMBERS, "uint16"])
def test_safetensors_dtypes(read, dtype):
    values = np.arange(-6, 6).astype(dtype).reshape(3, 4)
    arrays = {"a": values, "b": np.zeros((0, 2), dtype), "c": values[0, 1:2].reshape(())}
    assert_same(read(safetensors.numpy.save(arrays)), arrays)


def test_safetensors_bfloat16(read):
    values = np.array([[1.5, -2.25], [3e30, 0]], ml_dtypes.bfloat16)
    data = safetensors_bytes(
        {"a": ("BF16", [2, 2], [0, 8]), "b": ("U8", [1], [8, 9])},
        values.tobytes() + b"\x05",
        __metadata__={"format": "pt"},
    )
    assert_same(read(data), {"a": values, "b": np.array([5], "uint8")})


@pytest.mark.parametrize("length", [0x20, 0x3C, 0x80, 0x280, 0x4B50])
def test_safetensors_whose_length_looks_like_another_format(read, length):
    # A space, "<", a pickle, a pickle of protocol 2, "PK".
    if length == 0x20:
        data = struct.pack("<Q", length) + b"{}".ljust(length)
        with pytest.raises(CheckpointError, match="no tensors"):
            read(data)
        return
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    data = struct.pack("<Q", length) + header.ljust(length) + b"\x07"
    assert_same(read(data), {"a": np.array([7], "uint8")})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (safetensors_bytes({}), "no tensors"),
        (safetensors_bytes({"a": ("F32", [2], [0, 8])}, bytes(9)), "damaged"),
        (safetensors_bytes({"a": ("F32", [3], [0, 8])}, bytes(8)), "damaged"),
        (safetensors_bytes({"a": ("F32", [1 << 40, 1 << 40], [0, 8])}, bytes(8)), "damaged"),
        (safetensors_bytes({"a": ("F32", [1 << 40], [0, 4 << 40])}, bytes(8)), "damaged"),
        (safetensors_bytes({"a": ("F32", [-2], [0, 8])}, bytes(8)), "damaged"),
        (safetensors_bytes({"a": ("F9", [2], [0, 8])}, bytes(8)), "damaged"),
        (safetensors_bytes({"a": ("F8_E5M2", [8], [0, 8])}, bytes(8)), "a is of dtype F8_E5M2"),
        (
            safetensors_bytes({"a": ("U8", [8], [0, 8]), "b": ("U8", [8], [0, 8])}, bytes(8)),
            "damaged",
        ),
        (struct.pack("<Q", 1 << 31) + b"{", "its header lacks 2147483647 bytes"),
        (struct.pack("<Q", 4) + b"{]]]", "damaged"),
    ],
)
def test_safetensors_that_lie(read, data, reason):
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{reason}"):
        read(data)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [*NUMBERS, "uint16", "complex64", ">f4"])
def test_npz_dtypes(read, dtype, compressed):
    values = np.arange(-6, 6).astype(dtype).reshape(3, 4)
    arrays = {
        "a": values,
        "fortran": np.asfortranarray(values),
        "scalar": values[0, 1:2].reshape(()),
        "empty": np.zeros((0, 3), dtype),
        "folder/name.with.dots": values[::2],
    }
    assert_same(read(npz_bytes(compressed, **arrays)), arrays)


def test_npz_name_of_a_nested_checkpoint(read):
    assert_same(read(npz_bytes(state_dict=np.ones(2))), {"state_dict": np.ones(2)})


F4 = {"descr": "<f4", "fortran_order": False, "shape": (2,)}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npz_bytes(), "no tensors"),
        (npz_bytes(a=np.ones(2), b=np.array([None, 1])), r"b\.npy is an array of objects.*refused"),
        (npz_bytes(a=np.ones(2), b=np.array(["x"])), r"b\.npy .* no number"),
        (npz_bytes(a=np.zeros(2, [("x", "f4")])), r"a\.npy .* no number"),
        (npz_bytes(a=np.zeros(2, [("x", "O")])), r"a\.npy is an array of objects"),
        (npz_bytes(a=np.zeros(2, ml_dtypes.bfloat16)), r"a\.npy .* no number"),
        (npy_bytes(F4, bytes(7)), "8 are expected"),
        (npy_bytes(F4, bytes(9)), "8 are expected"),
        (npy_bytes(F4 | {"shape": (1 << 40,)}, bytes(8)), "are expected"),
        (npy_bytes(F4 | {"shape": (1 << 40, 1 << 40)}, bytes(8)), "are expected"),
        (npy_bytes(F4 | {"shape": (-1, -2)}, bytes(8)), "shape that is none"),
        (npy_bytes(F4 | {"descr": "|O"}, pickle.dumps([1])), "array of objects"),
        (npy_bytes("__import__('os').system('true')"), "damaged"),
        (npy_bytes(F4, bytes(8), version=(3, 0)), "version 3.0"),
        (npy_bytes(F4, bytes(8), version=(9, 9)), "version 9.9"),
    ],
)
def test_npz_that_lies(read, data, reason):
    refused_in_little_memory(read, data, reason)


def test_npz_that_inflates_too_far(read):
    """Refused before a member is read, however honest its header is."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, F4 | {"shape": (1 << 26,)})
            for _ in range(16):
                member.write(bytes(1 << 24))
    assert len(file.getvalue()) < 1 << 20
    refused_in_little_memory(read, file.getvalue(), "would inflate to 268,435,...; at most")


def test_npz_whose_header_is_read_first(read):
    """Within the limit of all archives, and yet not the array that its header tells of."""
    data = npz_bytes(compressed=True, a=np.zeros(12 << 20, "float32"))
    assert len(data) < 1 << 20 and read(data)["a"].nbytes == 48 << 20
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, F4)
            member.write(bytes(48 << 20))
    refused_in_little_memory(read, file.getvalue(), r"shape \(2,\) has 50331648 bytes, 8 are")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npz_versions(read, version):
    values = np.array([1, 2], "float32")
    assert_same(read(npy_bytes(F4, values.tobytes(), version)), {"a": values})


# === What is refused ===


@pytest.fixture(
    params=[legacy_around, zip_around, lambda data: data], ids=["legacy", "zip", "paddle"]
)
def around(request):
    """Makes a checkpoint of each form around a pickle."""
    return request.param


def opening(path):
    return f"open({str(path)!r}, 'w').close()"


ATTACKS = {
    "system": (lambda path: Reduced(os.system, (f"touch {path}",)), r"asks for \w+\.system"),
    "exec": (lambda path: Reduced(exec, (opening(path),)), r"asks for \w+\.exec"),
    "eval": (lambda path: Reduced(eval, (opening(path),)), r"asks for \w+\.eval"),
    "open": (lambda path: Reduced(open, (str(path), "w")), r"asks for \w+\.open"),
    "popen": (
        lambda path: Reduced(subprocess.Popen, (["touch", str(path)],)),
        r"asks for (subprocess|commands)\.Popen",  # in Python 3 and in Python 2
    ),
    "memmap": (
        lambda path: Reduced(np.memmap, (str(path), "f4", "w+", 0, (3,))),
        r"asks for numpy[\w.]*\.memmap",
    ),
    "tofile": (
        lambda path: Reduced(np.ndarray.tofile, (np.ones(3), str(path))),
        r"asks for \w+\.getattr|asks for numpy\.ndarray\.tofile",
    ),
    "objects": (
        lambda path: np.array([Reduced(os.system, (f"touch {path}",))], dtype=object),
        r"array of objects|asks for numpy[\w.]*\._reconstruct",
    ),
    "state": (
        lambda path: array_of(Reduced(os.system, (f"touch {path}",))),
        r"asks for \w+\.system|asks for numpy[\w.]*\._reconstruct",
    ),
    "dtype": (
        lambda path: Reduced(np.dtype, (Reduced(os.system, (f"touch {path}",)),)),
        r"asks for \w+\.system|asks for numpy\.dtype",
    ),
    "key": (
        lambda path: {Reduced(os.system, (f"touch {path}",)): 1},
        r"asks for \w+\.system",
    ),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(around, read, tmp_path, attack, protocol):
    make, reason = ATTACKS[attack]
    target = tmp_path / "written"
    data = pickle.dumps({"a": [1, 2], "b": make(target)}, protocol)
    with contextlib.suppress(TypeError):  # as 0 is no state and no dtype
        result = pickle.loads(data)
        if attack == "popen":
            result["b"].wait()
        elif attack == "open":
            result["b"].close()
        del result
    assert target.exists(), "the attack does nothing"
    target.unlink()
    with pytest.raises(CheckpointError, match=rf"model\.pth: its pickle .*({reason}).*refused"):
        read(around(data))
    assert os.listdir(tmp_path) == ["model.pth"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"cos\nsystem\n", b"\x85R."),  # REDUCE
        (text("os") + text("system") + b"\x93", b"\x85R."),  # STACK_GLOBAL
        (b"(", b"ios\nsystem\n."),  # INST
        (b"(cos\nsystem\n", b"o."),  # OBJ
        (b"csubprocess\nPopen\n", b"\x85\x81."),  # NEWOBJ
        (b"csubprocess\nPopen\n", b"\x85}\x92."),  # NEWOBJ_EX
        (b"}" + text("a") + b"cos\nsystem\n", b"\x85Rs."),  # in a dict
        (b"cos\nsystem\n", b"b."),  # BUILD
    ],
)
def test_attacks_by_opcodes(around, read, tmp_path, before, after):
    command = text(f"touch {tmp_path / 'written'}")
    with pytest.raises(CheckpointError, match=r"asks for (os\.system|subprocess\.Popen)"):
        read(around(b"\x80\x04" + before + command + after))
    assert os.listdir(tmp_path) == ["model.pth"]


@pytest.mark.parametrize("opcode", [b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"])
def test_attacks_by_extensions(around, read, tmp_path, opcode):
    target = tmp_path / "written"
    data = b"\x80\x02" + opcode + text(f"touch {target}") + b"\x85R."
    system = os.system.__module__, "system", 0xF0
    copyreg.add_extension(*system)
    try:
        pickle.loads(data)
        assert target.exists(), "the attack does nothing"
        target.unlink()
        # From here on `pickle` knows the function by its code, and asks nobody for it.
        with pytest.raises(CheckpointError, match=r"asks for the extension 240 .*refused"):
            read(around(data))
    finally:
        copyreg.remove_extension(*system)
    assert os.listdir(tmp_path) == ["model.pth"]


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        b"ctorch\n_utils._rebuild_tensor_v2\n.",
        b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
        b"ctorch.hub\nload\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"cnumpy\nload\n.",
        b"c_codecs\nlookup\n.",
        b"cbuiltins\ngetattr\n.",
        b"ccopyreg\n_reconstructor\n.",
    ],
)
def test_names_beside_tensors_are_refused(around, read, opcodes):
    with pytest.raises(CheckpointError, match="asks for .*refused"):
        read(around(b"\x80\x04" + opcodes))


NDARRAY, DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        (NDARRAY + b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.", "calls what it may only name"),
        (NDARRAY + b"}X\x01\x00\x00\x00xK\x01sb.", "changes what it may only name"),
        (NDARRAY + b")\x81.", "damaged"),
        (NDARRAY + b"K\x01a.", "damaged"),
        (DTYPE + b"(K\x03X\x01\x00\x00\x00<NNNtb.", "changes what it may only name"),
        (DTYPE + b"X\x02\x00\x00\x00f4\x85R)R.", "calls what it may only name"),
        (b"c__builtin__\nbytes\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.", "damaged"),
        (b"cbuiltins\ntuple\n]\x85R.", "tuple of what is none"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "encoding"),
        (b"c_codecs\nencode\n]X\x06\x00\x00\x00latin1\x86R.", "encoding"),
        (b"c_codecs\nencode\n}b.", "changes what it may only name"),
        (b"X\x01\x00\x00\x00aQ.", "persistent"),
    ],
)
def test_numpy_names_can_do_little(read, opcodes, reason):
    refused_in_little_memory(read, b"\x80\x02" + opcodes, reason)


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        # FloatStorage is pushed, then told (BUILD) that its dtype is another.
        (
            b"ctorch\nFloatStorage\nN}X\x05\x00\x00\x00dtypeX\x01\x00\x00\x00Os\x86b.",
            "changes what",
        ),
        (b"ctorch\nFloatStorage\nK\x03\x85R.", "calls what"),
        (b"ctorch\nFloatStorage\n)\x81.", "damaged"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}b.", "changes what"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", "without a storage"),
        (b"ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsK\x01sb.", "changes what"),
        (b"X\x01\x00\x00\x00aQ.", "damaged"),
        (b"(X\x07\x00\x00\x00storageNNNNtQ.", "no storage"),
        (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nK\x00NK\x01tQ.", "no storage"),
    ],
)
def test_torch_names_can_do_little(read, opcodes, reason):
    for around in (legacy_around, zip_around):
        with pytest.raises(CheckpointError, match=rf"model\.pth: .*{reason}"):
            read(around(b"\x80\x02" + opcodes))


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        (b"}r\xff\xff\xff\x7f.", "remembers 2147483647 things"),  # LONG_BINPUT
        (b"}p2147483647\n.", "remembers 2147483647 things"),  # PUT
        (b"\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", "damaged"),  # BINBYTES8
        (b"B" + struct.pack("<I", 1 << 31) + b"abc.", "damaged"),  # BINBYTES
        (b"X" + struct.pack("<I", 1 << 31) + b"abc.", "damaged"),  # BINUNICODE
        (b"\x95" + struct.pack("<Q", 1 << 40) + b"}.", "damaged"),  # FRAME
    ],
)
def test_opcodes_that_lie_about_sizes(around, read, opcodes, reason):
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{reason}"):
        read(around(b"\x80\x04" + opcodes))


def test_no_module_is_imported(tmp_path):
    files = good_files()
    for name, around in (("legacy", legacy_around), ("zip", zip_around), ("paddle", bytes)):
        files[f"{name}_bad"] = around(b"\x80\x02cthis\ns\n.")
        files[f"{name}_worse"] = around(pickle.dumps({"a": Reduced(os.system, ("true",))}))
    files["npz_bad"] = npz_bytes(a=np.array([None]))
    files["html"] = b"<html></html>"
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    # The reader's file alone, and a package that is a folder, as the real one would bring
    # TensorFlow and more with it.
    script = f"""
import importlib.util, pathlib, sys, types
sys.modules["isa_tf"] = types.ModuleType("isa_tf")
sys.modules["isa_tf"].__path__ = [{os.path.dirname(isa_tf.__file__)!r}]
spec = importlib.util.spec_from_file_location("reader", {reader.__file__!r})
reader = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reader)
before = set(sys.modules)
read, refused = 0, 0
for path in pathlib.Path({str(tmp_path)!r}).iterdir():
    try:
        reader.read_checkpoint(path)
        read += 1
    except reader.CheckpointError:
        refused += 1
# zipfile's codec for the names of files is the one thing that comes on demand.
print(read, refused, sorted(set(sys.modules) - before - {{"encodings.cp437"}}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "8 8 []\n", result.stderr


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(np.zeros(6, "float32"), (7,)),
        Tensor(np.zeros(6, "float32"), (2, 3), (3, 2)),
        Tensor(np.zeros(6, "float32"), (3,), offset=4),
        Tensor(np.zeros(6, "float32"), (3,), offset=-1),
        Tensor(np.zeros(6, "float32"), (3,), (-1,)),
        Tensor(np.zeros(6, "float32"), (-3,), (1,)),
        Tensor(np.zeros(6, "float32"), (1 << 40,), (1 << 40,)),
    ],
)
def test_tensors_beyond_their_storage(to_bytes, read, tensor):
    with pytest.raises(CheckpointError):
        read(to_bytes(ordered(a=tensor)))


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 20, 1 << 20), (7,)])
def test_strides_of_zero_make_no_more_of_a_storage(to_bytes, read, shape):
    """Each number of such a tensor lies within its storage, so NumPy would make a view of it."""
    tensor = Tensor(np.zeros(6, "float32"), shape, (0,) * len(shape))
    data = to_bytes(ordered(a=tensor))
    size = 4 * np.prod(shape)
    reason = rf"tensor of shape {re.escape(str(shape))} has {size} bytes, its storage only 24"
    refused_in_little_memory(read, data, reason)


@pytest.mark.parametrize("kind", good_files())
def test_truncated(read, kind):
    data = good_files()[kind]
    for end in {*range(64), *range(64, len(data), 3), *range(len(data) - 64, len(data))}:
        with pytest.raises(CheckpointError, match=r"model\.pth: .*(empty|cut short)"):
            read(data[:end])


def test_truncation_names_the_storage(read):
    data = legacy_bytes(ordered(a=Tensor.of(np.ones(5, "float32"))))
    with pytest.raises(CheckpointError, match="lacks 3 bytes"):
        read(data[:-3])


# Python's reader of pickles unescapes what is damaged, too.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning:pickletools")
@pytest.mark.parametrize("kind", good_files())
def test_damage_never_escapes(read, kind):
    data = good_files()[kind]
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(CheckpointError):
            read(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html>404</html>", "web page"),
        (b"<html></html>", "web page"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "not a checkpoint of PyTorch"),
        (bytes(1000), "not a checkpoint of PyTorch"),
        (b"abc", "cut short: it has 3 bytes"),
        (pickle.dumps({"a": 1}), "no tensors"),
        (pickle.dumps([np.ones(3)], 4), "no tensors"),
        (paddle_bytes({}), "no tensors"),
        (zip_bytes(ordered())[:4], "damaged"),
        (zip_bytes({}, compression=zipfile.ZIP_DEFLATED), "compressed"),
        (zip_bytes({}, byteorder="big"), "big-endian"),
        (legacy_bytes({}, system={**SYSTEM, "little_endian": False}), "big-endian"),
        (legacy_bytes({"epoch": 3}), "no tensors"),
        (zip_bytes([1, 2]), "no tensors"),
    ],
)
def test_reasons(read, data, reason):
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{reason}"):
        read(data)


def test_other_zip(read):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(
        CheckpointError, match="zip archive, but not a checkpoint of PyTorch or NumPy"
    ):
        read(file.getvalue())


def test_zip_whose_entries_overlap(read):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", bytes(1 << 20))
        archive.filelist *= 100
    with pytest.raises(CheckpointError, match="claims more bytes than the file has"):
        read(file.getvalue())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pth")
