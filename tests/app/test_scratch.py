"""Folders for passing files end with their work, also when the process does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.scratch import scratch_folder, sweep


def test_a_folder_is_gone_with_its_files_afterwards(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        (folder / "member.dcm").write_bytes(b"x")
        assert folder.parent == tmp_path
    assert not folder.exists()


def test_a_folder_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on purpose"), scratch_folder(tmp_path) as folder:
        raise ValueError("on purpose")
    assert not folder.exists()


def test_a_folder_in_use_is_not_swept(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        assert sweep(tmp_path) == 0
        assert folder.exists()


def test_a_folder_of_a_dead_process_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from app.scratch import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'patient.dcm').write_bytes(b'x'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False, cwd=Path(__file__).resolve().parents[2])
    assert list(tmp_path.rglob("patient.dcm"))
    assert sweep(tmp_path) == 1
    assert list(tmp_path.rglob("patient.dcm")) == []
