"""The `hilum` command: pick the subcommand, run it, and turn what it raises into an exit code."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from app import logs

COMMANDS = {
    "serve": "show the web page, and answer its uploads",
    "listen": "take what the DICOM network sends",
    "worker": "diagnose what other processes take in from the network",
    "diagnose": "read files, folders or zips once and print what the model says",
    "export": "give kept studies to research, de-identified, with what was found in them",
    "archive": "ask a PACS what it has, fetch that, or send files to it",
    "outbox": "show results that have not arrived, and send refused ones again",
    "model": "describe or verify a model",
    "db": "bring the database up to date, or compare it with this version",
    "audit": "verify the audit trail",
    "config": "show or check the settings, or hash a password",
    "bench": "time the road from file to record on this machine",
}
DONE, DOMAIN_ERROR, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0 done, 1 a domain error (code and message on stderr), 2 wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(words)
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    logs.setup(verbose=args.verbose)
    try:
        code: int = importlib.import_module(f"app.commands.{args.command}").run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`hilum ... | head`); nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DOMAIN_ERROR
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)  # noqa: T201 (the shell is the reader)
        return DOMAIN_ERROR
    return code


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these words; only the commands among them are imported for their arguments."""
    parser = argparse.ArgumentParser(
        prog="hilum",
        description="A medical imaging foundation model with a web diagnosis UI. Research use only, not for diagnosis.",
        epilog="`hilum COMMAND --help` tells more. Exit codes: 0 done, 1 an error of the domain, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hilum {version('hilum')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(
            name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False
        )
        if name in words:
            importlib.import_module(f"app.commands.{name}").add_arguments(command)
            _add_common(command)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    """`--config` and `--verbose`, understood after the command as well as after a subcommand."""
    parser.set_defaults(config=None, verbose=False)
    leaves = [parser]
    for action in parser._actions:  # noqa: SLF001 (argparse has no public way to walk a parser's subcommands)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            leaves += action.choices.values()
    for leaf in leaves:
        options = leaf.add_argument_group("common options")
        options.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            default=argparse.SUPPRESS,
            help="settings file in TOML; HILUM__SECTION__KEY in the environment goes over it",
        )
        options.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="log more")


def _sentence(error: Exception) -> str | None:
    """`code: message` of an error that was raised on purpose or by a database out of reach; None for a bug."""
    for module, name in (
        ("app.errors", "HilumError"),
        ("dicom_io.errors", "DicomError"),
        ("vision_model.errors", "VisionModelError"),
    ):
        # An error can only come from a module that is loaded, and loading the model's takes a second.
        tree = getattr(sys.modules.get(module), name, None)
        if tree is not None and isinstance(error, tree):
            return f"{error.code}: {error}"
    database = sys.modules.get("sqlalchemy.exc")
    if database is not None and isinstance(error, database.OperationalError):
        return f"database.unavailable: {str(error.orig).partition(chr(10))[0]}"
    return None
