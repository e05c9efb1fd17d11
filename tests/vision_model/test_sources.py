"""Every kind of source gives the same kind of example, and any example gives a square."""

import csv
import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import medmnist
import numpy as np
import pytest
from PIL import Image

from app import window
from dicom_io.limits import Limits
from dicom_io.read import frames, read_instance
from dicom_io.sandbox import Sandbox
from tests.dicom_io.build import data_set, item, part10
from tests.vision_model.tiny import tiny_model
from vision_model.data import load
from vision_model.data.dicom import read_dicom, show
from vision_model.data.duplicates import without_duplicates
from vision_model.data.example import Example, split_of
from vision_model.data.licences import permissive, refusal
from vision_model.data.load import load_squares
from vision_model.data.medmnist_sets import KINDS, read_medmnist, rows_of
from vision_model.data.sources import COLUMNS, SourceSpec, described, read_manifest, read_sources
from vision_model.errors import RecipeInvalid, SourceInvalid, SourceNotFetched
from vision_model.manifest import InputSpec, WindowRule
from vision_model.manifest import read_manifest as read_model_manifest

SPEC = InputSpec(size=28, patch=14, mean=(0.5,) * 3, std=(0.25,) * 3, windows=(), percentiles=(0, 100))


def picture(seed: int, *, size: int = 40, colour: bool = False) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3) if colour else (size, size)).astype(np.uint8))


def class_folders(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name)
    return root


def folder_spec(**changes: Any) -> SourceSpec:
    table = {"kind": "folder", "path": "", "name": "ours", "modality": "DX", "body_part": "CHEST", "licence": "CC0"}
    return SourceSpec(**{**table, **changes})


# A folder per class


def test_a_folder_per_class_is_split_by_patient_as_the_digest_says(tmp_path: Path) -> None:
    names = [f"{('a', 'b')[i % 2]}/p{i // 4:03d}-{i}.png" for i in range(400)]
    examples = read_sources([folder_spec(group_pattern=r"^(p\d+)-")], root=class_folders(tmp_path, *names))
    assert len(examples) == 400
    assert {e.label for e in examples} == {"a", "b"}
    splits: dict[str, set[str]] = {}
    for e in examples:
        splits.setdefault(e.group, set()).add(e.split)
    assert len(splits) == 100
    assert all(len(s) == 1 for s in splits.values())
    shares = {s: sum(e.split == s for e in examples) / 400 for s in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.1)
    assert examples[0].split == split_of(examples[0].group)  # no other image has a say in it


def test_folders_for_splits_are_kept_and_files_that_are_no_images_are_passed_over(tmp_path: Path) -> None:
    class_folders(tmp_path, "train/a/1.png", "train/b/sub/2.png", "val/a/3.png", "test/b/4.jpg")
    (tmp_path / "train/a/notes.txt").write_text("none")
    examples = read_sources([folder_spec()], root=tmp_path)
    found = {e.path.relative_to(tmp_path).as_posix(): (e.split, e.label) for e in examples}
    assert found == {
        "train/a/1.png": ("train", "a"),
        "train/b/sub/2.png": ("train", "b"),
        "val/a/3.png": ("val", "a"),
        "test/b/4.jpg": ("test", "b"),
    }


def test_a_folder_that_mixes_splits_and_classes_or_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="holds no images"):
        read_sources([folder_spec()], root=tmp_path)
    class_folders(tmp_path, "train/a/1.png", "b/2.png")
    with pytest.raises(SourceInvalid, match="beside b"):
        read_sources([folder_spec()], root=tmp_path)
    with pytest.raises(SourceInvalid, match="no folder"):
        read_sources([folder_spec(path="nowhere")], root=tmp_path)
    with pytest.raises(RecipeInvalid, match="regular expression"):
        read_sources([folder_spec(group_pattern="(")], root=tmp_path / "train")


# MedMNIST


def medmnist_file(folder: Path, name: str, *, labels: dict[str, list[Any]], colour: bool = False) -> Path:
    rng = np.random.default_rng(3)
    arrays: dict[str, Any] = {}
    for split, values in labels.items():
        shape = (len(values), 28, 28, 3) if colour else (len(values), 28, 28)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape).astype(np.uint8)
        arrays[f"{split}_labels"] = np.array(values, np.uint8).reshape(len(values), -1)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


