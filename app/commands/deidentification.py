"""What the commands that de-identify share: their options, and the copies they make."""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.progress import clear, show

if TYPE_CHECKING:  # imported when run, so that `hilum --help` stays fast
    from collections.abc import Sequence

    from dicom_io.deidentify.header import Deidentifier
    from dicom_io.deidentify.pixels import Rectangle

KEY: dict[str, Any] = {
    "type": Path,
    "metavar": "FILE",
    "help": "the project's key, made if it is not there; keep it secret and safe",
}


def add_deidentification(verb: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """The options of the profile, in a group of their own, without the key."""
    from dicom_io.deidentify.profile import Option

    group = verb.add_argument_group(
        "de-identification",
        "PS3.15 Annex E. A study in whose pixels letters may stand is held, and nothing of it leaves, until a person "
        "has looked and named it with --release, or blanked the letters with --blank.",
    )
    group.add_argument(
        "--option",
        action="append",
        default=[],
        choices=[option.word for option in Option if option is not Option.CLEAN_PIXEL_DATA],
        help="an option of the profile; may be given several times",
    )
    group.add_argument("--release", action="append", default=[], metavar="UID", help="a study or instance looked at")
    group.add_argument(
        "--blank",
        action="append",
        default=[],
        type=_rectangle,
        metavar="ROW,COLUMN,ROWS,COLUMNS",
        help="pixels to blank on every frame (Clean Pixel Data)",
    )
    group.add_argument("--report", type=Path, metavar="FILE", help="where to write what was changed and what was held")
    return group


def _rectangle(text: str) -> "Rectangle":
    from dicom_io.deidentify.pixels import Rectangle

    try:
        row, column, rows, columns = map(int, text.split(","))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COLUMN,ROWS,COLUMNS") from exc
    if min(row, column) < 0 or min(rows, columns) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} lies outside of any image")
    return Rectangle(row, column, rows, columns)


@dataclass(frozen=True, slots=True)
class Copies:
    """What was written, and of how many studies nothing was."""

    paths: list[Path]
    held: int


def deidentifier(args: argparse.Namespace) -> "Deidentifier":
    """What the options ask for. Raises ConfigInvalid for a key that is none."""
    from app.deidentify import project_key
    from dicom_io.deidentify.header import Deidentifier
    from dicom_io.deidentify.profile import Option
    from dicom_io.deidentify.project import Project

    chosen = {option for option in Option if option.word in args.option}
    if args.blank:
        chosen.add(Option.CLEAN_PIXEL_DATA)
    return Deidentifier(Project(project_key(args.key)), frozenset(chosen))


def copies(paths: "Sequence[Path]", out: Path, args: argparse.Namespace) -> Copies:
    """Put de-identified copies into a folder, and say what is held."""
    from app.config import load
    from app.deidentify import Held, deidentify
    from dicom_io.sandbox import Sandbox

    reading = load(args.config).reading
    written, held = list[Path](), set[str]()
    out.mkdir(parents=True, exist_ok=True)  # what passes lies there too: the folder above may not be the user's
    with Sandbox(workers=1, limits=reading.limits) as sandbox, tempfile.TemporaryDirectory(dir=out) as scratch:
        for outcome in deidentify(
            paths,
            out=out,
            report=args.report,
            deidentifier=deidentifier(args),
            sandbox=sandbox,
            limits=reading.limits,
            scratch=Path(scratch),
            released=frozenset(args.release),
            rectangles=args.blank,
        ):
            if isinstance(outcome, Held):
                clear()
                held.add(outcome.study_instance_uid)
                print(f"held: {outcome.sop_instance_uid} of study {outcome.study_instance_uid}: {outcome.reason}")
            else:
                written.append(outcome)
                show(f"{len(written)} de-identified")
    clear()
    print(f"{len(written)} de-identified, {len(held)} studies held", file=sys.stderr)
    if held:
        print(
            "look at what is held, then name it with --release UID, or blank the letters with --blank", file=sys.stderr
        )
    return Copies(written, len(held))
