"""`hilum model info|verify`."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.cli import build_parser
from app.commands import model
from tests.vision_model.tiny import tiny_model
from vision_model import load
from vision_model.errors import GraphInvalid, ModelDigestMismatch, ModelNotFound
from vision_model.manifest import GOLDEN_NAME


def run(*words: str | Path) -> int:
    argv = ["model", *map(str, words)]
    return model.run(build_parser(argv).parse_args(argv))


def golden(folder: Path, *, off_by: float = 0.0) -> None:
    """Write outputs of the graph beside it, as an export would."""
    images = np.random.default_rng(1).normal(size=(2, 3, 28, 28)).astype(np.float32)
    logits, ood = load(folder).run(images, ["logits", "ood"])
    np.savez(folder / GOLDEN_NAME, images=images, logits=logits + np.float32(off_by), ood=ood)


def test_info_says_for_whom_and_how_well_each_task_answers(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", model_folder) == 0
    printed = capsys.readouterr().out
    assert "children of 1 to 5 years" in printed
    assert "test AUROC 0.900 (95 % interval 0.800 to 1.000)" in printed
    assert "Research use only" in printed


def test_info_is_json_for_a_program(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", model_folder, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["name"] == "tiny"
    assert said["tasks"][0]["population"]["maximum_age_years"] == 6


def test_a_whole_model_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model(tmp_path / "model")
    assert run("verify", folder) == 0
    assert "no golden.npz" in capsys.readouterr().out
    golden(folder)
    assert run("verify", folder) == 0
    assert "golden outputs repeated" in capsys.readouterr().out


def test_other_outputs_than_the_golden_ones_are_found(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    golden(folder, off_by=0.01)
    with pytest.raises(GraphInvalid, match=r"golden\.npz"):
        run("verify", folder)


def test_a_flipped_bit_in_the_graph_is_found(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    graph = bytearray((folder / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (folder / "model.onnx").write_bytes(graph)
    with pytest.raises(ModelDigestMismatch):
        run("verify", folder)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        run("info", tmp_path)
