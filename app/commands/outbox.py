"""Show the results that wait for a peer or were refused by it, and have them sent again."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.db.work import Publication


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum outbox list|retry`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    shown = verbs.add_parser(
        "list",
        help="what has not arrived, and why",
        description="List what has not arrived. PENDING: it waits for its peer. FAILED: it was refused.",
    )
    shown.add_argument("--all", action="store_true", help="those that have arrived as well")
    shown.add_argument("--json", action="store_true", help="print one JSON object a line")
    again = verbs.add_parser(
        "retry",
        help="send what was refused once more",
        description="Put refused results back into the outbox, once what kept the peer from taking them is mended. The "
        "worker sends them in the order they were made.",
    )
    again.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="as `hilum outbox list` shows them")
    again.add_argument("--destination", metavar="PEER", help="all that this peer refused")


def run(args: argparse.Namespace) -> int:
    """Run one verb. Raises NotFound, ConfigInvalid and DatabaseError."""
    from app import publish, wiring
    from app.config import load
    from app.errors import ConfigInvalid
    from app.identity import LOCAL_USER

    with wiring.records(load(args.config).storage) as sessions:
        if args.verb == "list":
            return _list(publish.outbox(sessions, arrived=args.all), as_json=args.json)
        if bool(args.numbers) == (args.destination is not None):
            raise ConfigInvalid("name the results by their numbers, or the peer with --destination")
        count = publish.retry(
            sessions, numbers=args.numbers, destination=args.destination, actor=LOCAL_USER, now=wiring.utc_now
        )
    print(f"{count} results wait again; the worker sends them", file=sys.stderr)
    return 0


def _list(rows: "list[Publication]", *, as_json: bool) -> int:
    for row in rows:
        said = {
            "number": row.id,
            "state": row.state,
            "destination": row.destination,
            "kind": row.kind,
            "uid": row.sop_instance_uid,
            "attempts": row.attempts,
            "next_attempt_at": row.next_attempt_at.isoformat() if row.state == "PENDING" else None,
            "error": row.error_code and {"code": row.error_code, "message": row.error_message},
        }
        if as_json:
            print(json.dumps(said))
            continue
        why = f"  {row.error_code}: {row.error_message}" if row.error_code else ""
        print(f"{row.id:>6}  {row.state:<7}  {row.destination}  {row.kind}  {row.attempts} attempts{why}")
    print(f"{len(rows)} results", file=sys.stderr)
    return 0
