"""`hilum model embed|adapt`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import build_parser
from app.commands import model
from app.pictures import files, picture
from tests.app import films
from tests.vision_model.tiny import tiny_model
from tests.vision_model.tiny_text import with_words
from vision_model import load
from vision_model.adapt import FewShotClassifier
from vision_model.errors import ImageInvalid, SupportInvalid, UnknownLabel

LEVELS = {"dark": 60, "bright": 180}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pictures of each of two labels, two of each patient."""
    rng = np.random.default_rng(0)
    for label, level in LEVELS.items():
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(6):
            pixels = rng.normal(level, 20, (30, 40)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"p{label[0]}{i // 2}_{i}.png")
    return tmp_path / "data"


def run(*words: str | Path) -> int:
    argv = ["model", *map(str, words)]
    return model.run(build_parser(argv).parse_args(argv))


def test_embeddings_of_pictures_and_dicom_files_lie_in_one_file(
    data: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = films.film(tmp_path / "dicom")
    assert run("embed", data / "dark", film, "--out", tmp_path / "z.npz", "--model", model_folder) == 0
    assert "7 images, 3 numbers each" in capsys.readouterr().out
    with np.load(tmp_path / "z.npz", allow_pickle=False) as stored:
        first = np.asarray(Image.open(data / "dark" / "pd0_0.png"))
        np.testing.assert_allclose(stored["embeddings"][0], load(model_folder).embed([first])[0], atol=1e-6)
        assert stored["names"][-1] == str(film)
        assert stored["frames"].tolist() == [1] * 7
        assert str(stored["graph_sha256"]) == load(model_folder).manifest.graph_sha256


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(
    data: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "dark" / "cut.png").write_bytes((data / "dark" / "pd0_0.png").read_bytes()[:60])
    (data / "dark" / "notes.txt").write_text("no image", encoding="utf-8")
    assert run("embed", data / "dark", "--out", tmp_path / "z.npz", "--model", model_folder) == 1
    said = capsys.readouterr()
    assert "6 images" in said.out
    assert "cut.png: model.image-invalid" in said.err
    assert "notes.txt: dicom.not-dicom" in said.err


def test_a_folder_for_each_label_becomes_a_head(
    data: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my-head"
    words = ("adapt", "--data", data, "--out", out, "--model", model_folder)
    assert run(*words, "--groups-from", r"name:^(p\w\d)_") == 0
    said = capsys.readouterr().out
    assert "learnt from 12 images (bright 6, dark 6), 6 groups" in said
    assert "left-out images: AUROC 1.000, balanced accuracy 1.000" in said
    assert f"FewShotClassifier.load({str(out)!r}, load())" in said
    head = FewShotClassifier.load(out, load(model_folder))
    pictures = [picture(path) for path in files([data])]
    assert head.predict(pictures).tolist() == ["bright"] * 6 + ["dark"] * 6


def test_a_file_gives_each_label_its_words(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_words(tiny_model(tmp_path))
    text = tmp_path / "labels.toml"
    text.write_text('bright = ["bright", "a bright picture"]\ndark = "pneumonia"\n', encoding="utf-8")
    words = ("adapt", "--data", data, "--out", tmp_path / "head", "--model", folder, "--text", text)
    assert run(*words, "--groups-from", "name:^p(.)") == 0  # one group a label: nothing can be left out
    assert "text_share 0.142857" in capsys.readouterr().out
    text.write_text("bright = 1\n", encoding="utf-8")
    with pytest.raises(SupportInvalid, match=r'bright needs \["phrase", \.\.\.\]'):
        run(*words)
    text.write_text("bright =\n", encoding="utf-8")
    with pytest.raises(SupportInvalid, match=r"labels\.toml cannot be read as TOML"):
        run(*words)
    text.write_text('bright = ["bright"]\n', encoding="utf-8")
    with pytest.raises(UnknownLabel, match="dark"):
        run(*words)


def test_a_manifest_names_labels_groups_and_split(
    data: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["file,label,patient,split"]
    rows += [f"{p.relative_to(data)},{p.parent.name},{p.name[:3]},train" for p in files([data])]
    rows += ["absent.png,dark,x,test"]
    (data / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    words = ("adapt", "--data", data, "--out", tmp_path / "head", "--model", model_folder, "--split", "train")
    assert run(*words, "--groups-from", "patient", "--method", "logistic") == 0
    assert "6 groups\nmethod: logistic (C " in capsys.readouterr().out
    with pytest.raises(SupportInvalid, match="doctor"):
        run(*words, "--groups-from", "doctor")


def test_the_patient_of_a_dicom_file_is_its_group(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = 0
    for label, level in LEVELS.items():
        for i in range(4):
            number += 1
            pixels = np.full((24, 32), 10 * level, np.uint16)
            pixels[: 2 + i, :5] = 4000
            pixels[20:] = 0
            films.film(tmp_path / "data" / label, number, pixels=pixels, PatientID=f"{label}-{i // 2}")
    words = ("adapt", "--data", tmp_path / "data", "--out", tmp_path / "head", "--model", model_folder)
    assert run(*words, "--groups-from", "patient") == 0
    said = capsys.readouterr()
    assert "learnt from 8 images (bright 4, dark 4), 4 groups" in said.out
    assert "bright-0" not in said.out + said.err


@pytest.mark.parametrize("how", ["name:(", "name:nothing-like-it", "patient", "column"])
def test_a_group_that_is_not_told_is_refused(data: Path, model_folder: Path, tmp_path: Path, how: str) -> None:
    with pytest.raises(SupportInvalid, match="--groups-from"):
        run("adapt", "--data", data, "--out", tmp_path / "head", "--model", model_folder, "--groups-from", how)
    assert not (tmp_path / "head").exists()


def test_a_folder_that_is_laid_out_otherwise_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SupportInvalid, match="one for each label"):
        run("adapt", "--data", tmp_path, "--out", tmp_path / "head", "--model", model_folder)
    (tmp_path / "manifest.csv").write_text("file,name\n", encoding="utf-8")
    with pytest.raises(SupportInvalid, match="label"):
        run("adapt", "--data", tmp_path, "--out", tmp_path / "head", "--model", model_folder)


def test_pictures_of_more_bits_keep_their_values(tmp_path: Path) -> None:
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(picture(tmp_path / "deep.png"), deep.astype(np.float32))
    Image.fromarray(np.full((4, 4, 4), 9, np.uint8), mode="RGBA").save(tmp_path / "colour.png")
    assert picture(tmp_path / "colour.png").shape == (4, 4, 3)
    with pytest.raises(ImageInvalid):
        picture(tmp_path / "absent.png")
