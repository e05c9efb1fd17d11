"""The same image twice is found; another image, however like it, is not."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from vision_model.data.duplicates import detail, fingerprints, without_duplicates
from vision_model.data.example import Example, Split
from vision_model.errors import SourceInvalid


def picture(seed: int, *, size: int = 160) -> Image.Image:
    """A made picture: one shared outline, as films of two patients share theirs, and detail of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = 90.0 * np.exp(-((x / 0.6) ** 4) - (y / 0.9) ** 4)
    texture = gaussian_filter(rng.normal(size=(size, size)), size / 50)
    grey = 40 + body + 18 * texture / texture.std()
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


class Shelf:
    """Writes images and keeps their examples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.examples: list[Example] = []

    def put(self, image: Image.Image, dataset: str, split: Split, suffix: str = "png") -> Example:
        name = f"{len(self.examples)}.{suffix}"
        image.save(self.folder / name)
        made = Example(self.folder / name, dataset, "DX", "CHEST", "normal", name, split, "made by code")
        self.examples.append(made)
        return made


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def trimmed(image: Image.Image) -> Image.Image:
    return image.crop((1, 1, image.width - 1, image.height - 1))


@pytest.mark.parametrize(
    ("change", "suffix"),
    [
        (lambda image: image, "png"),
        (lambda image: image, "jpg"),
        (lambda image: image.resize((70, 70)), "png"),
        (lambda image: image.resize((28, 28), Image.Resampling.BICUBIC), "png"),
        (lambda image: image.point(lambda v: 255 * (v / 255) ** 0.7), "png"),
        (trimmed, "png"),
        (lambda image: image.convert("RGB"), "png"),
    ],
    ids=["as it is", "compressed", "smaller", "28 px", "brighter", "trimmed", "in colour"],
)
def test_a_train_image_that_repeats_a_test_image_is_left_out_whatever_was_done_to_it(
    shelf: Shelf, change: Callable[[Image.Image], Image.Image], suffix: str
) -> None:
    for seed in range(4):
        shelf.put(picture(seed), "one", "train")
    there = shelf.put(picture(9), "one", "test")
    copy = shelf.put(change(picture(9)), "two", "train", suffix)
    kept, removed = without_duplicates(shelf.examples)
    assert kept == [e for e in shelf.examples if e != copy]
    assert [(r.image, r.twin) for r in removed.images] == [(copy, there)]
    assert removed.counts() == {("two", "one", "test"): 1}


def test_images_that_share_an_outline_and_not_their_detail_stay(shelf: Shelf) -> None:
    for seed in range(30):
        shelf.put(picture(seed), "one" if seed % 2 else "two", ("train", "val", "test")[seed % 3])
    kept, removed = without_duplicates(shelf.examples)
    assert kept == shelf.examples
    assert removed.images == ()
    assert removed.val_like_test == 0


def test_black_and_flat_images_repeat_nothing(shelf: Shelf) -> None:
    for level in (0, 0, 1, 40, 255):
        shelf.put(Image.new("L", (60, 60), level), "one", "train")
        shelf.put(Image.new("L", (60, 60), level), "two", "test")
    assert without_duplicates(shelf.examples)[0] == shelf.examples


def test_of_train_images_that_repeat_each_other_across_sources_the_first_stays(shelf: Shelf) -> None:
    first = shelf.put(picture(1), "one", "train")
    again = shelf.put(picture(1), "one", "train")  # within a source it is that source's affair
    shelf.put(picture(1), "two", "train")
    shelf.put(picture(1), "three", "train")
    kept, removed = without_duplicates(shelf.examples)
    assert kept == [first, again]
    assert [r.twin for r in removed.images] == [first, first]


def test_train_images_of_a_guarded_source_count_as_examined(shelf: Shelf) -> None:
    shelf.put(picture(1), "learnt", "train")
    guarded = shelf.put(picture(1), "left out", "train")
    assert without_duplicates(shelf.examples, guarded=["left out"])[0] == [guarded]


def test_a_val_image_that_repeats_a_test_image_is_counted_and_stays(shelf: Shelf) -> None:
    shelf.put(picture(1), "one", "val")
    shelf.put(picture(1), "one", "test")
    kept, removed = without_duplicates(shelf.examples)
    assert kept == shelf.examples
    assert removed.val_like_test == 1


def test_fingerprints_are_kept_and_those_of_a_file_that_changed_are_made_anew(shelf: Shelf, tmp_path: Path) -> None:
    cache = tmp_path / "run" / "fingerprints.npz"
    for seed in range(3):
        shelf.put(picture(seed), "one", "train")
    before, _ = fingerprints(shelf.examples, cache=cache)
    with np.load(cache) as kept:
        forged = {name: kept[name] for name in kept.files}
    forged["hashes"] = np.array([5, 6, 7], np.uint64)
    np.savez(cache, **forged)
    ImageOps.invert(picture(2, size=161)).save(shelf.examples[2].path)
    after, _ = fingerprints([*shelf.examples[1:], shelf.examples[0]], cache=cache)
    assert after[0] == 6
    assert after[2] == 5
    assert after[1] not in (7, before[2])


def test_what_was_left_out_can_be_read_in_a_table(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put(picture(1), "one", "train")
    shelf.put(picture(1), "two", "test")
    _, removed = without_duplicates(shelf.examples)
    removed.write_csv(tmp_path / "removed.csv")
    with (tmp_path / "removed.csv").open(newline="", encoding="utf-8") as lines:
        (row,) = csv.DictReader(lines)
    assert (row["dataset"], row["file"], row["twin_dataset"], row["twin_split"]) == ("one", "0.png", "two", "test")
    assert (row["bits"], float(row["likeness"]) > 0.9) == ("0", True)


def test_background_is_no_detail() -> None:
    grey = np.zeros((1, 32, 32), np.uint8)
    grey[0, 8:24, 8:24] = np.random.default_rng(0).integers(60, 200, (16, 16))
    shown = detail(grey).reshape(32, 32)
    assert not shown[:8].any()
    assert (shown[10:22, 10:22] != 0).all()


def test_a_file_that_is_no_image_is_named(shelf: Shelf) -> None:
    shelf.put(picture(1), "one", "train").path.write_text("not an image")
    with pytest.raises(SourceInvalid, match=r"0\.png"):
        without_duplicates(shelf.examples)
