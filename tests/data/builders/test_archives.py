"""A file is found and read alike, however it is packed."""

import io
import pickle
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from isa_tf.data import DataError
from isa_tf.data.builders.archives import Archive, Files

CONTENTS = {
    f"set/images/{city}/{i}_photo.jpg": np.random.default_rng(i).bytes(500 + 70 * i)
    for city in ("aachen", "ulm")
    for i in range(6)
}
JUNK = {
    "__MACOSX/set/images/aachen/._0_photo.jpg": b"junk",
    "set/images/aachen/.DS_Store": b"junk",
    "set/images/aachen/._1_photo.jpg": b"junk",
    "set/readme.txt": b"\xef\xbb\xbfone\n\n two \n",
}
FILES = {**CONTENTS, **JUNK}


def unpacked(folder):
    for name, contents in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)


def zipped(file, method=zipfile.ZIP_DEFLATED, entries=None):
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.mkdir("set")
        for name, contents in (entries or FILES).items():
            archive.writestr(name, contents)


def tarred(path, mode):
    with tarfile.open(path, mode) as archive:
        for name, contents in FILES.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))


def nested(folder, method):
    inner = io.BytesIO()
    zipped(inner, method)
    middle = io.BytesIO()
    zipped(middle, method, {"a/set.zip": inner.getvalue(), "a/list.txt": b"list"})
    zipped(folder / "all.zip", method, {"b/set.zip": middle.getvalue()})


WAYS = {
    "unpacked": lambda folder: unpacked(folder),
    "unpacked deeper": lambda folder: unpacked(folder / "one" / "two"),
    "zip": lambda folder: zipped(folder / "all.zip"),
    "zip below": lambda folder: ((folder / "x").mkdir(), zipped(folder / "x" / "all.zip")),
    "zip stored": lambda folder: zipped(folder / "all.zip", zipfile.ZIP_STORED),
    "tar": lambda folder: tarred(folder / "all.tar", "w"),
    "tgz": lambda folder: tarred(folder / "all.tgz", "w:gz"),
    "zip in zip in zip": lambda folder: nested(folder, zipfile.ZIP_DEFLATED),
    "zip stored in zip": lambda folder: nested(folder, zipfile.ZIP_STORED),
}


@pytest.fixture
def folders(tmp_path):
    for name in ("archives", "scratch"):
        (tmp_path / name).mkdir()
    return tmp_path / "archives", tmp_path / "scratch"


def archive_of(folder):
    suffixes = {path.suffix for path in folder.rglob("all.*")}
    return Archive(f"all{suffixes.pop() if suffixes else '.zip'}", "a friend", ("set.zip",))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_packing(way, folders):
    folder, scratch = folders
    WAYS[way](folder)
    archive, files = archive_of(folder), Files(folder, scratch)
    for found in (files, pickle.loads(pickle.dumps(files))):
        members = found.find("images/*/*_photo.jpg", archive)
        assert [m.stem for m in members] == [f"{i}_photo" for i in range(6)] * 2
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(found.read, members * 5))
        assert read == list(CONTENTS.values()) * 5
        assert found.lines("set/readme.txt", archive) == ["one", "two"]
        assert found.find("images/ulm/*.png", archive, optional=True) == []
        found.close()
    (folder / "late.txt").write_text("")


def test_what_is_unpacked_comes_first(folders):
    folder, scratch = folders
    zipped(folder / "all.zip", entries={"set/a.txt": b"packed"})
    (folder / "set").mkdir()
    (folder / "set" / "a.txt").write_text("unpacked")
    files = Files(folder, scratch)
    archive = archive_of(folder)
    assert files.read(files.one("set/a.txt", archive)) == b"unpacked"


def test_only_what_is_needed_is_unpacked_of_a_compressed_tar(folders):
    folder, scratch = folders
    tarred(folder / "all.tgz", "w:gz")
    archive = Archive("all.tgz", "a friend", needed=("images/ulm/*.jpg",))
    files = Files(folder, scratch)
    assert len(files.find("images/*/*.jpg", archive)) == 6
    (copy,) = scratch.iterdir()
    with tarfile.open(copy) as tar:
        assert all("ulm" in name for name in tar.getnames())


@pytest.mark.parametrize(
    "pattern, name, matches",
    [
        ("a/*.png", "x/a/1.png", True),
        ("a/*.png", "a/1.png", True),
        ("a/*.png", "xa/1.png", False),
        ("a/*.png", "a/b/1.png", False),
        ("a/*/1.png", "a/b/1.png", True),
        ("a.b/*.png", "aXb/1.png", False),
        ("a[1]/*.png", "a[1]/1.png", True),
    ],
)
def test_patterns(folders, pattern, name, matches):
    folder, scratch = folders
    zipped(folder / "all.zip", entries={name: b"1"})
    found = Files(folder, scratch).find(pattern, archive_of(folder), optional=True)
    assert bool(found) == matches


