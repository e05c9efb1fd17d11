"""Fixtures for reading: one warm sandbox for all tests, a reader of synthetic images, the shared files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from dicom_io.read import Limits, Sandbox, frames, read_instance
from dicom_io.types import Frame
from tests.dicom_io import build

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"

ReadFrames = Callable[..., list[Frame]]


@pytest.fixture(scope="session")
def limits() -> Limits:
    """The limits that users get."""
    return Limits()


@pytest.fixture(scope="session")
def sandbox(limits: Limits) -> Iterator[Sandbox]:
    """One decoding process, warm for the whole run."""
    with Sandbox(workers=1, limits=limits) as made:
        yield made


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real files; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared files are not at {SHARED}")
    return SHARED


@pytest.fixture
def read_frames(sandbox: Sandbox, tmp_path: Path) -> ReadFrames:
    """Write an image with the attributes given and read all its frames."""

    def read(pixels: NDArray[Any], *, transfer_syntax: str = "1.2.840.10008.1.2.1", **attributes: Any) -> list[Frame]:
        content = build.part10(build.data_set(pixels, **attributes), transfer_syntax=transfer_syntax)
        return read_bytes(content, sandbox=sandbox, folder=tmp_path)

    return read


def read_bytes(content: bytes, *, sandbox: Sandbox, folder: Path) -> list[Frame]:
    """Read all frames of a file given as bytes."""
    instance = read_instance(build.write(folder, content), sandbox=sandbox)
    return list(frames(instance, sandbox=sandbox))


def packaged(name: str) -> Path:
    """A test file that lies inside the pydicom package; never downloaded."""
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str), f"{name} is not in the pydicom package"
    return Path(found)


def grey_levels(display: NDArray[np.float32]) -> NDArray[np.float32]:
    """Display values 0..1 as grey levels of 255."""
    return np.asarray(np.floor(display * 255 + 0.5), dtype=np.float32)
