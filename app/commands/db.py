"""Bring the database up to date, say where it is, or compare it with this version."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum db upgrade|current|check`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser(
        "upgrade",
        help="run the missing migrations",
        description="Run the missing migrations in one transaction. Others may go on working meanwhile.",
    )
    verbs.add_parser("current", help="print the revision", description="Print the revision the database is at.")
    verbs.add_parser(
        "check",
        help="compare tables and triggers with this version",
        description="Compare the database's tables, indexes and append-only triggers with what this version works "
        "with. Prints the differences and returns 1 if there are any.",
    )


def run(args: argparse.Namespace) -> int:
    """Run one verb. `check` returns 1 where the database differs."""
    from app.config import load
    from app.db import migrate
    from app.db.session import engine

    database = engine(load(args.config).storage.database_url)
    try:
        match args.verb:
            case "upgrade":
                before, after = migrate.upgrade(database)
                print(f"{after}" if before == after else f"{before or 'nothing'} -> {after}")
            case "current":
                print(migrate.current(database) or "nothing")
            case _:
                differences = migrate.differences(database)
                print("\n".join(differences) or f"the database is as {migrate.newest()} says")
                return 1 if differences else 0
    finally:
        database.dispose()
    return 0