def test_a_medmnist_file_is_read_with_its_own_splits_names_and_licence(tmp_path: Path) -> None:
    path = medmnist_file(tmp_path, "breastmnist", labels={"train": [0, 1, 1], "val": [1], "test": [0]})
    examples = read_sources([SourceSpec(kind="medmnist", name="breastmnist")], root=tmp_path)
    assert [(e.split, e.label, e.index) for e in examples] == [
        ("train", "malignant", 0),
        ("train", "normal, benign", 1),
        ("train", "normal, benign", 2),
        ("val", "normal, benign", 0),
        ("test", "malignant", 0),
    ]
    assert {(e.modality, e.body_part, e.licence) for e in examples} == {("US", "BREAST", "CC BY 4.0")}
    assert len({e.group for e in examples}) == 5
    squares = load_squares(examples[::-1], spec=SPEC)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(squares[0][..., 1], arrays["test_images"][0])
        np.testing.assert_array_equal(squares[3][..., 2], arrays["train_images"][1])


def test_findings_of_one_image_are_joined_and_colour_is_kept(tmp_path: Path) -> None:
    rows = [[0] * 14, [1] + [0] * 13, [0, 1] + [0] * 11 + [1]]
    medmnist_file(tmp_path, "chestmnist", labels={"train": rows, "val": rows[:1], "test": rows[:1]})
    examples = read_medmnist("chestmnist", folder=tmp_path)
    assert [e.label for e in examples if e.split == "train"] == ["normal", "atelectasis", "cardiomegaly|hernia"]
    path = medmnist_file(tmp_path, "pathmnist_64", labels={"train": [4], "val": [0], "test": [8]}, colour=True)
    (example, *_) = read_medmnist("pathmnist", folder=tmp_path, size=64)
    assert (example.path, example.label) == (path, "mucus")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(load_squares([example], spec=SPEC)[0], arrays["train_images"][0])


def test_the_package_says_that_all_sets_but_dermamnist_are_permissive() -> None:
    info = medmnist.INFO
    assert {flag for flag in KINDS if not permissive(info[flag]["license"])} == {"dermamnist"}
    assert set(KINDS) == {flag for flag in info if not flag.endswith("3d")}


