"""Seeded damage to compressed frames: every file is answered with frames or a coded error, and nobody dies of it.

The same mutations, given to GDCM in its own process, abort it in 2 to 4 cases of 100.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from dicom_io.errors import DicomError, SandboxCrashed
from dicom_io.read import Sandbox
from tests.dicom_io.conftest import packaged, read_bytes
from tests.services import require

_CASES = 120
_HEADER_BYTES = 200


def jpeg_lossless(folder: Path) -> bytes:
    """CT_small as JPEG Lossless, written by dcmtk."""
    target = folder / "lossless.dcm"
    subprocess.run([require("dcmcjpeg"), packaged("CT_small.dcm"), target], check=True, capture_output=True)
    return target.read_bytes()


def damaged(content: bytes, start: int, rng: np.random.Generator) -> bytes:
    """A few bytes changed, mostly where the codestream's headers lie, or the end cut off."""
    broken = bytearray(content)
    kind = rng.integers(0, 4)
    if kind == 3:
        del broken[rng.integers(start, len(broken)) :]
        return bytes(broken)
    end = len(broken) if kind == 2 else min(len(broken), start + _HEADER_BYTES)
    for place in rng.integers(start, end, rng.integers(1, 5)):
        broken[place] = rng.integers(0, 256)
    return bytes(broken)


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("JPEG2000.dcm", b"\xff\x4f\xff\x51"),
        ("MR_small_jpeg_ls_lossless.dcm", b"\xff\xd8\xff"),
        ("SC_rgb_jls_lossy_sample.dcm", b"\xff\xd8\xff"),
        ("SC_rgb_jpeg_dcmtk.dcm", b"\xff\xd8\xff"),
        ("MR_small_RLE.dcm", b"\x02\0\0\0\x40\0\0\0"),
        ("jpeg lossless", b"\xff\xd8\xff"),
    ],
)
def test_damaged_codestreams_are_always_answered(sandbox: Sandbox, tmp_path: Path, name: str, marker: bytes) -> None:
    content = jpeg_lossless(tmp_path) if name == "jpeg lossless" else packaged(name).read_bytes()
    start = content.rindex(marker)
    rng = np.random.default_rng(20261122)
    answers: dict[str, int] = {}
    for _ in range(_CASES):
        try:
            found = read_bytes(damaged(content, start, rng), sandbox=sandbox, folder=tmp_path)
        except DicomError as exc:
            answers[exc.code] = answers.get(exc.code, 0) + 1
        else:
            assert all(np.isfinite(frame.pixels).all() for frame in found)
            answers["frames"] = answers.get("frames", 0) + 1
    assert sum(answers.values()) == _CASES
    # A crash would be survived, but the decoders that were chosen give none on these.
    assert SandboxCrashed.code not in answers


def test_damaged_headers_are_always_answered(sandbox: Sandbox, tmp_path: Path) -> None:
    content = packaged("CT_small.dcm").read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(250):
        broken = bytearray(content)
        for place in rng.integers(128, 7000, rng.integers(1, 8)):
            broken[place] = rng.integers(0, 256)
        try:
            read_bytes(bytes(broken), sandbox=sandbox, folder=tmp_path)
        except DicomError as exc:
            assert exc.code != SandboxCrashed.code  # noqa: PT017
