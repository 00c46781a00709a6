"""The reader, against checkpoints that are written here as PyTorch writes them."""

import collections
import contextlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from isa_tf.weights import CheckpointError, read_checkpoint, state_dict

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
        for header in (MAGIC, 1001, system):
            pickle.dump(header, file, protocol=2)
        pickler = Pickler(file, torch, legacy=True)
        pickler.dump(obj)
    pickle.dump(sorted(pickler.storages), file, protocol=2)
    for _, storage in sorted(pickler.storages.items()):
        file.write(struct.pack("<q", storage.values.size) + storage.values.tobytes())
    return file.getvalue()


def zip_bytes(obj, compression=zipfile.ZIP_STORED, byteorder="little"):
    data, file = io.BytesIO(), io.BytesIO()
    with fake_torch() as torch:
        pickler = Pickler(data, torch, legacy=False)
        pickler.dump(obj)
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("model/data.pkl", data.getvalue())
        archive.writestr("model/byteorder", byteorder)
        for key, storage in pickler.storages.items():
            archive.writestr(f"model/data/{key}", storage.values.tobytes())
        archive.writestr("model/version", "3\n")
    return file.getvalue()


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
    with pytest.raises(ValueError, match="no tensors"):
        state_dict({"epoch": 3})


def test_torch_is_not_imported(to_bytes, read):
    before = set(sys.modules)
    read(to_bytes(ordered(a=Tensor.of(np.ones(3, "float32")))))
    assert not [name for name in set(sys.modules) - before if name.startswith("torch")]


# === What is refused ===


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_malicious_pickle(to_bytes, read, tmp_path):
    target = tmp_path / "written"
    evil = Evil(os.system, f"touch {target}")
    pickle.loads(pickle.dumps(evil))
    assert target.exists(), "the attack does nothing"
    target.unlink()
    with pytest.raises(CheckpointError, match=r"model\.pth.*asks for \w+\.system"):
        read(to_bytes(ordered(a=Tensor.of(np.ones(3, "float32")), b=evil)))
    assert not target.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        b"ctorch\n_utils._rebuild_tensor_v2\n.",
        b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
        b"ctorch.hub\nload\n.",
        b"cnumpy.core.multiarray\n_reconstruct\n.",
    ],
)
def test_names_beside_tensors_are_refused(read, opcodes):
    with pytest.raises(CheckpointError, match="asks for .*refused"):
        read(b"\x80\x04" + opcodes)


def test_stand_ins_cannot_be_changed(read):
    # FloatStorage is pushed, then told (BUILD) that its dtype is another.
    state = b"N}X\x05\x00\x00\x00dtypeX\x01\x00\x00\x00Os\x86b."
    with pytest.raises(CheckpointError, match="changes what"):
        read(b"\x80\x02ctorch\nFloatStorage\n" + state)
    values = np.ones(3, "float32")
    assert read(legacy_bytes(ordered(a=Tensor.of(values))))["a"].dtype == np.float32


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


def test_truncated(to_bytes, read):
    data = to_bytes(ordered(a=Tensor.of(np.ones((4, 5), "float32")), b=Tensor.of(np.ones(2))))
    for end in {*range(0, len(data), 7), *range(len(data) - 40, len(data))}:
        with pytest.raises(CheckpointError, match=r"model\.pth: "):
            read(data[:end])


def test_truncation_names_the_storage(read):
    data = legacy_bytes(ordered(a=Tensor.of(np.ones(5, "float32"))))
    with pytest.raises(CheckpointError, match="lacks 3 bytes"):
        read(data[:-3])


def test_damage_never_escapes(to_bytes, read):
    data = to_bytes(ordered(a=Tensor.of(np.ones((4, 5), "float32")), b=Tensor.of(np.ones(2))))
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
        (b"version https://git-lfs.github.com/spec/v1", "not a PyTorch checkpoint"),
        (pickle.dumps({"a": 1}), "not a PyTorch checkpoint"),
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
    with pytest.raises(CheckpointError, match="zip archive, but not"):
        read(file.getvalue())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pth")