def test_without_a_network_the_message_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(SourceNotFetched, match=r"bloodmnist_64\.npz\?.*MD5.*put it at") as refused:
        read_medmnist("bloodmnist", folder=tmp_path / "sets", size=64)
    assert refused.value.code == "model.source-not-fetched"
    assert str(tmp_path / "sets" / "bloodmnist_64.npz") in str(refused.value)
    assert list((tmp_path / "sets").iterdir()) == []
    with pytest.raises(SourceNotFetched):
        read_medmnist("bloodmnist", folder=tmp_path / "sets", download=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that a real HTTP server shows, and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of http.server
            pass

    shown = tmp_path / "shown"
    shown.mkdir()
    handler = functools.partial(Quiet, directory=str(shown))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield shown, f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_that_is_not_there_is_downloaded_whole_or_not_at_all(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, damaged: bool
) -> None:
    shown, address = server
    path = medmnist_file(shown, "bloodmnist", labels={"train": [1], "val": [0], "test": [7]}, colour=True)
    about = medmnist.INFO["bloodmnist"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(about, "url", f"{address}/bloodmnist.npz")
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(about, "MD5", "0" * 32 if damaged else digest)
    if damaged:
        with pytest.raises(SourceNotFetched):
            read_medmnist("bloodmnist", folder=tmp_path / "sets")
        assert list((tmp_path / "sets").iterdir()) == []
    else:
        examples = read_medmnist("bloodmnist", folder=tmp_path / "sets")
        assert [e.label for e in examples] == ["eosinophil", "basophil", "platelet"]
        assert [p.name for p in (tmp_path / "sets").iterdir()] == ["bloodmnist.npz"]


def test_a_broken_medmnist_file_or_an_unknown_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "breastmnist.npz").write_bytes(b"not a zip")
    with pytest.raises(SourceInvalid, match=r"breastmnist\.npz"):
        read_medmnist("breastmnist", folder=tmp_path)
    path = medmnist_file(tmp_path, "breastmnist", labels={"train": [5], "val": [0], "test": [0]})
    with pytest.raises(SourceInvalid, match="'5'"):
        read_medmnist("breastmnist", folder=tmp_path)
    with pytest.raises(SourceInvalid, match="no row 9"):
        list(rows_of(path, "train", [0, 9]))
    with pytest.raises(RecipeInvalid, match="organmnist3d"):
        read_medmnist("organmnist3d", folder=tmp_path)
    with pytest.raises(RecipeInvalid, match="32"):
        read_medmnist("breastmnist", folder=tmp_path, size=32)


def test_a_medmnist_set_beside_the_dataset_it_was_made_from_is_refused(tmp_path: Path) -> None:
    medmnist_file(tmp_path, "breastmnist", labels={"train": [0], "val": [0], "test": [0]})
    class_folders(tmp_path / "busi", "train/a/1.png")
    sources = [SourceSpec(kind="medmnist", name="breastmnist"), folder_spec(name="busi", path="busi")]
    with pytest.raises(SourceInvalid, match="breastmnist repeats images of busi"):
        read_sources(sources, root=tmp_path)
    assert {e.dataset for e in read_sources(sources, root=tmp_path, left_out=["busi"])} == {"breastmnist"}


# DICOM


def dicom_file(path: Path, *, patient: str | None, number: int, **attributes: Any) -> Path:
    rng = np.random.default_rng(number)
    pixels = attributes.pop("pixels", rng.integers(0, 4096, (30, 36)).astype(np.uint16))
    stated = {"Modality": "CT", "BodyPartExamined": "CHEST", **attributes}
    uids = {"SOPInstanceUID": f"1.2.3.{number}", "StudyInstanceUID": f"1.2.4.{number // 2}"}
    made = data_set(pixels, PatientID=patient or "", **{**uids, **stated})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(part10(made))
    return path


def dicom_spec(**changes: Any) -> SourceSpec:
    return SourceSpec(**{"kind": "dicom", "name": "ward", "licence": "CC0", **changes})


def test_a_folder_of_dicom_is_labelled_by_its_folders_and_never_names_a_patient(tmp_path: Path) -> None:
    for number in range(8):
        dicom_file(tmp_path / "ab"[number % 2] / f"{number}", patient=f"PAT-{number // 4}", number=number)
    dicom_file(tmp_path / "a" / "nameless", patient=None, number=100)
    (tmp_path / "a" / "readme.txt").write_text("no image")
    ours = read_dicom(tmp_path, name="ward", licence="CC0")
    assert [e.label for e in ours] == ["a"] * 5 + ["b"] * 4
    assert len({e.group for e in ours}) == 3
    assert "PAT-" not in repr([e.group for e in ours])
    assert all(e.split == split_of(e.group) and e.index == 1 for e in ours)


def test_labels_come_from_a_table_by_instance_or_study_and_the_narrowest_counts(tmp_path: Path) -> None:
    for number in range(6):
        dicom_file(tmp_path / f"{number}.dcm", patient="X", number=number)
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows(
            [("uid", "label", "split"), ("1.2.4.0", "all", "train"), ("1.2.3.1", "one", "train"), ("1.2.3.4", "z", "")]
        )
    examples = read_dicom(tmp_path, name="ward", licence="CC0", labels=labels)
    found = {e.path.name: (e.label, e.split) for e in examples}
    home = split_of(examples[0].group)
    assert found["0.dcm"] == ("all", "train")
    assert found["1.dcm"] == ("one", "train")
    assert found["4.dcm"] == ("z", home)
    assert set(found) == {"0.dcm", "1.dcm", "4.dcm"}
    labels.write_text("uid,label,split\n1.2.3.1,one,later\n", encoding="utf-8")
    with pytest.raises(SourceInvalid, match="'later'"):
        read_dicom(tmp_path, name="ward", licence="CC0", labels=labels)
    labels.write_text("file,label\n", encoding="utf-8")
    with pytest.raises(SourceInvalid, match="uid"):
        read_dicom(tmp_path, name="ward", licence="CC0", labels=labels)


def test_a_file_that_does_not_say_what_it_shows_needs_the_recipe_to(tmp_path: Path) -> None:
    dicom_file(tmp_path / "train" / "a" / "1", patient="X", number=1, BodyPartExamined="")
    with pytest.raises(SourceInvalid, match="body_part"):
        read_sources([dicom_spec()], root=tmp_path)
    (example,) = read_sources([dicom_spec(body_part="HEAD")], root=tmp_path)
    assert (example.modality, example.body_part) == ("CT", "HEAD")


def test_a_dicom_frame_becomes_the_square_that_its_window_of_training_gives(tmp_path: Path) -> None:
    pixels = np.arange(3 * 28 * 28, dtype=np.uint16).reshape(3, 28, 28)
    dicom_file(tmp_path / "train" / "a" / "1", patient="X", number=1, pixels=pixels)
    examples = read_sources([dicom_spec(frames_per_file=9)], root=tmp_path)
    assert [e.index for e in examples] == [1, 2, 3]
    windowed = InputSpec(**{**spec_fields(SPEC), "windows": (WindowRule("CT", "CHEST", 1176.5, 785.0),)})
    first, second, third = load_squares(examples, spec=windowed)
    assert first.max() == 0  # 0..783 lies below the window 784..1568
    assert third.min() == 255
    expected = (pixels[1] - 784) / 784 * 255
    np.testing.assert_allclose(second[..., 0], expected, atol=1)


def spec_fields(spec: InputSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in ("size", "patch", "mean", "std", "windows", "percentiles")}


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"BodyPartExamined": "ANKLE"},
        {"BodyPartExamined": "ANKLE", "WindowCenter": "900", "WindowWidth": "700"},
        {"BodyPartExamined": "ANKLE", "WindowCenter": "900", "WindowWidth": "700", "VOILUTFunction": "SIGMOID"},
        {"Modality": "US", "BodyPartExamined": "BREAST", "pixels": np.arange(900, dtype=np.uint8).reshape(30, 30)},
        {"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1"},
        {"Modality": "OP", "pixels": np.arange(2700, dtype=np.uint8).reshape(30, 30, 3)},
        {
            "Modality": "DX",
            "VOILUTSequence": [item(LUTDescriptor=[256, 0, 8], LUTData=bytes(range(256)))],
            "pixels": np.arange(900, dtype=np.uint16).reshape(30, 30) % 256,
        },
    ],
    ids=["training window", "percentiles", "file window", "sigmoid", "ultrasound", "monochrome1", "colour", "lut"],
)
def test_training_shows_a_frame_as_serving_does(tmp_path: Path, attributes: dict[str, Any]) -> None:
    manifest = read_model_manifest(tiny_model(tmp_path / "model"))
    path = dicom_file(tmp_path / "1.dcm", patient="X", number=1, **attributes)
    with Sandbox(workers=1, limits=Limits()) as sandbox:
        instance = read_instance(path, sandbox=sandbox)
        (frame,) = frames(instance, sandbox=sandbox)
    served = window.present(frame, window.choose(frame, instance, manifest=manifest), spec=manifest.input)
    assert instance.modality is not None
    assert instance.body_part is not None
    learnt = show(frame, modality=instance.modality, body_part=instance.body_part, spec=manifest.input)
    np.testing.assert_array_equal(learnt.tensor, served.tensor)


