"""Show the settings that hold, check them, or make a password's hash."""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.config import Settings

HIDDEN = "***"
SECRET = frozenset({"password_hash", "secret_hash", "password", "token"})
MINIMUM_LENGTH = 12  # NIST SP 800-63B asks for 8 or more beside a second factor, and for 15 alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum config show|check|hash-password`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    show = verbs.add_parser(
        "show",
        help="print the settings that hold",
        description="Print every setting as it holds after the file and the environment, as TOML that --config "
        "takes. Passwords and hashes are hidden. A commented line is a setting without a value.",
    )
    show.add_argument("--json", action="store_true", help="print one JSON object instead")
    verbs.add_parser(
        "check",
        help="check the settings and what they name",
        description="Check every setting, that the folders they name can be written, and that the database answers. "
        "Nothing is made or changed.",
    )
    verbs.add_parser(
        "hash-password",
        help="make the hash for web.password_hash",
        description="Ask for a password twice without showing it, or read one line where stdin is no terminal, and "
        "print its scrypt hash for web.password_hash.",
    )


def run(args: argparse.Namespace) -> int:
    """Run one verb. Raises ConfigError, and DatabaseError where the database does not answer."""
    if args.verb == "hash-password":
        return _hash_password()
    from app.config import load

    settings = load(args.config)
    if args.verb == "check":
        _check(settings)
        print("the settings can be used")
    elif args.json:
        print(json.dumps(_nested(settings)))
    else:
        print("\n".join(_toml(settings)))
    return 0


def _check(settings: "Settings") -> None:
    from app.db import migrate
    from app.db.session import engine, sqlite_file
    from app.errors import ConfigInvalid

    storage = settings.storage
    file = sqlite_file(storage.database_url)
    folders = {"storage.spool": storage.spool, "storage.checkpoint": storage.checkpoint.parent}
    if file is not None:
        folders["storage.database_url"] = file.parent
    for key, folder in folders.items():
        standing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
            raise ConfigInvalid(f"{key}: {standing} cannot be written by this user; change its owner or the setting")
    if settings.model.path is not None and not settings.model.path.is_dir():
        raise ConfigInvalid(f"model.path: {settings.model.path} is no folder")
    if file is not None and not file.exists():
        return  # the first command that needs it makes it
    database = engine(storage.database_url)
    try:
        migrate.current(database)
    finally:
        database.dispose()


def _hash_password() -> int:
    from app.errors import ConfigInvalid
    from app.passwords import hash_password

    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            raise ConfigInvalid("the two passwords differ; nothing was made")
    else:
        password = sys.stdin.readline().rstrip("\n")
    if len(password) < MINIMUM_LENGTH:
        raise ConfigInvalid(f"a password has at least {MINIMUM_LENGTH} characters; several words are a good one")
    print(hash_password(password))
    return 0


def _shown(key: str, value: Any) -> Any:
    """A value as it may be printed."""
    from app.db.session import without_password

    if value is None:
        return None
    if key.rpartition(".")[2] in SECRET:
        return HIDDEN
    if key == "storage.database_url":
        return without_password(value)
    return str(value) if isinstance(value, Path) else value


def _nested(settings: "Settings") -> dict[str, Any]:
    from app.config import settings_keys

    tree: dict[str, Any] = {}
    for key, value, _ in settings_keys(settings):
        *tables, name = key.split(".")
        place = tree
        for table in tables:
            place = place.setdefault(table, {})
        place[name] = _shown(key, value)
    return tree


def _toml(settings: "Settings") -> Iterator[str]:
    from app.config import settings_keys

    current = ""
    for key, value, meaning in settings_keys(settings):
        table, _, name = key.rpartition(".")
        if table != current:
            yield from ([""] if current else []) + [f"[{table}]"]
            current = table
        shown = _shown(key, value)
        # A JSON string or number is the same in TOML.
        line = f"# {name} =" if shown is None else f"{name} = {json.dumps(shown, ensure_ascii=False)}"
        yield f"{line}  # {meaning}" if meaning else line
