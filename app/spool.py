"""Keep received files by the SHA-256 of their bytes, durably before anybody is told that they arrived."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from app import durable
from app.errors import DiskShort, NotInSpool, SpoolDamaged, SpoolUnwritable

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
ABANDONED_SECONDS = 60.0  # an unlocked temporary file older than this has lost its writer


class Kept(NamedTuple):
    """What `Spool.put` did."""

    sha256: str
    size_bytes: int
    was_new: bool


class Spool:
    """Files under `root/ab/cd/<sha256>`; the name is the digest, so no name from outside ever reaches the disk.

    Any number of threads and processes may use one root. Arriving bytes are written under `root/incoming`, on the
    same file system, and get their name only once they are all on disk. What a killed process leaves there is
    removed when the next one opens the spool.
    """

    def __init__(self, root: Path, *, keep_free_bytes: int = 0) -> None:
        """Raises SpoolUnwritable."""
        self.root = root
        self.keep_free_bytes = keep_free_bytes
        self._incoming = root / "incoming"
        try:
            durable.make_folder(self._incoming)
            self._remove_abandoned()
        except OSError as exc:
            raise SpoolUnwritable(root, exc.strerror or str(exc)) from exc

    def put(self, source: Path | bytes) -> Kept:
        """Keep a file's or the given bytes; the same bytes are kept once.

        On return file and folder are synced. Raises DiskShort and SpoolUnwritable; then nothing was kept.
        """
        size_bytes = source.stat().st_size if isinstance(source, Path) else len(source)
        free_bytes = shutil.disk_usage(self.root).free
        needed_bytes = size_bytes + self.keep_free_bytes
        if free_bytes < needed_bytes:
            raise DiskShort(self.root, free_bytes=free_bytes, needed_bytes=needed_bytes)
        try:
            return self._put(source)
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskShort(self.root, free_bytes=free_bytes, needed_bytes=needed_bytes) from exc
            raise SpoolUnwritable(self.root, exc.strerror or str(exc)) from exc

    def path(self, sha256: str) -> Path:
        """Where the bytes with this digest lie. Raises NotInSpool."""
        path = self._place(sha256)
        if not path.is_file():
            raise NotInSpool(sha256)
        return path

    def check(self, sha256: str) -> None:
        """Read a kept file and compare. Raises NotInSpool and SpoolDamaged."""
        if _digest(self.path(sha256)) != sha256:
            raise SpoolDamaged(sha256)

    def _put(self, source: Path | bytes) -> Kept:
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # tells `_remove_abandoned` that the writer lives
                sha256, size_bytes = _copy(source, file)
                target = self._place(sha256)
                intact = target.is_file() and target.stat().st_size == size_bytes and _digest(target) == sha256
                if intact:
                    durable.sync_folder(target.parent)  # whoever put it there may not have come to this yet
                else:
                    os.fchmod(file.fileno(), 0o440)
                    file.flush()
                    os.fsync(file.fileno())
                    durable.make_folder(target.parent)
                    durable.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return Kept(sha256, size_bytes, was_new=not intact)

    def _place(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise NotInSpool(sha256)
        return self.root / sha256[:2] / sha256[2:4] / sha256

    def _remove_abandoned(self) -> None:
        for path in self._incoming.iterdir():
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # A writer that has just made its file may not hold the lock yet.
                    if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                        path.unlink()
                        logger.info("removed a file of the spool that was cut off while it arrived")
            except (BlockingIOError, FileNotFoundError):
                continue


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _copy(source: Path | bytes, file: BinaryIO) -> tuple[str, int]:
    digest, size_bytes = hashlib.sha256(), 0
    for chunk in _chunks(source):
        digest.update(chunk)
        size_bytes += file.write(chunk)
    return digest.hexdigest(), size_bytes


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
