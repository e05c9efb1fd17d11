"""From a path to files: folders, zip archives and DICOMDIRs, and what in them is refused before it is unpacked."""

import io
import os
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicom_io.errors import FileUnreadable, ReferenceRefused, TooLarge, ZipMemberRefused, ZipRefused
from dicom_io.expand import Refused, Source, expand
from dicom_io.limits import Limits
from dicom_io.read import Sandbox, group, read_instance
from tests.dicom_io import build
from tests.dicom_io.conftest import packaged

IMAGE = build.part10(build.data_set(np.zeros((2, 2), np.uint8)))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def zipped(path: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return path


def everything(path: Path, scratch: Path, limits: Limits | None = None) -> list[Source | Refused]:
    return list(expand(path, limits=limits or Limits(), scratch=scratch))


def only_refusal(path: Path, scratch: Path, limits: Limits | None = None) -> Refused:
    """The archive is refused as a whole, and nothing of it was written."""
    (refused,) = everything(path, scratch, limits)
    assert isinstance(refused, Refused)
    assert list(scratch.rglob("*")) == []
    return refused


def test_a_file_is_itself(tmp_path: Path, scratch: Path) -> None:
    path = build.write(tmp_path, IMAGE)
    assert everything(path, scratch) == [Source("image.dcm", path)]


def test_a_missing_file_is_refused_by_name(tmp_path: Path, scratch: Path) -> None:
    refused = only_refusal(tmp_path / "nothing.dcm", scratch)
    assert refused.name == "nothing.dcm"
    assert isinstance(refused.error, FileUnreadable)


def test_a_folder_gives_its_files_sorted_at_every_level(tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "study"
    for name in ("b/2.dcm", "b/1.dcm", "a.dcm", "c/d/e"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(IMAGE)
    (folder / "DICOMDIR").write_bytes(b"left out, because its files lie beside it")
    assert [found.name for found in everything(folder, scratch)] == ["a.dcm", "b/1.dcm", "b/2.dcm", "c/d/e"]


def test_links_and_pipes_in_a_folder_are_refused(tmp_path: Path, scratch: Path) -> None:
    outside = build.write(tmp_path, IMAGE, "outside.dcm")
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "link.dcm").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    found = everything(folder, scratch)
    assert [one.name for one in found] == ["loop", "link.dcm", "pipe"]
    assert all(isinstance(one, Refused) and isinstance(one.error, FileUnreadable) for one in found)


def test_a_pipe_does_not_block_the_reader(tmp_path: Path, sandbox: Sandbox) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileUnreadable, match="not a regular file"):
        read_instance(tmp_path / "pipe", sandbox=sandbox)


def test_a_folder_with_too_many_files_is_cut_off(tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.dcm").write_bytes(IMAGE)
    found = everything(folder, scratch, replace(Limits(), archive_members=3))
    assert [type(one) for one in found] == [Source, Source, Source, Refused]


def test_a_zip_gives_its_members_under_names_of_our_own(tmp_path: Path, scratch: Path, sandbox: Sandbox) -> None:
    path = zipped(tmp_path / "study.zip", {"a/1.dcm": IMAGE, "a/": b"", "b;rm -rf.dcm": IMAGE, "DICOMDIR": b"x"})
    found = everything(path, scratch)
    assert [one.name for one in found] == ["study.zip/a/1.dcm", "study.zip/b;rm -rf.dcm"]
    for number, one in enumerate(found):
        assert isinstance(one, Source)
        assert one.path.is_relative_to(scratch)
        assert one.path.name in (f"{number:06d}", f"{number + 1:06d}")
        assert read_instance(one.path, sandbox=sandbox).number_of_frames == 1


def test_members_are_written_one_at_a_time(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "study.zip", {f"{n}.dcm": IMAGE for n in range(10)})
    found = expand(path, limits=Limits(), scratch=scratch)
    next(found)
    assert sum(one.is_file() for one in scratch.rglob("*")) == 1
    found.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["../x.dcm", "a/../../x.dcm", "/etc/x.dcm", "C:\\x.dcm", "..\\x.dcm", "\\\\host\\x.dcm"]
)
def test_a_member_that_leads_outside_refuses_the_archive(tmp_path: Path, scratch: Path, name: str) -> None:
    refused = only_refusal(zipped(tmp_path / "bad.zip", {"good.dcm": IMAGE, name: IMAGE}), scratch)
    assert refused.error.code == "dicom.zip-refused"
    assert "outside the archive" in str(refused.error)


def test_a_link_in_a_zip_refuses_the_archive(tmp_path: Path, scratch: Path) -> None:
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "a link or a device" in str(only_refusal(tmp_path / "bad.zip", scratch).error)


def test_a_million_members_are_refused_before_they_are_listed(tmp_path: Path, scratch: Path) -> None:
    """Written by hand: a central directory of a million entries that the end record says are three."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 1_000_000
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 3, 3, len(entry) * count, 4, 0)
    path = build.write(tmp_path, b"PK\x03\x04" + entry * count + end, "many.zip")
    assert "more than 50000 members" in str(only_refusal(path, scratch).error)


def test_a_list_of_members_that_is_too_long_is_refused_unread(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "names.zip", {f"{n}" + "n" * 4000: b"" for n in range(20)})
    refused = only_refusal(path, scratch, replace(Limits(), archive_members=50))
    assert "too many for any list of files" in str(refused.error)


def test_a_zip_bomb_is_refused_by_what_it_declares(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", {f"{n}": bytes(40 << 20) for n in range(4)})
    assert path.stat().st_size < 1 << 20
    assert "times its own size" in str(only_refusal(path, scratch).error)


def test_a_zip_that_is_too_large_unpacked_is_refused(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "large.zip", {"a": bytes(600), "b": bytes(600)}, compression=zipfile.ZIP_STORED)
    refused = only_refusal(path, scratch, replace(Limits(), archive_bytes=1000))
    assert "unpacks to 1200 bytes; at most 1000" in str(refused.error)


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path, scratch: Path) -> None:
    """Overlapping or lying members must not write more than was counted (42.zip and its children)."""
    path = zipped(tmp_path / "lie.zip", {"a.dcm": bytes(1 << 20)})
    content = path.read_bytes().replace(struct.pack("<I", 1 << 20), struct.pack("<I", 1000))
    path.write_bytes(content)
    (refused,) = everything(path, scratch)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, ZipMemberRefused)
    assert not [one for one in scratch.rglob("*") if one.is_file()]


def test_a_nested_zip_is_refused_and_the_rest_read(tmp_path: Path, scratch: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x.dcm", IMAGE)
    found = everything(zipped(tmp_path / "outer.zip", {"inner.dcm": inner.getvalue(), "good.dcm": IMAGE}), scratch)
    assert [type(one) for one in found] == [Refused, Source]
    assert isinstance(found[0], Refused)
    assert "itself a zip" in str(found[0].error)


def test_an_encrypted_member_is_refused_and_the_rest_read(tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "locked.zip", {"a.dcm": IMAGE, "b.dcm": IMAGE})
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1  # the general purpose flag of the first member
    path.write_bytes(content)
    found = everything(path, scratch)
    assert [type(one) for one in found] == [Refused, Source]
    assert isinstance(found[0], Refused)
    assert "encrypted" in str(found[0].error)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, scratch: Path, compression: int) -> None:
    (refused,) = everything(zipped(tmp_path / "other.zip", {"a.dcm": IMAGE}, compression=compression), scratch)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, ZipMemberRefused)


def test_damaged_zips_are_refused_wherever_they_are_damaged(tmp_path: Path, scratch: Path) -> None:
    content = zipped(tmp_path / "whole.zip", {"a.dcm": IMAGE, "b.dcm": IMAGE}).read_bytes()
    rng = np.random.default_rng(7)
    for number in range(150):
        broken = bytearray(content)
        if number % 3:
            for place in rng.integers(0, len(broken), 4):
                broken[place] = rng.integers(0, 256)
        else:
            del broken[rng.integers(4, len(broken)) :]
        path = build.write(tmp_path, bytes(broken), "broken.zip")
        for one in everything(path, scratch):
            assert isinstance(one, Source) or one.error.code.startswith("dicom.")


def test_a_dicomdir_gives_the_files_that_it_names(tmp_path: Path, scratch: Path, sandbox: Sandbox) -> None:
    found = everything(packaged("dicomdirtests") / "DICOMDIR", scratch)
    assert len(found) == 31
    assert all(isinstance(one, Source) for one in found)
    instances = [read_instance(one.path, sandbox=sandbox) for one in found if isinstance(one, Source)]
    assert len(group(instances)) == len({one.ref.study_instance_uid for one in instances})


@pytest.mark.parametrize(
    "reference", [["..", "secret"], ["/etc/passwd"], ["A/../../secret"], ["..\\secret"], ["C:", "x"], [".", "x"]]
)
def test_a_dicomdir_cannot_name_files_outside_its_folder(tmp_path: Path, scratch: Path, reference: list[str]) -> None:
    """CVE-2026-32711 in pydicom before 3.0.2."""
    (tmp_path / "secret").write_bytes(IMAGE)
    folder = tmp_path / "cd"
    folder.mkdir()
    path = dicomdir(folder, reference)
    refused = only_refusal(path, scratch)
    assert isinstance(refused.error, ReferenceRefused)


def test_a_dicomdir_cannot_lead_outside_through_a_link(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "secret").mkdir()
    build.write(tmp_path / "secret", IMAGE, "FILE")
    folder = tmp_path / "cd"
    folder.mkdir()
    (folder / "LINK").symlink_to(tmp_path / "secret")
    assert "link" in str(only_refusal(dicomdir(folder, ["LINK", "FILE"]), scratch).error)


def test_a_dicomdir_whose_file_is_missing_says_so(tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "cd"
    folder.mkdir()
    assert "not there" in str(only_refusal(dicomdir(folder, ["GONE"]), scratch).error)


def test_names_in_lower_case_are_found_for_upper_case_references(tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "cd"
    (folder / "dir").mkdir(parents=True)
    build.write(folder / "dir", IMAGE, "im1")
    assert everything(dicomdir(folder, ["DIR", "IM1"]), scratch) == [Source("DIR/IM1", folder / "dir" / "im1")]


def test_a_folder_within_limits_is_no_zip(tmp_path: Path, scratch: Path) -> None:
    path = build.write(tmp_path, IMAGE, "image.zip")
    assert everything(path, scratch) == [Source("image.zip", path)]


def test_a_file_over_the_limit_is_refused_when_read(tmp_path: Path) -> None:
    path = build.write(tmp_path, IMAGE)
    with Sandbox(workers=1, limits=replace(Limits(), file_bytes=100)) as small, pytest.raises(TooLarge):
        read_instance(path, sandbox=small)


def test_a_zip_without_an_end_is_refused(tmp_path: Path, scratch: Path) -> None:
    refused = only_refusal(build.write(tmp_path, b"PK\x03\x04" + bytes(100), "cut.zip"), scratch)
    assert isinstance(refused.error, ZipRefused)


def dicomdir(folder: Path, reference: list[str]) -> Path:
    """A DICOMDIR with one record that names one file."""
    shutil.copy(packaged("dicomdirtests") / "DICOMDIR", folder / "DICOMDIR")
    directory = dcmread(folder / "DICOMDIR")
    record = next(one for one in directory.DirectoryRecordSequence if "ReferencedFileID" in one)
    record["ReferencedFileID"]._value = reference
    directory.DirectoryRecordSequence = [record]
    directory.save_as(folder / "DICOMDIR")
    return folder / "DICOMDIR"
