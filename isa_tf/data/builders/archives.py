"""Archives as their publishers give them away, read in place, or what was unpacked of them."""

import os
import re
import shutil
import tarfile
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple, overload

from isa_tf.data.base import DataError
from isa_tf.hints import StrPath

_ZIP = ".zip"
# The last is zipfile's, for what is encrypted or packed in a way that Python does not know.
_UNREADABLE = (
    *(OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError),
    RuntimeError,
)


class Archive(NamedTuple):
    """A file that a publisher gives away.

    Attributes:
        file: str, its name, such as "train2017.zip".
        source: str, where it is to be had, for the error where it is missing.
        parts: names of archives that lie in it, or in these, and are read as well.
        needed: patterns, as of `Files.find`, of what is unpacked of an archive that can be read
            from its beginning alone (.tgz).
    """

    file: str
    source: str
    parts: tuple[str, ...] = ()
    needed: tuple[str, ...] = ("*",)


class Member(NamedTuple):
    """A file, on disk or in an archive; as a str, what errors call it.

    Attributes:
        archive: path of the archive; `None` for a file on disk.
        name: of the file in the archive, or its path.
    """

    archive: str | None
    name: str

    @property
    def stem(self) -> str:
        """str, the file's name without its last suffix."""
        return Path(self.name).stem

    def __str__(self):
        return self.name if self.archive is None else f"{self.archive}/{self.name}"


