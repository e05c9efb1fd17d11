"""Put bytes on disk so that a name is there with all its bytes or not at all, also after power loss."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; fsync of a file does not do that for the entry that names it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and the missing ones above it, each entry durable. Group may read, others not."""
    missing = [candidate for candidate in (folder, *folder.parents) if not candidate.exists()]
    for candidate in reversed(missing):
        candidate.mkdir(mode=0o750, exist_ok=True)
        sync_folder(candidate.parent)


def replace(temporary: Path, target: Path) -> None:
    """Give a file that is already synced its final name, durably. Both lie on one file system."""
    temporary.replace(target)
    sync_folder(target.parent)
