"""Give one piece of work a folder for its passing files, and make sure that none outlives it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A private folder under `root`, removed on leaving; after a crash the next `sweep` removes it."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(root / _LOCK, fcntl.LOCK_SH):  # no sweep between making the folder and locking it
        folder = Path(tempfile.mkdtemp(dir=root))
        held = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def sweep(root: Path) -> int:
    """Remove the folders under `root` whose process is gone, and say how many: the kernel drops a dead one's lock."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    removed = 0
    with _locked(root / _LOCK, fcntl.LOCK_EX):
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            try:
                with _locked(folder / _LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                continue
            removed += 1
    return removed


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
