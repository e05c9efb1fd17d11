"""Give kept studies to research: de-identified copies in a folder, and `findings.csv` beside them."""

import argparse
import sys
from pathlib import Path

from app.commands.archive import day
from app.commands.deidentification import KEY, add_deidentification, copies, deidentifier

FINDINGS = "findings.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum export`'s options."""
    parser.description = (
        "Copy kept studies into a folder, de-identified by PS3.15's Basic Profile, each file as NEW-UID.dcm, and write "
        f"{FINDINGS}: what the model said of each. The same key gives the same names again. Research use only."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to; made if it is not there")
    parser.add_argument("--study", action="append", default=[], metavar="UID", help="may be given several times; or:")
    parser.add_argument("--since", type=day, metavar="YYYY-MM-DD", help="study date not before")
    parser.add_argument("--until", type=day, metavar="YYYY-MM-DD", help="study date not after")
    parser.add_argument("--modality", metavar="CODE", help="such as CT")
    add_deidentification(parser).add_argument("--key", required=True, **KEY)


def run(args: argparse.Namespace) -> int:
    """Export; 1 when a study was held. Raises NotFound, SpoolError and DatabaseError."""
    from app import wiring
    from app.config import load
    from app.export import chosen, note, write_findings
    from app.identity import LOCAL_USER
    from app.spool import Spool

    storage = load(args.config).storage
    with wiring.records(storage) as sessions:
        with sessions() as session:
            instances = chosen(session, studies=args.study, since=args.since, until=args.until, modality=args.modality)
        if not instances:
            print("no kept study fits", file=sys.stderr)
            return 0
        spool = Spool(storage.spool)
        paths = [spool.path(instance.sha256) for instance in instances]
        note(sessions, instances, actor=LOCAL_USER, now=wiring.utc_now)
        made = copies(paths, args.out, args)
        with sessions() as session:
            rows = write_findings(
                args.out / FINDINGS, instances, made.paths, session=session, deidentifier=deidentifier(args)
            )
    print(f"{rows} rows in {args.out / FINDINGS}", file=sys.stderr)
    return 1 if made.held else 0
