"""From what a user hands over to single files: a file, a folder, a zip archive or a DICOMDIR.

Nothing is parsed or unpacked before its size and its names are known to be harmless.
"""

import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dicom_io.errors import DicomError, FileUnreadable, ReferenceRefused, TooLarge, ZipMemberRefused, ZipRefused
from dicom_io.limits import Limits
from dicom_io.sandbox import Sandbox
from dicom_io.uids import MEDIA_STORAGE_DIRECTORY

DIRECTORY_NAME = "DICOMDIR"

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_RECORD = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64_RECORD = struct.Struct("<4sQ2H2I4Q")
_ENCRYPTED = 0x1
_COPY_BYTES = 1 << 20
# One entry of the list of members, its name and extra fields included.
_MEMBER_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Source:
    """One file to be read, under the name by which its sender knows it."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that is not read, and why."""

    name: str
    error: DicomError


def expand(path: Path, *, limits: Limits, scratch: Path) -> Iterator[Source | Refused]:
    """Yield the files that a path stands for.

    A folder gives its files sorted, all levels down, without links; DICOMDIRs in it are left out because the files that
    they name lie beside them. The members of a zip are written one at a time into a new folder under `scratch`, which
    the caller removes. A DICOMDIR gives the files that it names inside its own folder.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as exc:
        yield Refused(path.name, FileUnreadable(f"the file cannot be opened ({getattr(exc, 'strerror', 'bad name')})"))
        return
    if stat.S_ISDIR(status.st_mode):
        yield from _folder(path, limits=limits, scratch=scratch)
    elif not stat.S_ISREG(status.st_mode):
        yield Refused(path.name, FileUnreadable("not a regular file"))
    else:
        yield from _file(path, path.name, limits=limits, scratch=scratch, follow_dicomdir=True)


def _file(
    path: Path, name: str, *, limits: Limits, scratch: Path, follow_dicomdir: bool = False
) -> Iterator[Source | Refused]:
    try:
        with path.open("rb") as stream:
            head = stream.read(1024)
    except OSError as exc:
        yield Refused(name, FileUnreadable(f"the file cannot be opened ({exc.strerror})"))
        return
    if head.startswith(_ZIP_MAGIC):
        try:
            yield from _zip(path, name, limits=limits, scratch=scratch)
        except DicomError as exc:
            yield Refused(name, exc)
    elif follow_dicomdir and (path.name.upper() == DIRECTORY_NAME or MEDIA_STORAGE_DIRECTORY.encode() in head):
        yield from _dicomdir(path, name, limits=limits)
    else:
        yield Source(name, path)


def _folder(folder: Path, *, limits: Limits, scratch: Path) -> Iterator[Source | Refused]:
    count = 0
    closed: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=closed.append):
        folders.sort()
        for linked in [name for name in folders if (Path(place) / name).is_symlink()]:
            yield Refused(_relative(Path(place) / linked, folder), FileUnreadable("a link; links are not followed"))
        for file_name in sorted(files):
            path = Path(place) / file_name
            name = _relative(path, folder)
            count += 1
            if count > limits.archive_members:
                yield Refused(folder.name, TooLarge(f"the folder has more than {limits.archive_members} files"))
                return
            if path.is_symlink():
                yield Refused(name, FileUnreadable("a link; links are not followed"))
            elif not path.is_file():
                yield Refused(name, FileUnreadable("not a regular file"))
            elif file_name.upper() != DIRECTORY_NAME:
                yield from _file(path, name, limits=limits, scratch=scratch)
    for error in closed:
        yield Refused(
            _relative(Path(error.filename), folder), FileUnreadable(f"the folder cannot be opened ({error.strerror})")
        )


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _dicomdir(path: Path, name: str, *, limits: Limits) -> Iterator[Source | Refused]:
    """PS3.10 8.5: a reference is a list of plain names, counted from the folder of the DICOMDIR."""
    folder = path.resolve().parent
    try:
        with Sandbox(workers=1, limits=limits) as sandbox:
            references = sandbox.references(path)
    except DicomError as exc:
        yield Refused(name, exc)
        return
    for parts in references:
        reference = "/".join(parts)
        if not parts or not all(_is_plain(part) for part in parts):
            yield Refused(reference, ReferenceRefused("the DICOMDIR names a file outside its own folder"))
            continue
        target = folder.joinpath(*parts)
        if not target.exists():
            # Some systems show the upper-case names of a CD in lower case.
            target = folder.joinpath(*(part.lower() for part in parts))
        if not target.resolve().is_relative_to(folder):
            yield Refused(reference, ReferenceRefused("the DICOMDIR names a link that leads outside its own folder"))
        elif not target.is_file():
            yield Refused(reference, ReferenceRefused("the DICOMDIR names a file that is not there"))
        else:
            yield Source(reference, target)


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and not re.search(r"[/\\\0:]", part)


def _zip(path: Path, name: str, *, limits: Limits, scratch: Path) -> Iterator[Source | Refused]:
    with path.open("rb") as stream:
        _check_central_directory(stream, limits=limits)
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RecursionError) as exc:
            raise ZipRefused("the zip archive is damaged: its list of members cannot be read") from exc
        with archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(members, archive_bytes=path.stat().st_size, limits=limits)
            unpacked = Path(tempfile.mkdtemp(prefix="zip-", dir=scratch))
            for number, member in enumerate(members):
                shown = f"{name}/{member.filename}"
                if Path(member.filename).name.upper() == DIRECTORY_NAME:
                    continue  # the files that it names are members themselves
                # The name on disk is ours: nothing that the archive says becomes a path.
                target = unpacked / f"{number:06d}"
                try:
                    _unpack(archive, member, target, limits=limits)
                except DicomError as exc:
                    target.unlink(missing_ok=True)
                    yield Refused(shown, exc)
                else:
                    yield Source(shown, target)


def _check_central_directory(stream: BinaryIO, *, limits: Limits) -> None:
    """Count the members header by header before `zipfile`, which believes what it reads, makes an object of each."""
    start, size = _central_directory(stream)
    if size > limits.archive_members * _MEMBER_BYTES_MAX:
        raise ZipRefused(f"the list of members of the zip archive has {size} bytes, too many for any list of files")
    stream.seek(start)
    remaining, count = size, 0
    while remaining >= _CENTRAL_HEADER.size:
        head = stream.read(_CENTRAL_HEADER.size)
        if len(head) < _CENTRAL_HEADER.size or head[:4] != b"PK\x01\x02":
            break
        name, extra, comment = _CENTRAL_HEADER.unpack(head)[10:13]
        stream.seek(name + extra + comment, os.SEEK_CUR)
        remaining -= _CENTRAL_HEADER.size + name + extra + comment
        count += 1
        if count > limits.archive_members:
            raise ZipRefused(f"the zip archive has more than {limits.archive_members} members")
    stream.seek(0)


def _central_directory(stream: BinaryIO) -> tuple[int, int]:
    """Where the list of members begins and its size, as the end record (APPNOTE 4.3.16, 4.3.14) says."""
    end = stream.seek(0, os.SEEK_END)
    tail_start = max(0, end - _END_RECORD.size - 0xFFFF)
    stream.seek(tail_start)
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_RECORD.size:
        raise ZipRefused("the zip archive is damaged: it has no end record")
    size = _END_RECORD.unpack_from(tail, at)[5]
    position = tail_start + at
    if position >= _END64_LOCATOR.size:
        stream.seek(position - _END64_LOCATOR.size)
        locator = stream.read(_END64_LOCATOR.size)
        if locator[:4] == b"PK\x06\x07":
            stream.seek(position - _END64_LOCATOR.size - _END64_RECORD.size)
            record = stream.read(_END64_RECORD.size)
            if len(record) == _END64_RECORD.size and record[:4] == b"PK\x06\x06":
                size = _END64_RECORD.unpack(record)[8]
                position -= _END64_LOCATOR.size + _END64_RECORD.size
    if size > position:
        raise ZipRefused("the zip archive is damaged: its list of members is larger than the archive")
    return position - size, size


def _check_members(members: list[zipfile.ZipInfo], *, archive_bytes: int, limits: Limits) -> None:
    """What makes the whole archive suspect refuses all of it, before anything is written."""
    for member in members:
        parts = re.split(r"[/\\]", member.filename)
        if member.filename.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", member.filename):
            raise ZipRefused("the zip archive has a member whose name leads outside the archive")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ZipRefused("the zip archive has a member that is a link or a device")
    total = sum(member.file_size for member in members)
    if total > limits.archive_bytes:
        raise ZipRefused(f"the zip archive unpacks to {total} bytes; at most {limits.archive_bytes} are unpacked")
    if total > limits.inflate_free_bytes and total > limits.inflate_ratio * archive_bytes:
        raise ZipRefused(f"the zip archive unpacks to {total} bytes, over {limits.inflate_ratio} times its own size")


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, *, limits: Limits) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise ZipMemberRefused("the member is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ZipMemberRefused("the member is neither stored nor deflated")
    if member.file_size > limits.file_bytes:
        raise TooLarge(f"the member has {member.file_size} bytes; at most {limits.file_bytes} are read")
    written = 0
    with target.open("xb") as file:
        for chunk in _chunks(archive, member):
            if not written and chunk.startswith(_ZIP_MAGIC):
                raise ZipMemberRefused("the member is itself a zip archive")
            written += len(chunk)
            if written > member.file_size:
                raise ZipMemberRefused("the member is longer than the archive says")
            file.write(chunk)


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The member's content; only trouble with reading it is the archive's fault."""
    try:
        with archive.open(member) as packed:
            while chunk := packed.read(_COPY_BYTES):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as exc:
        raise ZipMemberRefused("the member is damaged and cannot be unpacked") from exc