class Files:
    """The files below a folder and in the archives that lie in it, found alike.

    What is unpacked is read rather than the archive that it came from. An archive is read in
    place, but for those that lie in others and those that are compressed as a whole, of which
    a copy is made in `scratch`. Reading is safe in several threads, and an instance can be
    pickled.

    Args:
        folder: path, where archives or what was unpacked of them lie.
        scratch: path of a folder for copies, which the caller makes and removes.

    Raises:
        DataError: for a folder that is not there.

    Example:

    >>> files = Files("my_archives", "scratch")
    >>> [file.stem for file in files.find("val/images/*.png", Archive("data.zip", "a friend"))]
    ['0', '1']
    """

    def __init__(self, folder: StrPath, scratch: StrPath) -> None:
        self.folder, self.scratch = Path(folder), Path(scratch)
        if not self.folder.is_dir():
            raise DataError(folder, "no such folder; it is where the archives lie")
        self._unpacked: list[str] | None = None  # names of the files below the folder
        self._names: dict[str, list[str]] = {}  # path of an archive: names of the files in it
        self._copies: dict[Member, str] = {}  # `Member` that is an archive itself: path of its copy
        self._open_none()

    def _open_none(self):
        self._lock = threading.Lock()
        self._zips, self._tars = {}, {}

    def __getstate__(self):
        kept = ("folder", "scratch", "_unpacked", "_names", "_copies")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open_none()

    def find(self, pattern: str, archive: Archive, optional: bool = False) -> list[Member]:
        """The files that the end of whose path matches a pattern, in the order of their paths.

        Args:
            pattern: str, such as "images/training/*.jpg"; a star stays within a folder's name.
            archive: `Archive` that they lie in, if they are not unpacked.
            optional: bool, whether there may be none. Defaults to `False`.

        Returns:
            List of `Member`.

        Raises:
            DataError: where there are none, naming the archive and where it is to be had; for
                files in several places; for an archive that cannot be read.
        """
        found = self._found(pattern, archive)
        if not found and not optional:
            raise DataError(
                self.folder,
                f"neither {archive.file} nor {pattern} of it is here; it is to be had from "
                f"{archive.source}",
            )
        if len(found) > 1:
            places = " and in ".join(sorted(map(str, found))[:3])
            raise DataError(self.folder, f"{pattern} is here more than once, in {places}; keep one")
        return sorted((member for some in found.values() for member in some), key=str)

    @overload
    def lines(
        self, pattern: str, archive: Archive, optional: Literal[False] = False
    ) -> list[str]: ...

    @overload
    def lines(self, pattern: str, archive: Archive, optional: bool) -> list[str] | None: ...

    def lines(self, pattern: str, archive: Archive, optional: bool = False) -> list[str] | None:
        """The lines of a text file that are not blank, stripped.

        The same file may be there several times, as lists are in archives.

        Args:
            pattern: see `find`.
            archive: see `find`.
            optional: bool, whether it may be missing, for which there is `None`. Defaults to
                `False`.

        Raises:
            DataError: as `find`, and where what is in one place does not say the same.
        """
        members = [member for some in self._found(pattern, archive).values() for member in some]
        texts = {self.read(member).decode("utf-8-sig") for member in members}
        if len(texts) != 1:
            found = self.find(pattern, archive, optional)  # which says what is wrong
            if not found:
                return None
            raise DataError(
                self.folder,
                f"{pattern} is here with other contents in {' and in '.join(map(str, found[:3]))}; "
                "keep one",
            )
        return [line.strip() for line in texts.pop().splitlines() if line.strip()]

    def _found(self, pattern, archive):
        """What matches: a dict of the place, what stands before the pattern, to `Member`s."""
        matches = _matcher(pattern)
        if self._unpacked is None:
            self._unpacked = [
                os.path.relpath(os.path.join(top, name), self.folder)
                for top, _, names in os.walk(self.folder, followlinks=True)
                for name in names
            ]
        found = [
            (match, Member(None, str(self.folder / match.string)))
            for match in map(matches, self._unpacked)
            if match
        ]
        if not found:
            found = [
                (match, Member(path, match.string))
                for path in self._paths(archive)
                for match in map(matches, self._names[path])
                if match
            ]
        places = {}
        for match, member in found:
            place = f"{member.archive or self.folder}/{match['top']}"
            places.setdefault(place, []).append(member)
        return places

    def one(self, pattern: str, archive: Archive) -> Member:
        """The only file that matches a pattern, a `Member`; else as `find`."""
        return self.find(pattern, archive)[0]

    def read(self, member: Member) -> bytes:
        """The bytes of a `Member`. Raises DataError where they cannot be read."""
        try:
            if member.archive is None:
                return Path(member.name).read_bytes()
            if member.archive.endswith(_ZIP):
                return self._zip(member.archive).read(member.name)
            file, members = self._tar(member.archive)
            offset, size = members[member.name]
            return os.pread(file, size, offset)
        except _UNREADABLE as error:
            raise DataError(member, f"cannot be read ({error})") from error

    def close(self) -> None:
        """Closes what is open."""
        for archive in self._zips.values():
            archive.close()
        for file, _ in self._tars.values():
            os.close(file)
        self._open_none()

    # === Archives ===

    def _paths(self, archive):
        """Paths of an archive and of those within, whose names are known then."""
        wanted = {archive.file, *archive.parts}
        paths = [str(self.folder / n) for n in self._unpacked if os.path.basename(n) in wanted]
        for path in paths:  # which grows
            if path not in self._names:
                self._names[path] = self._list(path, archive)
            for name in self._names[path]:
                if os.path.basename(name) in archive.parts:
                    paths.append(self._copy(Member(path, name), archive))
        return paths

    def _list(self, path, archive):
        try:
            if path.endswith(_ZIP):
                return [name for name in self._zip(path).namelist() if not name.endswith("/")]
            return list(self._tar(path, archive)[1])
        except _UNREADABLE as error:
            raise DataError(
                path,
                f"cannot be read ({type(error).__name__}: {error}); if it is incomplete, get "
                f"{archive.file} again from {archive.source}",
            ) from error

    def _copy(self, member, archive):
        """Path of a copy of an archive that lies in another."""
        if member not in self._copies:
            folder = tempfile.mkdtemp(dir=self.scratch)
            copy = os.path.join(folder, os.path.basename(member.name))
            try:
                with self._zip(member.archive).open(member.name) as file, open(copy, "wb") as new:
                    shutil.copyfileobj(file, new, 2**24)
            except OSError:  # of the copy, for which there may be no space
                raise
            except _UNREADABLE as error:
                raise DataError(member, f"cannot be read ({error})") from error
            self._copies[member] = copy
        return self._copies[member]

    def _zip(self, path):
        with self._lock:
            if path not in self._zips:
                self._zips[path] = zipfile.ZipFile(path)
            return self._zips[path]

    def _tar(self, path, archive=None):
        with self._lock:
            if path not in self._tars:
                plain = self._repacked(path, archive) if _is_compressed(path) else path
                with tarfile.open(plain, "r:") as tar:
                    members = {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
                self._tars[path] = os.open(plain, os.O_RDONLY), members
            return self._tars[path]

    def _repacked(self, path, archive):
        """Path of a tar that is not compressed, of what is needed of one that is."""
        plain = self.scratch / f"{Path(path).name}.tar"
        if not plain.exists():
            matchers = [_matcher(pattern) for pattern in archive.needed]
            part = plain.with_suffix(".part")
            with tarfile.open(path, "r|*") as tar, tarfile.open(part, "w") as new:
                for member in tar:
                    if member.isfile() and any(matches(member.name) for matches in matchers):
                        new.addfile(member, tar.extractfile(member))
            part.rename(plain)
        return plain


def _is_compressed(path):
    with open(path, "rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))


def _matcher(pattern):
    """A function that matches the end of a path; "top" of the match is what stands before."""
    end = re.escape(pattern).replace(r"\*", "[^/]*")
    whole = re.compile(f"(?P<top>(?:.*/)?){end}")

    def matches(path):
        match = whole.fullmatch(path)
        # What macOS adds to archives, and editors to folders.
        hidden = match and any(
            part.startswith((".", "__MACOSX")) for part in path.removeprefix("./").split("/")
        )
        return None if hidden else match

    return matches
