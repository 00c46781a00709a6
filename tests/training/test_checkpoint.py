"""Checkpoints: whole or not there, and no damage to one that goes unnoticed."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from isa_tf.training import Checkpoints, Damaged

ARRAYS = {
    "weights/00000": np.arange(6, dtype="float32").reshape(2, 3),
    "weights/00001": np.array(7, "int64"),
    "weights/00002": np.zeros((0, 4), "float16"),
    "weights/00003": np.array([True, False]),
}
FACTS = {"best": None, "rows": [{"step": 3, "loss": 0.1 + 0.2}], "name": "ß\n"}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def assert_holds(found, step, arrays=ARRAYS, facts=FACTS):
    their_facts, their_arrays = found
    assert their_facts == {**facts, "step": step}
    assert their_arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        theirs = their_arrays[name]
        assert (theirs.dtype, theirs.shape) == (array.dtype, array.shape)
        assert theirs.tobytes() == array.tobytes()


def names(checkpoints):
    return sorted(os.listdir(checkpoints.folder))


def test_what_is_written_is_read(checkpoints):
    assert checkpoints.paths() == [] and checkpoints.newest() is None
    path = checkpoints.write(12, ARRAYS, FACTS)
    assert path.name == "step-00000012.safetensors"
    assert_holds(checkpoints.read(path), 12)
    assert_holds(checkpoints.newest(), 12)
    transposed = {"a": np.arange(6.0).reshape(2, 3).T}  # not in C's order in memory
    assert_holds(checkpoints.read(checkpoints.write(13, transposed, FACTS)), 13, transposed)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_last_ones_are_kept_and_steps_are_sorted_as_numbers(checkpoints):
    for step in (9, 100_000_000, 99_999_999):
        checkpoints.write(step, ARRAYS, FACTS)
    assert [p.name for p in checkpoints.paths()] == [
        "step-100000000.safetensors",
        "step-99999999.safetensors",
        "step-00000009.safetensors",  # of the steps up to the one written, two
    ]
    (checkpoints.folder / "step-x.safetensors").write_text("of somebody else")
    (checkpoints.folder / "step-7.safetensors").write_text("so is this")
    checkpoints.write(100_000_001, ARRAYS, FACTS)
    assert_holds(checkpoints.newest(), 100_000_001)
    assert len(checkpoints.paths()) == 2 and len(names(checkpoints)) == 4
    # The same step again takes the place of the first.
    checkpoints.write(100_000_001, ARRAYS, {"other": 1})
    assert_holds(checkpoints.newest(), 100_000_001, facts={"other": 1})


def test_set_aside(checkpoints):
    for step in (3, 6):
        checkpoints.write(step, ARRAYS, FACTS)
    checkpoints.set_aside(after=6)
    assert len(checkpoints.paths()) == 2
    checkpoints.set_aside(after=3)
    assert names(checkpoints) == ["damaged-step-00000006.safetensors", "step-00000003.safetensors"]
    assert_holds(checkpoints.newest(), 3)


def test_what_is_not_finite_is_neither_written_nor_read(checkpoints):
    path = checkpoints.write(1, ARRAYS, FACTS)
    for value in (np.nan, np.inf, -np.inf):
        bad = {**ARRAYS, "weights/00000": np.array([1.0, value, np.inf], "float32")}
        with pytest.raises(FloatingPointError, match="weights/00000.*step 2"):
            checkpoints.write(2, bad, FACTS)
    assert names(checkpoints) == [path.name]
    # Large ones are finite though their sum is not one in their own type.
    checkpoints.write(3, {"a": np.full(9, 3e38, "float32")}, FACTS)


def test_every_byte_of_a_file_counts(checkpoints):
    path = checkpoints.write(5, ARRAYS, FACTS)
    content = path.read_bytes()
    unnoticed = []
    for i in range(len(content)):
        for mask in (0x01, 0x20):
            changed = bytearray(content)
            changed[i] ^= mask
            path.write_bytes(changed)
            try:
                found = checkpoints.read(path)
            except Damaged as error:
                assert str(path) in str(error)
                continue
            assert_holds(found, 5)
            unnoticed.append(i)
    # What may be another byte: padding, and how a name in the header is spelled.
    assert len(unnoticed) < 32


def test_a_file_cut_anywhere_is_damaged(checkpoints):
    path = checkpoints.write(5, ARRAYS, FACTS)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(Damaged, match="step-00000005"):
            checkpoints.read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(Damaged):
        checkpoints.read(path)


def resealed(path, change):
    """Writes a file anew with a format or facts that `change` gives, and the sum that fits them."""
    with safe_open(path, "numpy") as file:
        metadata = change(file.metadata())
    save_file(ARRAYS, path, metadata)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda m: {**m, "format": "isa_tf.training 2"}, "format 'isa_tf.training 2'"),
        (lambda m: {k: v for k, v in m.items() if k != "format"}, "format None"),
        (lambda m: {k: v for k, v in m.items() if k != "facts"}, "SHA-256"),
        (lambda m: {k: v for k, v in m.items() if k != "sha256"}, "SHA-256"),
        (lambda m: {**m, "facts": json.dumps({"step": 5})}, "SHA-256"),
        (lambda m: None, "format None"),
    ],
)
def test_other_metadata(checkpoints, change, said):
    path = checkpoints.write(5, ARRAYS, FACTS)
    resealed(path, change)
    with pytest.raises(Damaged, match=said):
        checkpoints.read(path)


def test_a_name_that_is_another_steps(checkpoints):
    path = checkpoints.write(5, ARRAYS, FACTS)
    other = path.replace(path.with_name("step-00000006.safetensors"))
    with pytest.raises(Damaged, match="step-00000006.*it is of step 5"):
        checkpoints.read(other)


def test_newest_passes_over_what_is_damaged_or_does_not_fit_and_names_it(checkpoints, caplog):
    checkpoints.keep = 3
    paths = [checkpoints.write(step, ARRAYS, FACTS) for step in (3, 6, 9)]
    paths[2].write_bytes(b"")

    def check(facts, arrays):
        if facts["step"] == 6:
            raise ValueError("it is of another model")

    with caplog.at_level(logging.WARNING):
        assert_holds(checkpoints.newest(check), 3)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2
    assert str(paths[2]) in warned[0] and "going on from step-00000003" in warned[0]
    assert str(paths[1]) in warned[1] and "another model" in warned[1]

    paths[0].unlink()
    with pytest.raises(Damaged, match="put one back from a copy, or begin again") as error:
        checkpoints.newest(check)
    assert error.value.path == str(paths[2]) and str(paths[1]) in str(error.value)


def test_a_folder_in_its_place(checkpoints):
    (checkpoints.folder / "step-00000004.safetensors").mkdir(parents=True)
    with pytest.raises(Damaged, match="step-00000004"):
        checkpoints.newest()


FULL = """
import resource, sys
import numpy as np
from isa_tf.training import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    checkpoints.write(3, {"a": np.ones(100_000, "float32")}, {})
except OSError as error:
    print(error)
"""


def test_a_full_disk(checkpoints):
    for step in (1, 2):
        checkpoints.write(step, ARRAYS, FACTS)
    before = names(checkpoints)
    said = subprocess.run(
        [sys.executable, "-c", FULL, str(checkpoints.folder)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(checkpoints.folder / "step-00000003.safetensors") in said
    assert "could not be written" in said and "what was there is as it was" in said
    assert names(checkpoints) == before
    assert_holds(checkpoints.newest(), 2)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_may_not_be_written_to(checkpoints):
    checkpoints.write(1, ARRAYS, FACTS)
    checkpoints.folder.chmod(0o500)
    try:
        with pytest.raises(OSError, match="step-00000002.*|could not be written"):
            checkpoints.write(2, ARRAYS, FACTS)
    finally:
        checkpoints.folder.chmod(0o700)
    assert_holds(checkpoints.newest(), 1)
