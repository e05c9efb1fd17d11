"""Verify the audit trail and, if asked, the files that it names."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum audit verify`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verify = verbs.add_parser(
        "verify",
        help="recompute the trail and name the first row that does not hold",
        description="Recompute every event's hash and every row's digest, and compare the end of the trail with the "
        "checkpoint outside the database. Returns 1 and names the first row that does not hold.",
    )
    verify.add_argument(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        help="a copy of the checkpoint, of any age, that was kept elsewhere (default: storage.checkpoint)",
    )
    verify.add_argument("--files", action="store_true", help="read every file of the spool as well")
    verify.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what was verified. Raises AuditBroken, and SpoolError for the first file that does not hold."""
    from app.commands import progress
    from app.config import load
    from app.db import audit, migrate
    from app.db.checkpoint import Checkpoint
    from app.db.session import engine, sessions
    from app.errors import AuditBroken, CheckpointMissing

    settings = load(args.config)
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise CheckpointMissing(args.checkpoint)
    database = engine(settings.storage.database_url)
    try:
        migrate.require_current(database)
        with sessions(database, checkpoint=None)() as session:
            kept = Checkpoint(args.checkpoint or settings.storage.checkpoint)
            report = audit.verify(session, kept, progress=lambda events: progress.show(f"{events} events verified"))
            files = _verify_files(session, settings.storage.spool) if args.files and report.broken is None else None
    finally:
        progress.clear()
        database.dispose()
    if args.json:
        print(json.dumps({**asdict(report), "files": files}))
    if report.broken is not None:
        raise AuditBroken(str(report.broken))
    if not args.json:
        read = "" if files is None else f" and {files} files"
        end = f"the checkpoint knows {report.checkpoint.sequence}" if report.checkpoint else "nothing was recorded yet"
        print(f"the audit trail holds: {report.events} events over {report.rows} rows{read}; {end}")
    return 0


def _verify_files(session: "Session", root: Path) -> int:
    """Read every file that an audited row names; how many there were. Raises NotInSpool and SpoolDamaged."""
    from sqlalchemy import select, union

    from app.commands import progress
    from app.db.tables import Reception, StoredInstance
    from app.spool import Spool

    spool = Spool(root)
    kept = select(StoredInstance.sha256)
    quarantined = select(Reception.sha256).where(Reception.outcome == "quarantined", Reception.sha256.is_not(None))
    count = 0
    for sha256 in session.scalars(union(kept, quarantined)):
        spool.check(sha256)
        count += 1
        progress.show(f"{count} files read")
    return count
