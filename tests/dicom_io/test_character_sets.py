"""Patient names in the character sets of PS3.5 Annexes H to K, and in wrong ones."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_charset_files

from dicom_io.read import Sandbox, read_instance
from tests.dicom_io import build

# PS3.5 Annex H.3, I.2, J and K, and the files' own notes.
NAMES = {
    "chrArab.dcm": "قباني^لنزار",
    "chrFren.dcm": "Buc^Jérôme",
    "chrFrenMulti.dcm": "Buc^Jérôme",
    "chrGerm.dcm": "Äneas^Rüdiger",
    "chrGreek.dcm": "Διονυσιος",
    "chrH31.dcm": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "chrH32.dcm": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "chrHbrw.dcm": "שרון^דבורה",
    "chrI2.dcm": "Hong^Gildong=洪^吉洞=홍^길동",
    "chrRuss.dcm": "Люкceмбypг",
    "chrX1.dcm": "Wang^XiaoDong=王^小東",
    "chrX2.dcm": "Wang^XiaoDong=王^小东",
}


# The two with sequences carry no study.
PACKAGED = [Path(found) for found in get_charset_files("*.dcm") if "SQEncoding" not in found]


def charset_file(name: str) -> Path:
    (found,) = get_charset_files(name)
    return Path(found)


def with_name(name: bytes, character_set: bytes | None) -> bytes:
    """A file whose name is written byte for byte under a character set written byte for byte."""
    made = build.data_set(np.zeros((2, 2), np.uint8), PatientName="NAME")
    content = build.part10(made)
    content = content.replace(build.element(0x0010, 0x0010, b"PN", b"NAME"), build.element(0x0010, 0x0010, b"PN", name))
    if character_set is None:
        return content
    first = build.element(0x0008, 0x0016, b"UI", b"1.2.840.10008.5.1.4.1.1.7\0")
    assert content.count(first) == 1
    return content.replace(first, build.element(0x0008, 0x0005, b"CS", character_set) + first)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_in_its_own_script(sandbox: Sandbox, name: str) -> None:
    instance = read_instance(charset_file(name), sandbox=sandbox)
    assert instance.patient.name == NAMES[name]
    assert not any("PatientName" in note for note in instance.warnings)


@pytest.mark.parametrize(
    "character_set",
    [b"ISO 2022 IR 100 ", b"ISO_IR_100", b"ISO-IR 100", b"ISO IR 100"],
    ids=lambda value: value.decode(),
)
def test_misspelt_character_sets_do_not_stop_anything(sandbox: Sandbox, tmp_path: Path, character_set: bytes) -> None:
    content = with_name("Jérôme".encode("latin-1"), character_set.ljust(len(character_set) + len(character_set) % 2))
    assert read_instance(build.write(tmp_path, content), sandbox=sandbox).patient.name == "Jérôme"


@pytest.mark.parametrize(
    ("name", "character_set"),
    [
        ("Иванов".encode("cp1251"), None),
        ("Jérôme!!".encode("latin-1"), b"ISO_IR 192"),
        ("Иванов".encode("cp1251"), b"ISO_IR 6"),
        ("Иванов".encode("cp1251"), b"NO SUCH "),
        (b"\x1b$B;3ED\x1b(B^x", None),
        (b"\x1b$)C\xff\xff", b"\\ISO 2022 IR 149"),
        (b"\xd7", b"GB18030 "),
    ],
    ids=["none declared", "latin as utf-8", "cyrillic as ascii", "no such set", "escapes undeclared", "korean", "gb"],
)
def test_a_wrong_character_set_is_marked_and_never_fatal(
    sandbox: Sandbox, tmp_path: Path, name: bytes, character_set: bytes | None
) -> None:
    content = with_name(name.ljust(len(name) + len(name) % 2), character_set)
    instance = read_instance(build.write(tmp_path, content), sandbox=sandbox)
    assert any("PatientName does not fit the declared character set" in note for note in instance.warnings)


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.name)
def test_every_packaged_character_set_file_gives_text(sandbox: Sandbox, path: Path) -> None:
    instance = read_instance(path, sandbox=sandbox)
    assert instance.patient.name
    instance.patient.name.encode()
