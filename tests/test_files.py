"""Files that are whole or not there."""

import hashlib
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from isa_tf import data, files, training, weights


def test_what_fails_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "below" / "note.txt"
    with files.replacing(path) as new:
        new.write_text("older")
    with pytest.raises(RuntimeError), files.replacing(path) as new:
        new.write_text("half")
        raise RuntimeError
    assert path.read_text() == "older" and os.listdir(path.parent) == ["note.txt"]


def test_two_that_write_the_same_file_do_not_meet(tmp_path, monkeypatch):
    """Threads, or processes of two hosts, which may have one number."""
    path = tmp_path / "note.txt"

    def write(text):
        with files.replacing(path) as new:
            new.write_text(text)

    with files.replacing(path) as new:
        new.write_text("here")
        thread = threading.Thread(target=write, args=("a thread",))
        thread.start()
        thread.join()
        assert path.read_text() == "a thread"
        monkeypatch.setattr(files.socket, "gethostname", lambda: "elsewhere")
        write("elsewhere")
        assert path.read_text() == "elsewhere"
    assert path.read_text() == "here" and os.listdir(tmp_path) == ["note.txt"]


def test_a_folder_that_is_interrupted_as_it_takes_its_place(tmp_path, monkeypatch):
    path, rename = tmp_path / "model", Path.rename
    path.mkdir()
    (path / "older").touch()

    def interrupted(self, target):
        monkeypatch.undo()
        rename(self, target)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), files.replacing_folder(path) as new:
        new.mkdir()
        monkeypatch.setattr(Path, "rename", interrupted)
    assert os.listdir(tmp_path) == ["model"] and os.listdir(path) == ["older"]


def test_digest_of_a_folder_tells_names_and_contents(tmp_path):
    def folder(name, contents):
        for path, text in contents.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return files.digest(tmp_path / name)

    first = folder("first", {"a/b": "1", "c": "2"})
    assert first == folder("same", {"c": "2", "a/b": "1"})
    others = [{"a/b": "2", "c": "1"}, {"a-b": "1", "c": "2"}, {"a/b": "1", "c": "2", "d": ""}]
    assert len({first, *(folder(f"{i}", other) for i, other in enumerate(others))}) == 4
    assert files.digest(tmp_path / "first" / "c") == hashlib.sha256(b"2").hexdigest()


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


def process(code, *arguments):
    """A process that has files.py alone, which needs nothing of TensorFlow and begins at once."""
    folder = Path(files.__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
import sys, time, files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""
FULL = """
import resource, sys, files
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with files.replacing(sys.argv[1]) as new:
        new.write_bytes(bytes(20_000))
except OSError as error:
    print(error, error.filename)
"""


def test_a_lock_is_held_by_one_and_dies_with_it(tmp_path):
    path = tmp_path / "work.lock"
    path.write_bytes(b"\xff of who held it last")
    holder = process(HOLD, path)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"in use by process {holder.pid} on ") as error:
            with files.lock(path):
                pass
        assert error.value.filename == str(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    with files.lock(path):
        assert f"process {os.getpid()} on" in path.read_text()
        with pytest.raises(BlockingIOError), files.lock(path):  # nor twice by the same
            pass
    with files.lock(path):
        pass


def test_a_lock_in_use_whose_text_is_no_text(tmp_path):
    path = tmp_path / "work.lock"
    with files.lock(path):
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(BlockingIOError, match="in use by "), files.lock(path):
            pass


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    code = """
import os, signal, sys, files
with files.replacing(sys.argv[1]) as new:
    new.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "note.txt").write_text("older")
    writer = process(code, tmp_path / "note.txt")
    writer.communicate()
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 2 and left[0].startswith(".new-") and left[0].endswith("-note.txt")
    for name in (".lock", ".tmpaBc123", ".template", "new-1-a"):  # the second is of safetensors
        (tmp_path / name).write_text("")
    (tmp_path / ".new-1-model").mkdir()  # of `replacing_folder`
    files.sweep(tmp_path)
    kept = [".lock", ".new-1-model", ".template", "new-1-a", "note.txt"]
    assert sorted(os.listdir(tmp_path)) == kept
    assert (tmp_path / "note.txt").read_text() == "older"
    files.sweep(tmp_path / "nowhere")


def test_a_full_disk_is_told_with_the_name_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "note.bin"
    path.write_text("older")
    said, _ = process(FULL, path).communicate()
    assert f"{path}" in said and "could not be written" in said and "as it was" in said
    assert path.read_text() == "older" and os.listdir(tmp_path) == ["note.bin"]


def test_json_is_whole_or_none(tmp_path):
    path = tmp_path / "told.json"
    files.write_json(path, {"step": 3}, indent=1)
    assert path.read_text() == '{\n "step": 3\n}\n' and files.read_json(path) == {"step": 3}
    with pytest.raises(TypeError):
        files.write_json(path, {"step": object()})
    assert files.read_json(path) == {"step": 3} and list(tmp_path.iterdir()) == [path]
    for damaged in (b'{"step": ', b"[3]", b"\xff", b"[" * 100_000):
        path.write_bytes(damaged)
        assert files.read_json(path) is None
    assert files.read_json(tmp_path / "missing.json") is None


def test_size(tmp_path):
    (tmp_path / "inner").mkdir()
    for name, count in (("a", 3), ("inner/b", 4)):
        (tmp_path / name).write_bytes(bytes(count))
    assert files.size(tmp_path / "a") == 3 and files.size(tmp_path) == 7


@pytest.mark.parametrize("kind", [data.DataError, training.Damaged, weights.CheckpointError])
def test_what_is_wrong_with_a_file_can_be_told_by_another_process(kind):
    fault = kind(Path("folder") / "file", "it is torn")
    again = pickle.loads(pickle.dumps(fault))
    assert type(again) is kind and vars(again) == vars(fault)
    assert vars(again) == {"path": os.path.join("folder", "file"), "reason": "it is torn"}
    assert str(again) == str(fault) == f"{again.path}: it is torn"