# Any source


def test_every_kind_of_example_can_be_loaded_hashed_and_kept_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    medmnist_file(tmp_path / "sets", "bloodmnist", labels={"train": [1, 2], "val": [0], "test": [7]}, colour=True)
    class_folders(tmp_path / "films", "train/a/1.png", "train/b/2.jpg", "test/a/3.png")
    Image.fromarray(np.linspace(0, 65535, 1600).astype(np.uint16).reshape(40, 40)).save(tmp_path / "films/test/a/4.png")
    for number in range(3):
        dicom_file(tmp_path / "ward" / "train" / "c" / f"{number}", patient="X", number=number)
    sources = [
        SourceSpec(kind="medmnist", path="sets", name="bloodmnist"),
        dicom_spec(path="ward"),
        folder_spec(path="films"),
    ]
    examples = read_sources(sources, root=tmp_path)
    assert len(examples) == 11
    held = load_squares(examples, spec=SPEC)
    assert held.shape == (11, 28, 28, 3)
    deep = held[[e.name for e in examples].index("4.png")]
    assert (int(deep.min()), int(deep.max())) == pytest.approx((0, 255), abs=6)
    assert len(without_duplicates(examples, cache=tmp_path / "run" / "fingerprints.npz")[0]) == 11

    kept = load_squares(examples, spec=SPEC, cache=tmp_path / "run")
    np.testing.assert_array_equal(kept, held)
    monkeypatch.setattr(load, "each_square", None)  # a second run reads no image
    again = load_squares(examples, spec=SPEC, cache=tmp_path / "run")
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, held)
    monkeypatch.undo()
    picture(77).save(tmp_path / "films/train/a/1.png")
    changed = load_squares(examples, spec=SPEC, cache=tmp_path / "run")
    assert (changed != held).any(axis=(1, 2, 3)).sum() == 1


