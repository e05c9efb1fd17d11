"""The benchmark measures the real road; its figures are for reading, never for passing or failing a test."""

import json
from pathlib import Path

import pytest

from app.cli import main
from app.commands.bench import STAGES
from tests.vision_model.tiny import tiny_model


def test_bench_times_every_stage_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HILUM__MODEL__PATH", str(tiny_model(tmp_path / "model", route="CT-HEAD")))
    assert main(["bench", "--repeat", "2", "--few-shot", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert all(figures[f"{stage}_ms"] > 0 for stage in (*STAGES, "whole", "bare"))
    assert figures["whole_over_bare"] == pytest.approx(figures["whole_ms"] / figures["bare_ms"])
    assert figures["few_shot_s"] > 0
    assert figures["first_few_shot_s"] > 0
    assert [(g["precision"], g["batch"]) for g in figures["graphs"]] == [("fp32", 1), ("fp32", 8)]
    assert all(g["of_fp32"] == 1 and g["ms"] > 0 and g["file_bytes"] > 0 for g in figures["graphs"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