@pytest.mark.parametrize("way", ["zip", "tar", "tgz"])
def test_an_archive_that_ends_early(way, folders):
    folder, scratch = folders
    WAYS[way](folder)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    files = Files(folder, scratch)
    with pytest.raises(DataError, match=f"{path.name}.*a friend"):
        files.find("images/*/*.jpg", archive_of(folder))


def test_an_archive_that_is_damaged_within_another(folders):
    folder, scratch = folders
    nested(folder, zipfile.ZIP_DEFLATED)
    whole = (folder / "all.zip").read_bytes()
    begin = whole.find(b"b/set.zip") + len("b/set.zip")
    (folder / "all.zip").write_bytes(whole[:begin] + b"\xff" * 8 + whole[begin + 8 :])
    files = Files(folder, scratch)
    with pytest.raises(DataError, match=r"all.zip/b/set.zip: cannot be read \(.*decompressing"):
        files.find("images/*/*.jpg", archive_of(folder))


def test_an_archive_that_python_cannot_unpack(folders):
    """Windows packs what is large by Deflate64."""
    folder, scratch = folders
    zipped(folder / "all.zip", zipfile.ZIP_STORED, {"set/a.txt": b"text"})
    contents = bytearray((folder / "all.zip").read_bytes())
    # Its method, where the directory tells it and where the file begins.
    entry = contents.rfind(b"set/a.txt") - 46
    for at in (entry + 10, contents.find(b"set/a.txt") - 30 + 8):
        contents[at] = 9
    (folder / "all.zip").write_bytes(contents)
    files = Files(folder, scratch)
    with pytest.raises(DataError, match=r"all.zip/set/a.txt: .*compression .* not supported"):
        files.read(files.one("set/a.txt", archive_of(folder)))


def test_errors_name_what_is_missing(folders):
    folder, scratch = folders
    with pytest.raises(DataError, match="no such folder"):
        Files(folder / "gone", scratch)
    files = Files(folder, scratch)
    archive = Archive("all.zip", "a friend")
    with pytest.raises(DataError, match=r"neither all.zip nor a/\*.png.*from a friend"):
        files.find("a/*.png", archive)
    zipped(folder / "all.zip")
    files = Files(folder, scratch)
    with pytest.raises(DataError, match=r"neither all.zip nor a/\*.png"):
        files.find("a/*.png", archive)


def test_a_list_may_be_there_twice(folders):
    folder, scratch = folders
    lists = {"a/list.txt": b"1\n2\n", "b/list.txt": b"1\n2\n"}
    zipped(folder / "all.zip", entries=lists)
    archive = archive_of(folder)
    assert Files(folder, scratch).lines("list.txt", archive) == ["1", "2"]
    zipped(folder / "all.zip", entries={**lists, "b/list.txt": b"1\n3\n"})
    with pytest.raises(DataError, match="list.txt is here more than once, in .*a/ and in .*b/"):
        Files(folder, scratch).lines("list.txt", archive)
    assert Files(folder, scratch).lines("other.txt", archive, optional=True) is None
    with pytest.raises(DataError, match="neither all.zip nor other.txt"):
        Files(folder, scratch).lines("other.txt", archive)


def test_lists_of_one_place_say_the_same(folders):
    """Both folders of COCO-Stuff 10k's lists: the archive's, and what mmsegmentation writes."""
    folder, scratch = folders
    lists = {"imageLists/train.txt": b"1\n2\n", "imagesLists/train.txt": b"1\n2\n"}
    for name, contents in lists.items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(contents)
    archive = archive_of(folder)
    assert Files(folder, scratch).lines("image*Lists/train.txt", archive) == ["1", "2"]
    (folder / "imagesLists" / "train.txt").write_bytes(b"1\n3\n")
    with pytest.raises(DataError, match="other contents in .*imageLists.* and in .*imagesLists"):
        Files(folder, scratch).lines("image*Lists/train.txt", archive)


def test_a_member_that_is_gone(folders):
    folder, scratch = folders
    unpacked(folder)
    files = Files(folder, scratch)
    member = files.one("set/readme.txt", archive_of(folder))
    (folder / "set" / "readme.txt").unlink()
    with pytest.raises(DataError, match="set/readme.txt: cannot be read"):
        files.read(member)
