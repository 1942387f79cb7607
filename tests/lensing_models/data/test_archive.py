"""The same files from every packing, and a name in every refusal."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from lensing_models.data import archive
from lensing_models.data.archive import iterate_members
from lensing_models.data.candidate import BadFileError
from tests.lensing_models.data.packing import PACKINGS, pack

FILES = {"top/b/2.npy": b"two", "top/a/1.npy": b"one" * 999, "top/empty": b""}
TARS = ("tar", "tgz")


def read_all(path: Path) -> dict[str, bytes]:
    return {member.name: member.read() for member in iterate_members(path)}


def pack_link(where: Path, packing: str, kind: bytes = tarfile.SYMTYPE) -> Path:
    """Return an archive with a link called ``top/link``."""
    if packing == "folder":
        path = pack(where, FILES)
        (path / "top" / "link").symlink_to("/etc/passwd")
        return path
    if packing == "zip":
        path = where / "links.zip"
        with zipfile.ZipFile(path, "w") as zipped:
            info = zipfile.ZipInfo("top/link")
            info.external_attr = 0o120777 << 16
            zipped.writestr(info, "/etc/passwd")
        return path
    path = where / f"links.{packing}"
    with tarfile.open(path, "w:gz" if packing == "tgz" else "w") as tar:
        info = tarfile.TarInfo("top/link")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    return path


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_gives_the_same_files(tmp_path: Path, packing: str) -> None:
    assert read_all(pack(tmp_path, FILES, packing)) == FILES


@pytest.mark.parametrize("packing", ["folder", "zip"])
def test_files_come_by_name(tmp_path: Path, packing: str) -> None:
    names = [member.name for member in iterate_members(pack(tmp_path, FILES, packing))]

    assert names == sorted(FILES)


def test_a_tar_comes_as_packed(tmp_path: Path) -> None:
    names = [member.name for member in iterate_members(pack(tmp_path, FILES, "tgz"))]

    assert names == list(FILES)


@pytest.mark.parametrize("packing", ["zip", "tgz"])
def test_archives_in_a_folder_are_read_in_their_place(tmp_path: Path, packing: str) -> None:
    pack(tmp_path, FILES, packing)

    assert set(read_all(tmp_path)) == {f"files.{packing}/{name}" for name in FILES}


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_a_mac_and_editors_leave_is_passed_over(tmp_path: Path, packing: str) -> None:
    hidden = {"__MACOSX/top/._1.npy": b"x", "top/.DS_Store": b"x", ".git/config": b"x"}

    assert read_all(pack(tmp_path, FILES | hidden, packing)) == FILES


def test_nothing_is_unpacked_to_disk(tmp_path: Path) -> None:
    path = pack(tmp_path, FILES, "tgz")

    read_all(path)

    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("packing", ["zip", *TARS])
@pytest.mark.parametrize("name", ["../evil.npy", "top/../../evil.npy", "/etc/evil.npy", "C:/evil.npy", "..\\evil.npy"])
def test_a_member_that_leads_outside_is_refused_by_name(tmp_path: Path, packing: str, name: str) -> None:
    path = pack(tmp_path, {name: b"x"}, packing)

    with pytest.raises(ValueError, match=r"evil\.npy', which would lie outside"):
        read_all(path)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_symbolic_link_is_refused_by_name(tmp_path: Path, packing: str) -> None:
    with pytest.raises(ValueError, match="top/link is a link or a device"):
        read_all(pack_link(tmp_path, packing))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_hard_links_and_devices_are_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(ValueError, match="top/link is a link or a device"):
        read_all(pack_link(tmp_path, "tgz", kind))


@pytest.mark.parametrize("packing", ["zip", *TARS])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_archive_is_named(tmp_path: Path, packing: str, share: float) -> None:
    path = pack(tmp_path, {f"top/{index}": os.urandom(3000) for index in range(9)}, packing)
    # The end of a plain tar is only padding.
    length = 9 * (512 + 3072) if packing == "tar" else path.stat().st_size
    path.write_bytes(path.read_bytes()[: int(share * length)])

    with pytest.raises(ValueError, match=rf"files\.{packing} is truncated"):
        read_all(path)


def test_a_tar_that_ends_between_two_files_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path, {"a": bytes(512), "b": bytes(512)}, "tar")
    path.write_bytes(path.read_bytes()[:1024])

    with pytest.raises(ValueError, match=r"files\.tar is truncated"):
        read_all(path)


def test_a_tar_with_a_broken_header_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path, {"a": b"1", "b": b"2"}, "tar")
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r"files\.tar is truncated or damaged"):
        read_all(path)


def test_a_damaged_file_of_a_zip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "files.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("a.npy", b"content")
    path.write_bytes(path.read_bytes().replace(b"content", b"cOntent"))

    with pytest.raises(BadFileError, match=r"a\.npy is truncated or damaged"):
        read_all(path)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_that_is_too_large_is_named(tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 100)

    with pytest.raises(BadFileError, match=r"1\.npy is larger than"):
        read_all(pack(tmp_path, FILES, packing))


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere"):
        read_all(tmp_path / "nowhere")


def test_another_format_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "files.rar").write_bytes(b"Rar!")

    with pytest.raises(ValueError, match=r"files\.rar is neither a folder nor a \.zip, \.tar"):
        read_all(tmp_path / "files.rar")


def test_a_tgz_that_a_browser_unpacked_is_read(tmp_path: Path) -> None:
    path = pack(tmp_path, FILES, "tar").rename(tmp_path / "files.tgz")

    assert read_all(path) == FILES


def test_folders_in_a_tar_are_no_files(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("./top")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        info = tarfile.TarInfo("./top/a")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))

    assert read_all(path) == {"top/a": b"x"}
