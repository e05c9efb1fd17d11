"""Nothing is reported to ONNX Runtime's maker: it would keep its reports in the home folder until it can send them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vision_model.tiny import tiny_model

ROOT = Path(__file__).parents[2]
# ONNX Runtime is also silent in continuous integration, which would hide what it does in a hospital.
HUSHING = ("CI", "ORT_", "GITHUB_", "TF_BUILD")


@pytest.mark.parametrize("first", ["vision_model", "app.record", "app.wiring"])
def test_a_session_leaves_no_report_whatever_is_imported_first(first: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(HUSHING)}
    model = tiny_model(tmp_path / "model")
    program = f"import {first}, vision_model; vision_model.load({str(model)!r})"
    subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert list(home.rglob("*")) == []