def test_a_file_that_cannot_be_read_is_named_and_leaves_no_half_of_a_cache(tmp_path: Path) -> None:
    examples = read_sources([folder_spec()], root=class_folders(tmp_path / "films", "train/a/1.png"))
    (tmp_path / "films/train/a/1.png").write_text("no image")
    with pytest.raises(SourceInvalid, match=r"1\.png"):
        load_squares(examples, spec=SPEC, cache=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_without_sources_the_data_folder_is_a_manifest_and_public_datasets_are_known_by_name(tmp_path: Path) -> None:
    with (tmp_path / "manifest.csv").open("w", newline="", encoding="utf-8") as lines:
        rows = csv.writer(lines)
        rows.writerow([*COLUMNS, "population", "provenance"])
        rows.writerow(["1.png", "busi", "US", "BREAST", "normal", "g1", "train", "CC BY 4.0", "adult", ""])
        rows.writerow(["2.png", "ours", "US", "BREAST", "normal", "g2", "val", "", "", "our ward"])
    examples = read_sources([], root=tmp_path)
    assert examples == read_manifest(tmp_path)
    assert [(e.population, e.provenance.partition(",")[0]) for e in examples] == [
        ("adult", "Al-Dhabyani et al."),
        ("unknown", "our ward"),
    ]


def test_two_sources_cannot_bring_one_dataset(tmp_path: Path) -> None:
    class_folders(tmp_path, "one/train/a/1.png", "two/train/a/1.png")
    with pytest.raises(SourceInvalid, match="ours"):
        read_sources([folder_spec(path="one"), folder_spec(path="two")], root=tmp_path)


def test_a_permissive_run_learns_and_calibrates_on_permissive_images_alone(tmp_path: Path) -> None:
    class_folders(tmp_path, *[f"{d}/{s}/a/{s}.png" for d in ("free", "bound") for s in ("train", "val", "test")])
    sources = [
        folder_spec(path="free", name="free", licence="CC BY 4.0"),
        folder_spec(path="bound", name="bound", licence="CC BY-NC 4.0"),
    ]
    assert len(read_sources(sources, root=tmp_path)) == 6
    examples = read_sources(sources, root=tmp_path, permissive_only=True)
    assert {(e.dataset, e.split) for e in examples} == {
        ("free", "train"),
        ("free", "val"),
        ("free", "test"),
        ("bound", "test"),
    }
    with pytest.raises(SourceInvalid, match="no image is left"):
        read_sources(sources, root=tmp_path, permissive_only=True, left_out=["free"])


@pytest.mark.parametrize(
    ("licence", "reason"),
    [
        ("CC0", None),
        ("CC0 1.0", None),
        ("CC BY 4.0", None),
        ("CC-BY-3.0", None),
        ("CC BY 4.0 (per MedMNIST)", None),
        ("public domain", None),
        ("Apache-2.0", None),
        ("MIT", None),
        ("NIH: no restriction on use, cite", None),
        ("CC BY-NC 4.0", "commercial"),
        ("CC BY-NC-SA", "commercial"),
        ("CC BY-SA", "same licence"),
        ("CC BY-ND 4.0", "changed"),
        ("academic use with attribution", "research"),
        ("MIAS: research use only, may be modified", "research"),
        ("CC BY 4.0 as claimed by the compiler", "nobody"),
        ("unverified (Kaggle CC0 from memory)", "nobody"),
        ("unknown", "nobody"),
        ("", "not stated"),
        ("see the hospital", "table"),
        ("submitted", "table"),
    ],
)
def test_a_licence_is_permissive_only_if_it_is_known_to_be(licence: str, reason: str | None) -> None:
    why = refusal(licence)
    assert why is None if reason is None else reason in (why or "")


def test_every_licence_and_provenance_of_a_dataset_is_carried_on() -> None:
    def example(dataset: str, licence: str, provenance: str) -> Example:
        return Example(Path("x"), dataset, "DX", "CHEST", "a", "g", "train", licence, "adult", provenance)

    rows = described([example("b", "CC BY 4.0", "B"), example("a", "CC0", "A"), example("b", "", "B")])
    assert [(r["name"], r["licence"], r["permissive"], r["provenance"], r["train_images"]) for r in rows] == [
        ("a", "CC0", "yes", "A", "1"),
        ("b", "CC BY 4.0; not stated", "no", "B", "2"),
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "zip"}, "'zip'"),
        ({}, "kind"),
        ({"kind": "folder", "path": "x"}, "name, modality, body_part"),
        ({"kind": "medmnist", "name": "breastmnist", "size": "64"}, "size"),
        ({"kind": "medmnist", "name": "breastmnist", "download": 1}, "download"),
        ({"kind": "dicom", "path": "x", "name": "y", "frames_per_file": 0}, "frames_per_file"),
        ({"kind": "manifest", "colour": "red"}, "colour"),
    ],
)
def test_a_table_of_sources_is_checked_key_by_key(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeInvalid, match=message):
        SourceSpec.of_table(table)


def test_a_good_table_becomes_a_source() -> None:
    table = {"kind": "dicom", "path": "ward", "name": "ours", "labels": "labels.csv", "frames_per_file": 3}
    assert SourceSpec.of_table(table) == SourceSpec(
        kind="dicom", path="ward", name="ours", labels="labels.csv", frames_per_file=3
    )
