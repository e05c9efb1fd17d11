"""Write the audit, model and help pages as Markdown. No patient data: an audit event names rows, not people."""

from importlib.resources import files
from typing import Any

from app.db import audit
from app.db.checkpoint import Checkpoint
from app.db.queries import event_lines
from app.gate import age_range
from app.web.errors import DOMAIN_ERRORS, told
from app.wiring import Services
from vision_model.manifest import Manifest, OperatingPoint, Task
from vision_model.runtime import Model

ALL_ACTIONS = "All"
ACTIONS = (
    "receive",
    "predict",
    "view",
    "search",
    "retrieve",
    "work-item",
    "publish",
    "export",
    "commitment-asked",
    "commitment-answered",
    "login",
)
SHOWN_EVENTS = (50, 200, 1000)
HASH_LETTERS = 16  # what is shown of a digest in a table


class Audits:
    """The audit page's handlers."""

    unverified = "Not verified since this page was opened. Verifying recomputes the digest of every audited row."

    def __init__(self, services: Services) -> None:
        self._services = services

    def events(self, action: str, shown: int) -> str:
        """The newest events as a table."""
        with self._services.sessions() as session:
            lines = event_lines(session, action=None if action == ALL_ACTIONS else action, limit=shown)
        return table(
            ("Event", "Time (UTC)", "Who", "Action", "Rows", "Detail", "Hash"),
            [
                (
                    str(line.event.sequence),
                    f"{line.event.at:%Y-%m-%d %H:%M:%S}",
                    plain(line.event.actor),
                    line.event.action,
                    ", ".join(f"{count} {name}" for name, count in line.rows.items()) or "none",
                    _words(line.event.detail),
                    f"`{line.event.hash[:HASH_LETTERS]}`",
                )
                for line in lines
            ],
        )

    def verify(self) -> str:
        """Recompute the trail and say what came of it."""
        try:
            with self._services.sessions() as session:
                report = audit.verify(session, Checkpoint(self._services.settings.storage.checkpoint))
        except DOMAIN_ERRORS as error:
            return f"**Not verified.** {told(error.code, str(error))['sentence']}"
        if report.broken is not None:
            return (
                f"**The trail is broken at {plain(str(report.broken))}.** Keep the database as it is and tell your "
                "administrator."
            )
        head = f" The newest is event {report.head.sequence}, `{report.head.hash}`." if report.head else ""
        return f"**The trail holds:** {report.events} events over {report.rows} rows, each digest recomputed.{head}"


def model_page(model: Model) -> str:
    """What the loaded model answers, how well, and for whom."""
    manifest = model.manifest
    parts = [
        "# Model",
        f"{manifest.name} {manifest.version}, {model.precision}, on {model.provider}.",
        f"Licence {plain(manifest.licence)}.",
        f"Graph `{manifest.graph_sha256}`, threshold set `{manifest.threshold_set[:HASH_LETTERS]}`.",
        "## Questions that are answered",
        table(
            ("Question", "Image", "Trained on", "Ages", "Test AUROC (95 % interval)"),
            [_task_row(task) for task in manifest.tasks],
        ),
        "## Operating points",
        table(
            ("Question", "Finding", "Threshold", "Sensitivity", "Specificity", "Rule"),
            [
                (task.display, label.display, *_operating_point(label.operating_point), label.operating_point.rule)
                for task in manifest.tasks
                for label in task.labels
                if not label.normal
            ],
        ),
        "Sensitivity and specificity were measured on the validation images that the threshold was chosen on.",
    ]
    if manifest.unserved:
        parts += [
            "## Questions that are not answered",
            table(("Question", "Why not"), [(plain(task.name), plain(task.reason)) for task in manifest.unserved]),
        ]
    return "\n\n".join([*parts, "## Training images", _sources(manifest)])


def help_page() -> str:
    """How to use the page, as the file beside this one says."""
    return files("app.web").joinpath("help.md").read_text("utf-8")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, or a sentence where there is nothing to show."""
    if not rows:
        return "Nothing here yet."
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"&#{ord(letter)};" if letter in "\\`*_{}[]()#+!|<>&~$\n" else letter for letter in text)


def _task_row(task: Task) -> tuple[str, ...]:
    low, high = task.test_auroc_interval
    auroc = f"{task.test_auroc:.3f} ({low:.3f} to {high:.3f})"
    return plain(task.display), task.route, plain(task.population.description), age_range(task.population), auroc


def _operating_point(point: OperatingPoint) -> tuple[str, str, str]:
    return f"{point.threshold:.1%}", f"{point.sensitivity:.2f}", f"{point.specificity:.2f}"


def _sources(manifest: Manifest) -> str:
    shown = ("name", "licence", "train_images", "used_for")
    names = [name for name in shown if any(name in source for source in manifest.sources)]
    rows = [tuple(plain(str(source.get(name, ""))) for name in names) for source in manifest.sources]
    return table(tuple(name.replace("_", " ").capitalize() for name in names), rows)


def _words(detail: dict[str, Any]) -> str:
    return ", ".join(f"{name} {plain(str(value))}" for name, value in detail.items() if value is not None)
