"""Keep the head of the audit trail outside the database, so that a cut tail shows."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from app import durable
from app.errors import CheckpointUnreadable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest event of an audit trail: its sequence number and hash."""

    sequence: int
    hash: str


class Checkpoint:
    """A small file that holds the newest committed head and never goes back.

    Whoever can rewrite the database and this file can still cut the tail unseen, so copies of the file belong on
    another machine: `hilum audit verify --checkpoint COPY` takes any of them, however old.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def head(self) -> Head | None:
        """The head that was last kept, None before the first. Raises CheckpointUnreadable."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            return Head(sequence=int(kept["sequence"]), hash=str(kept["hash"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as exc:
            raise CheckpointUnreadable(self.path) from exc

    def advance(self, head: Head) -> None:
        """Keep a newer head; an older one than that on disk is left alone, as another process was faster."""
        durable.make_folder(self.path.parent)
        with self._locked():
            kept = self.head()
            if kept is not None and kept.sequence >= head.sequence:
                return
            temporary = self.path.with_suffix(".new")
            with temporary.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(head)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            durable.replace(temporary, self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
