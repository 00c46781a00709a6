"""Files that are whole or not there."""

import os
import zipfile

import numpy as np
import pytest

from isa_tf import files


def test_what_fails_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "below" / "note.txt"
    with files.replacing(path) as new:
        new.write_text("older")
    with pytest.raises(RuntimeError), files.replacing(path) as new:
        new.write_text("half")
        raise RuntimeError
    assert path.read_text() == "older" and os.listdir(path.parent) == ["note.txt"]


def test_an_archive_that_inflates_too_far_is_refused_before_it_is(tmp_path):
    bomb, honest = tmp_path / "bomb.npz", tmp_path / "honest.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as member:
            for _ in range(200):
                member.write(bytes(2**20))
    np.savez_compressed(honest, a=np.zeros((1000, 1000), "float32"))
    with pytest.raises(ValueError, match=r"would inflate to 209,715,200; at most 71,\d+,\d+ are"):
        files.check_inflated(bomb)
    files.check_inflated(honest)
