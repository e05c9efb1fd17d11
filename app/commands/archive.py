"""Talk to an archive that the settings name: whether it answers, what it has, give me that, take this.

What is fetched or sent can be de-identified on the way.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.deidentification import KEY, add_deidentification, copies
from app.commands.progress import clear, show

if TYPE_CHECKING:  # imported when run, so that `hilum --help` stays fast
    from collections.abc import Sequence

    from dicom_io.archive import Archive, Match


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum archive echo|find|fetch|send`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    echo = verbs.add_parser("echo", help="ask whether it answers")
    find = verbs.add_parser(
        "find",
        help="list the studies, series or instances that it has",
        description="List what an archive has. Keys that are left out match everything; * and ? are wildcards.",
    )
    fetch = verbs.add_parser(
        "fetch",
        help="fetch a study, a series or an instance into a folder",
        description="Fetch instances into a folder, each as SOP-INSTANCE-UID.dcm. What is there already is not fetched "
        "again, so a stopped fetch goes on when the same command is given once more.",
    )
    send = verbs.add_parser(
        "send",
        help="send files or folders to it",
        description="Send Part 10 files as they are, nothing recompressed, and say what became of each.",
    )
    for verb in (echo, find, fetch, send):
        verb.add_argument("peer", help="its name in pacs.peers or pacs.web_peers")
    find.add_argument("--level", choices=("study", "series", "image"), default="study", help="default: study")
    find.add_argument("--patient-id", metavar="ID")
    find.add_argument("--patient-name", metavar="NAME", help="such as 'DOE^J*'")
    find.add_argument("--accession-number", metavar="NUMBER")
    find.add_argument("--modality", metavar="CODE", help="such as CT")
    find.add_argument("--since", type=day, metavar="YYYY-MM-DD", help="study date not before")
    find.add_argument("--until", type=day, metavar="YYYY-MM-DD", help="study date not after")
    for verb in (find, fetch):
        verb.add_argument("--study", metavar="UID", required=verb is fetch, help="Study Instance UID")
        verb.add_argument("--series", metavar="UID", help="Series Instance UID")
        verb.add_argument("--instance", metavar="UID", help="SOP Instance UID")
    fetch.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to; made if it is not there")
    fetch.add_argument(
        "--priors", type=int, default=0, metavar="N", help="also the N newest earlier studies of the same patient"
    )
    send.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    for verb in (fetch, send):
        group = add_deidentification(verb)
        group.add_argument(
            "--deidentify", action="store_true", help="by the Basic Application Level Confidentiality Profile"
        )
        group.add_argument("--key", **KEY)
    for verb in (find, fetch, send):
        verb.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Run one verb. Raises ConfigError and PeerError; 1 when a file was refused."""
    from app.config import load
    from app.errors import ConfigInvalid
    from app.peers import archive

    if getattr(args, "deidentify", False) and args.key is None:
        raise ConfigInvalid("--deidentify needs --key FILE, by which the same patient stays the same patient")
    chosen = archive(args.peer, load(args.config).pacs)
    if args.verb == "echo":
        chosen.echo()
        print(f"{args.peer} answers")
        return 0
    if args.verb == "find":
        return _find(chosen, args)
    if args.verb == "fetch":
        return _fetch(chosen, args)
    return _send(chosen, args)


def _find(chosen: "Archive", args: argparse.Namespace) -> int:
    from dicom_io.archive import Query

    query = Query(
        level=args.level.upper(),
        patient_id=args.patient_id,
        patient_name=args.patient_name,
        accession_number=args.accession_number,
        study_instance_uid=args.study,
        series_instance_uid=args.series,
        sop_instance_uid=args.instance,
        study_dates=(args.since, args.until),
        modality=args.modality,
    )
    found = list(chosen.find(query))
    for match in sorted(found, key=lambda m: (m.study_date or date.min, m.number or 0), reverse=args.level == "study"):
        print(json.dumps(asdict(match), default=str) if args.json else _row(match), flush=True)
    if not args.json:
        print(f"{len(found)} found", file=sys.stderr)
    return 0


