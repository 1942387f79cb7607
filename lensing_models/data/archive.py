"""The files of a folder, a ``.zip`` or a ``.tar``, as downloaded, without unpacking anything to disk.

Only one file is in memory at a time. A folder may hold archives: they are read in their place.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from lensing_models.data.candidate import BadFileError

#: Nothing that is published comes near; what claims more is damaged or hostile.
MOST_BYTES = 64 << 20
MOST_HEADER_BYTES = 1 << 16  # of a long name or of PAX records
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
DAMAGE = (
    *(zlib.error, lzma.LZMAError, EOFError, zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile),
    NotImplementedError,  # what zipfile raises for a compression or an encryption that it does not know
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of an archive.

    Attributes:
        name: Path inside, with forward slashes.
        label: Archive and path, for messages.
        read: Returns the content, at most `MOST_BYTES`; from a tar, only until the next member is
            asked for. Raises `BadFileError`, or ValueError where the rest cannot be read either.
    """

    name: str
    label: str
    read: Callable[[], bytes]


def iterate_members(path: Path) -> Iterator[Member]:
    """Yield the files of the archive or folder at *path*.

    The order never changes: by name in a folder or a zip, as packed in a tar, which can only be
    read from its beginning. Folders, ``__MACOSX/`` and names that begin with a dot are passed over.

    Raises:
        ValueError: If there is none, it is truncated or damaged, or has a member that would lie
            outside of it (absolute, ``..``) or is a link or a device; the message names it.
    """
    if path.is_dir():
        yield from _iterate_folder(path)
    elif not path.is_file():
        raise ValueError(f"no file or folder {path}")
    elif path.name.lower().endswith(".zip"):
        yield from _iterate_zip(path)
    elif path.name.lower().endswith(TAR_SUFFIXES):
        yield from _iterate_tar(path)
    else:
        raise ValueError(f"{path} is neither a folder nor a .zip, {', '.join(TAR_SUFFIXES)}")


def _iterate_folder(root: Path) -> Iterator[Member]:
    walk = os.walk(root, onerror=_raise)
    files = [Path(folder) / name for folder, folders, names in walk for name in (*folders, *names)]
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        name = _inner_name(path.relative_to(root).as_posix(), root)
        if name is None:
            continue
        _expect_plain(path.lstat().st_mode, f"{path}")
        if path.is_dir():
            continue
        if path.name.lower().endswith((".zip", *TAR_SUFFIXES)):
            for member in iterate_members(path):
                yield Member(name=f"{name}/{member.name}", label=member.label, read=member.read)
        else:
            yield Member(name=name, label=str(path), read=partial(_read_file, path))


def _iterate_zip(path: Path) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(path)
    except (*DAMAGE, OSError) as error:  # OSError: it seeks to wherever a damaged directory says
        raise ValueError(f"{path} is truncated or no zip archive: {error}; download it again") from error
    with archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            name = _inner_name(info.filename, path)
            if name is None or info.is_dir():
                continue
            label = f"{path}: {name}"
            if stat.S_IFMT(info.external_attr >> 16):  # some writers leave the mode out
                _expect_plain(info.external_attr >> 16, label)
            yield Member(name=name, label=label, read=partial(_read_zipped, archive, info, label))


def _iterate_tar(path: Path) -> Iterator[Member]:
    with ExitStack() as stack:
        stream = stack.enter_context(path.open("rb"))
        watched = _Watched(gzip.GzipFile(fileobj=stream) if _is_gzip(path) else stream)
        try:
            archive = stack.enter_context(
                tarfile.open(fileobj=watched, mode="r|", tarinfo=_Header)  # type: ignore[call-overload]  # read() is all that it needs
            )
            for info in archive:
                name = _inner_name(info.name, path)
                if name is None or info.isdir():
                    continue
                label = f"{path}: {name}"
                if not info.isreg():
                    raise ValueError(f"{label} is a link or a device; refused")
                yield Member(name=name, label=label, read=partial(_read_packed, archive, info, path))
            while watched.read(1 << 16):
                pass
        except DAMAGE as error:
            raise _damaged(path, error) from error
    # tarfile takes a damaged header, and a file that ends between two members, for the end.
    if watched.content_ends > archive.offset or watched.length < archive.offset + tarfile.BLOCKSIZE:
        raise _damaged(path, "its end is missing, or a header is broken")


class _Header(tarfile.TarInfo):
    """A member's header, whose extensions (long names, PAX records) are read whole and so must be short."""

    def _refuse_long(self) -> None:
        if self.size > MOST_HEADER_BYTES:
            raise tarfile.HeaderError(f"a header of {self.size} bytes")

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._refuse_long()
        return super()._proc_gnulong(archive)  # type: ignore[misc,no-any-return]  # not in the stubs

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._refuse_long()
        return super()._proc_pax(archive)  # type: ignore[misc,no-any-return]  # not in the stubs


class _Watched:
    """A stream that knows how long it was and where its last byte other than zero lay."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self._stream = stream
        self.length = self.content_ends = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most *size*."""
        chunk = self._stream.read(size)
        content = chunk.rstrip(b"\0")
        if content:
            self.content_ends = self.length + len(content)
        self.length += len(chunk)
        return chunk


def _inner_name(name: str, where: Path) -> str | None:
    """Return *name* in its plain form, None if it is to be passed over; ValueError if it leads outside."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or re.match("[A-Za-z]:", name) or ".." in parts:
        raise ValueError(f"{where} has a member {name!r}, which would lie outside of it; refused")
    inner = PurePosixPath(name)
    if any(part == "__MACOSX" or part.startswith(".") for part in inner.parts):
        return None
    return inner.as_posix() if inner.parts else None


def _expect_plain(mode: int, label: str) -> None:
    """Raise ValueError unless *mode* is that of a file or a folder."""
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{label} is a link or a device; refused")


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return _limited(stream.read(MOST_BYTES + 1), str(path))
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from error


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, label: str) -> bytes:
    if info.flag_bits & 1:
        raise BadFileError(f"{label} is encrypted")
    try:
        with archive.open(info) as stream:
            return _limited(stream.read(MOST_BYTES + 1), label)
    except (*DAMAGE, OSError) as error:
        raise BadFileError(f"{label} is truncated or damaged: {error}") from error


def _read_packed(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> bytes:
    label = f"{path}: {info.name}"
    try:
        stream = archive.extractfile(info)
        content = stream.read(MOST_BYTES + 1) if stream else b""
    except DAMAGE as error:
        raise _damaged(path, error) from error
    if len(content) < min(info.size, MOST_BYTES):
        raise _damaged(path, f"it ends within {info.name}")
    return _limited(content, label)


def _limited(content: bytes, label: str) -> bytes:
    if len(content) > MOST_BYTES:
        raise BadFileError(f"{label} is larger than {MOST_BYTES >> 20} MiB")
    return content


def _raise(error: OSError) -> NoReturn:
    raise error


def _damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path} is truncated or damaged: {reason}; download it again")


def _is_gzip(path: Path) -> bool:
    """Tell by the content: what is called .tgz may have been unpacked by a browser."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
