"""Every real file at hand reads, or gives an error whose code says what is wrong. The table was checked by hand.

`outcomes.csv` names each file, its outcome (`frames` or a code) and, for refusals, what was seen in the file.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from dicom_io.errors import DicomError, tree
from dicom_io.read import Sandbox, frames, read_instance
from dicom_io.types import Frame

_TABLE = Path(__file__).with_name("outcomes.csv")
# Of a longer object the first and the last frame are decoded.
_WHOLE_UP_TO = 5


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


OUTCOMES = {row["file"]: row["outcome"] for row in rows_of(_TABLE)}


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict[str, dict[str, str]]:
    """What another program wrote down about the files."""
    return {row["file"]: row for row in rows_of(shared / "manifest.csv")}


def read(path: Path, sandbox: Sandbox) -> tuple[list[Frame], int]:
    instance = read_instance(path, sandbox=sandbox)
    count = instance.number_of_frames
    numbers = None if count <= _WHOLE_UP_TO else [1, count]
    return list(frames(instance, sandbox=sandbox, numbers=numbers)), count


def test_the_table_names_every_file_and_no_other(shared: Path) -> None:
    found = {p.relative_to(shared).as_posix() for p in shared.rglob("*") if p.is_file()} - {"manifest.csv"}
    assert found == set(OUTCOMES)


def test_the_table_knows_only_codes_of_the_tree() -> None:
    assert set(OUTCOMES.values()) <= {"frames", *tree()}


@pytest.mark.parametrize("name", [name for name, outcome in OUTCOMES.items() if outcome == "frames"])
def test_a_file_with_images_reads(
    shared: Path, sandbox: Sandbox, manifest: dict[str, dict[str, str]], name: str
) -> None:
    found, count = read(shared / name, sandbox)
    stated = manifest[name]
    # The other program could not parse three of them.
    parsed = stated["spp"] != ""
    if parsed:
        columns, rows = map(int, stated["size"].split("x"))
        assert {frame.pixels.shape[:2] for frame in found} == {(rows, columns)}
        assert count == int(stated["frames"])
    for frame in found:
        assert frame.pixels.dtype == np.float32
        assert np.isfinite(frame.pixels).all()
        assert not parsed or frame.pixels.ndim == (3 if _is_colour(stated) else 2)
        assert frame.decoder


@pytest.mark.parametrize("name", [name for name, outcome in OUTCOMES.items() if outcome != "frames"])
def test_a_file_that_does_not_read_says_why(shared: Path, sandbox: Sandbox, name: str) -> None:
    with pytest.raises(DicomError) as caught:
        read(shared / name, sandbox)
    assert caught.value.code == OUTCOMES[name]
    assert len(str(caught.value)) > 20


def test_one_picture_in_every_transfer_syntax_is_one_picture(shared: Path, sandbox: Sandbox) -> None:
    """The CT of cornerstoneWADOImageLoader: lossless twins are equal, lossy ones near."""
    folder = shared / "cornerstonejs__cornerstoneWADOImageLoader"
    pictures = {path.name: read(path, sandbox)[0][0].pixels for path in sorted(folder.glob("*CTImage*"))}
    reference = next(pixels for name, pixels in pictures.items() if "BigEndian" in name)
    lossless = [
        name for name in pictures if any(word in name for word in ("Deflated", "RLE", "Process14", "LSLossless"))
    ]
    assert len(lossless) == 4
    for name in lossless:
        assert np.array_equal(pictures[name], reference), name
    for name in set(pictures) - set(lossless):
        # The 8-bit one has steps of 20 units.
        assert np.abs(pictures[name] - reference).mean() < 30, name


def test_sixteen_bit_palettes_of_both_byte_orders_give_the_same_colours(shared: Path, sandbox: Sandbox) -> None:
    folder = shared / "pydicom__pydicom-data"
    little, big = (read(next(folder.glob(f"*{name}")), sandbox)[0][0] for name in ("ALOKA-16.dcm", "ALOKA-16_big.dcm"))
    assert np.array_equal(little.pixels, big.pixels)


def test_single_bit_segments_are_the_same_in_every_encoding(shared: Path, sandbox: Sandbox) -> None:
    folder = shared / "pydicom__pydicom-data"
    deflated, rle, j2k = (
        [frame.pixels for frame in read(next(folder.glob(f"*liver_{name}.dcm")), sandbox)[0]]
        for name in ("deflate", "rle", "j2k")
    )
    assert np.array_equal(deflated, rle)
    assert np.array_equal(deflated, j2k)


def _is_colour(stated: dict[str, str]) -> bool:
    return stated["spp"] == "3" or stated["photometric"] == "PALETTE COLOR"
