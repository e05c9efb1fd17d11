"""Read MedMNIST and MedMNIST+ files (Yang et al., Scientific Data 2023) through the medmnist package.

What the package states (labels, licence, address, digest) is taken from it; what DICOM calls the images is said here.
"""

import logging
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_model.data.example import Example, Split
from vision_model.errors import ExtraMissing, RecipeInvalid, SourceInvalid, SourceNotFetched

logger = logging.getLogger(__name__)

SIZES = (28, 64, 128, 224)
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# Modality (0008,0060), Body Part Examined (0018,0015), population.
KINDS: dict[str, tuple[str, str, str]] = {
    "pathmnist": ("SM", "COLON", "unknown"),
    "chestmnist": ("DX", "CHEST", "unknown"),
    "dermamnist": ("DMS", "SKIN", "adult"),
    "octmnist": ("OPT", "RETINA", "adult"),
    "pneumoniamnist": ("DX", "CHEST", "child"),
    "retinamnist": ("OP", "RETINA", "adult"),
    "breastmnist": ("US", "BREAST", "adult"),
    "bloodmnist": ("SM", "BLOOD", "unknown"),
    "tissuemnist": ("SM", "KIDNEY", "unknown"),
    "organamnist": ("CT", "ABDOMEN", "unknown"),
    "organcmnist": ("CT", "ABDOMEN", "unknown"),
    "organsmnist": ("CT", "ABDOMEN", "unknown"),
}

# Datasets whose images these sets repeat, cropped or at another size and split in another way: beside each other one's
# training images would be the other's test.
MADE_FROM = {
    "chestmnist": "nih_cxr",
    "dermamnist": "ham10000",
    "pneumoniamnist": "kermany_cxr",
    "breastmnist": "busi",
}


def read_medmnist(flag: str, *, folder: Path, size: int = 28, download: bool = True) -> list[Example]:
    """The examples of `<flag>.npz` (28 px) or `<flag>_<size>.npz` in a folder, with MedMNIST's own splits.

    No patient is named there, so every image is a group. An image with several findings has the label "a|b"; one
    without any is "normal". A file that is not there is downloaded.
    Raises RecipeInvalid for a set or size that does not exist, SourceNotFetched when there is no file and no network,
    SourceInvalid when the file is not what it should be, and ExtraMissing without the medmnist package.
    """
    about, name = _about(flag), flag if size == 28 else f"{flag}_{size}"
    if size not in SIZES:
        raise RecipeInvalid(f"MedMNIST has {flag} in {', '.join(map(str, SIZES))} px, not in {size}")
    path = folder / f"{name}.npz"
    if not path.is_file():
        _fetch(path, size=size, about=about, download=download)
    modality, body_part, population = KINDS[flag]
    examples = []
    for split in SPLITS:
        for row, label in enumerate(_labels(path, split, about)):
            examples.append(
                Example(
                    path=path,
                    dataset=flag,
                    modality=modality,
                    body_part=body_part,
                    label=label,
                    group=f"{flag}:{split}-{row}",
                    split=split,
                    licence=about["license"],
                    population=population,
                    provenance=f"MedMNIST, {about[_url(size)].partition('?')[0]}",
                    index=row,
                )
            )
    return examples


def rows_of(path: Path, split: Split, rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """The asked rows, ascending, of `<split>_images`, one at a time: (H, W) or (H, W, 3). The rest is read past.

    Raises SourceInvalid when the file does not hold them.
    """
    wanted = set(rows)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{split}_images.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            if fortran or dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
                raise SourceInvalid(f"{path}: {split}_images is {dtype} {shape}; it should be 8-bit images in rows")
            row_bytes = int(np.prod(shape[1:]))
            for row in range(max(wanted, default=-1) + 1):
                content = stream.read(row_bytes)
                if row in wanted:
                    if len(content) < row_bytes:
                        raise SourceInvalid(f"{path}: {split}_images has no row {row}")
                    yield np.frombuffer(content, np.uint8).reshape(shape[1:])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as exc:
        raise SourceInvalid(f"{path} cannot be read as a MedMNIST file: {exc}") from exc


def _about(flag: str) -> dict[str, Any]:
    if flag not in KINDS:
        raise RecipeInvalid(f"MedMNIST has no set of images {flag!r} that is read here; it has {', '.join(KINDS)}")
    try:
        from medmnist import INFO  # an extra, and slow to import
    except ImportError as exc:
        raise ExtraMissing("MedMNIST files are read with the medmnist package: pip install 'hilum[medmnist]'") from exc
    about: dict[str, Any] = INFO[flag]
    return about


def _labels(path: Path, split: Split, about: dict[str, Any]) -> list[str]:
    try:
        with np.load(path) as arrays:
            stated = np.asarray(arrays[f"{split}_labels"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as exc:
        raise SourceInvalid(f"{path} cannot be read as a MedMNIST file: {exc}") from exc
    names: dict[str, str] = about["label"]
    try:
        if about["task"].startswith("multi-label"):
            return ["|".join(names[str(i)] for i in np.flatnonzero(row)) or "normal" for row in stated]
        return [names[str(int(value))] for value in stated.ravel()]
    except KeyError as exc:
        raise SourceInvalid(f"{path}: {split}_labels holds {exc}, which MedMNIST has no name for") from exc


def _fetch(path: Path, *, size: int, about: dict[str, Any], download: bool) -> None:
    """Download one file by the package's own means, which check its digest; it appears whole or not at all."""
    url, digest = about[_url(size)], about["MD5" if size == 28 else f"MD5_{size}"]
    failed: BaseException | None = None
    if download:
        import medmnist

        from vision_model import torchvision_shim  # noqa: F401  # torchvision must be patched before medmnist uses it

        path.parent.mkdir(parents=True, exist_ok=True)
        # Its constructor would also read the whole set into memory, up to 16 GB.
        kind = getattr(medmnist, about["python_class"])
        fetcher = kind.__new__(kind)
        with tempfile.TemporaryDirectory(dir=path.parent) as part:
            fetcher.info, fetcher.root, fetcher.size_flag = about, part, "" if size == 28 else f"_{size}"
            try:
                fetcher.download()
                (Path(part) / path.name).replace(path)
                logger.info("downloaded %s from %s", path.name, url)
            except (RuntimeError, OSError) as exc:
                failed = exc
    if not path.is_file():
        raise SourceNotFetched(
            f"{path.name} is not in {path.parent} and could not be downloaded. Fetch {url} on a machine with a "
            f"network (MD5 {digest}) and put it at {path}"
        ) from failed


def _url(size: int) -> str:
    return "url" if size == 28 else f"url_{size}"
