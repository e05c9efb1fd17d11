"""Read files, folders or zips once, and print what the model says and what it does not."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from app import wiring
from app.config import load
from app.diagnose import diagnose, plan
from app.gate import OLDEST_BELIEVED_YEARS
from app.identity import LOCAL_USER
from app.receive import NotReceived, Received, look, receive
from app.results import Diagnosed, NotDiagnosed, as_json
from vision_model.manifest import Manifest

NOTICE = "Research use only, not for diagnostic use."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`hilum diagnose`'s options."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, a folder, a zip or a DICOMDIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line for each image or bad file")
    parser.add_argument("--dry-run", action="store_true", help="read and predict, and keep nothing")
    parser.add_argument(
        "--age", type=_years, metavar="YEARS", help="the patient's age; one that a file states goes before it"
    )


def run(args: argparse.Namespace) -> int:
    """Print results as they are kept; 1 when a file could not be taken in or read, after going on with the rest."""
    settings = load(args.config)
    with ExitStack() as stack:
        parts: wiring.Readers
        arrivals: Iterator[Received | NotReceived]
        limits, sessions = settings.reading.limits, None
        if args.dry_run:
            parts = stack.enter_context(wiring.readers(settings))
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="hilum-")))
            arrivals = look(args.paths, sandbox=parts.sandbox, limits=limits, scratch=folder)
        else:
            parts = services = stack.enter_context(wiring.services(settings))
            sessions = services.sessions
            arrivals = receive(
                args.paths,
                spool=services.spool,
                sandbox=services.sandbox,
                sessions=sessions,
                limits=limits,
                scratch=services.scratch,
                actor=LOCAL_USER,
                now=services.now,
            )
        progress = _Progress()
        printer = _Printer(parts.model.manifest, as_lines=args.json, progress=progress)
        received: list[Received] = []
        for arrival in arrivals:
            if isinstance(arrival, NotReceived):
                printer.failed(
                    arrival.name, arrival.code, arrival.message, as_json(arrival, manifest=parts.model.manifest)
                )
            else:
                received.append(arrival)
            progress.show(f"{len(received)} files received")
        planned = plan(received, frames_per_series=settings.diagnose.frames_per_series)
        total = sum(len(numbers) or 1 for _, numbers, _ in planned)
        results = diagnose(
            received,
            model=parts.model,
            sandbox=parts.sandbox,
            sessions=sessions,
            actor=LOCAL_USER,
            now=parts.now,
            batch_size=settings.diagnose.batch_size,
            frames_per_series=settings.diagnose.frames_per_series,
            stated_age_years=args.age,
        )
        for number, result in enumerate(results, start=1):
            if isinstance(result, NotDiagnosed) and not result.has_no_image:
                said = as_json(result, manifest=parts.model.manifest)
                printer.failed(result.received.name, result.code, result.message, said)
            else:
                printer.result(result, as_json(result, manifest=parts.model.manifest))
            progress.show(f"{number} of {total} images")
        progress.clear()
        printer.closing()
    return 1 if printer.failures else 0


class _Progress:
    """One line on stderr that is written over; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Say how far things are."""
        if self.shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for something that stays."""
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class _Printer:
    """Results to stdout, as JSON lines or as a table to read; errors and times to stderr."""

    def __init__(self, manifest: Manifest, *, as_lines: bool, progress: _Progress) -> None:
        self.manifest = manifest
        self.as_lines = as_lines
        self.progress = progress
        self.failures = 0
        self.images = 0
        self.total_ms: Counter[str] = Counter()

    def failed(self, name: str, code: str, message: str, said: Mapping[str, object]) -> None:
        """A file that was not taken in or not read."""
        self.failures += 1
        self.progress.clear()
        if self.as_lines:
            print(json.dumps(said), flush=True)
        # A file's name may be the patient's, and stderr is often a log: there it stands only for a person.
        print(f"{code}: {message}" if self.as_lines else f"{name}: {code}: {message}", file=sys.stderr)

    def result(self, result: Diagnosed | NotDiagnosed, said: Mapping[str, object]) -> None:
        """One image, or an object that holds none."""
        self.progress.clear()
        if isinstance(result, Diagnosed):
            self.images += 1
            self.total_ms.update(result.latency_ms)
        print(json.dumps(said) if self.as_lines else "\n".join(self._table(result)), flush=True)

    def closing(self) -> None:
        """What a reader must know of all results, and where the time went."""
        if not self.as_lines:
            print(NOTICE)
        if self.images:
            stages = ", ".join(f"{stage} {ms / self.images:.1f} ms" for stage, ms in self.total_ms.items())
            print(f"images: {self.images}; time an image: {stages}", file=sys.stderr)

    def _table(self, result: Diagnosed | NotDiagnosed) -> Iterator[str]:
        if not isinstance(result, Diagnosed):
            yield f"{result.received.name}\n  not assessed: {result.message}\n"
            return
        instance = result.image.received.instance
        frame = f", frame {result.image.frame_number}" if instance.number_of_frames > 1 else ""
        yield f"{result.image.received.name}  [{instance.modality or 'modality not stated'}{frame}]"
        for answer in result.verdict.allowed:
            task = self.manifest.task(answer.task)
            yield f"  {task.display}"
            for finding in answer.findings:
                verdict = "" if finding.normal else "  POSITIVE" if finding.positive else "  negative"
                threshold = "" if finding.normal else f"  threshold {finding.threshold:.1%}"
                yield f"    {finding.display:<40} {finding.probability:6.1%}{threshold}{verdict}"
            names = {label.name: label.display for label in task.labels}
            likely = ", ".join(names[label] for label in answer.prediction_set) or "empty, no label is likely enough"
            yield f"    {1 - task.conformal_alpha:.0%} prediction set: {likely}"
        for withheld in result.verdict.withheld:
            yield f"  not answered: {withheld.reason} ({withheld.code})"
        for warning in result.warnings:
            yield f"  note: {warning}"
        if result.trace is not None:
            yield f"  kept as prediction {result.trace.prediction_id}, audit event {result.trace.audit_sequence}"
        yield ""


def _years(text: str) -> float:
    try:
        years = float(text)
    except ValueError:
        years = -1.0
    if not 0 <= years < OLDEST_BELIEVED_YEARS:
        raise argparse.ArgumentTypeError(f"{text!r} is no age in years from 0 to {OLDEST_BELIEVED_YEARS:g}")
    return years