def _row(match: "Match") -> str:
    uid = match.sop_instance_uid or match.series_instance_uid or match.study_instance_uid
    patient = (match.patient_id, match.patient_name) if match.series_instance_uid is None else ()
    said = [
        str(match.study_date or "") if match.series_instance_uid is None else f"no. {match.number}",
        *patient,
        "/".join(match.modalities),
        match.description,
        None if match.instances is None else f"{match.instances} instances",
    ]
    return "  ".join([uid, *(word for word in said if word)])


def _fetch(chosen: "Archive", args: argparse.Namespace) -> int:
    from dicom_io.archive import Query, instances, priors
    from dicom_io.errors import PeerHasNot

    wanted = list(instances(chosen, args.study, series=args.series, instance=args.instance))
    if not wanted:
        raise PeerHasNot(f"{args.peer} has no instance that matches")
    if args.priors:
        [study] = chosen.find(Query(study_instance_uid=args.study))
        for prior in priors(chosen, study, most=args.priors):
            wanted += instances(chosen, prior.study_instance_uid)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.deidentify:
        with tempfile.TemporaryDirectory(dir=args.out, prefix=".fetched-") as folder:
            _fetched(chosen, wanted, Path(folder), args)
            return 1 if copies([Path(folder)], args.out, args).held else 0
    _fetched(chosen, wanted, args.out, args)
    return 0


def _fetched(chosen: "Archive", wanted: "Sequence[Match]", out: Path, args: argparse.Namespace) -> None:
    """Put what is not there yet into a folder. Raises PeerGaveLess."""
    from dicom_io.archive import kept_as
    from dicom_io.errors import PeerGaveLess

    missing = [one for one in wanted if not kept_as(out, str(one.sop_instance_uid)).is_file()]
    fetched = 0
    # What comes in passes through a temporary file, which belongs on the disk of the user's folder.
    before, tempfile.tempdir = tempfile.tempdir, str(out)
    try:
        for path in chosen.fetch(missing, out):
            fetched += 1
            show(f"{fetched} of {len(missing)} instances")
            if args.json and not args.deidentify:
                print(json.dumps({"path": str(path), "sop_instance_uid": path.stem}), flush=True)
    finally:
        tempfile.tempdir = before
    clear()
    there = len(wanted) - len(missing)
    print(f"{fetched} fetched, {there} were there already", file=sys.stderr)
    if fetched < len(missing):
        raise PeerGaveLess(f"{len(missing) - fetched} of {len(missing)} instances did not come; ask again for the rest")


def _send(chosen: "Archive", args: argparse.Namespace) -> int:
    if not args.deidentify:
        return _sent(chosen, args.paths, args)
    with tempfile.TemporaryDirectory(prefix="hilum-deidentified-") as folder:
        held = copies(args.paths, Path(folder) / "out", args).held
        return _sent(chosen, [Path(folder) / "out"], args) or (1 if held else 0)


def _sent(chosen: "Archive", paths: "Sequence[Path]", args: argparse.Namespace) -> int:
    """1 when a file was not stored."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if not file.is_dir()]
    ours, failures = [], 0
    for file in files:
        reason = _not_sent(file)
        if reason is None:
            ours.append(file)
        else:
            failures += 1
            _said(file, "refused", reason, as_json=args.json)
    for number, answer in enumerate(chosen.store(ours), start=1):
        show(f"{number} of {len(ours)} files")
        failures += answer.outcome == "refused"
        if args.json or answer.outcome != "stored":
            clear()
            _said(answer.path, answer.outcome, answer.status, as_json=args.json)
    clear()
    print(f"{len(files) - failures} of {len(files)} files stored", file=sys.stderr)
    return 1 if failures else 0


def _said(path: Path, outcome: str, status: str, *, as_json: bool) -> None:
    line = {"path": str(path), "outcome": outcome, "status": status}
    print(json.dumps(line) if as_json else f"{path}: {outcome}: {status}", flush=True)


def _not_sent(file: Path) -> str | None:
    """Why a file cannot be sent at all."""
    try:
        with file.open("rb") as opened:
            opened.seek(128)
            return None if opened.read(4) == b"DICM" else "no DICOM Part 10 file"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"


def day(text: str) -> date:
    """A day of an option."""
    try:
        return datetime.strptime(text.replace("-", ""), "%Y%m%d").date()  # noqa: DTZ007  # a day has no time zone
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write YYYY-MM-DD") from exc
