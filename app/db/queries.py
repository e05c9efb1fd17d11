"""The reads of the pages. They start from the actor, and their number does not grow with what is stored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, select, tuple_
from sqlalchemy.orm import Session, aliased, contains_eager, joinedload, selectinload

from app.db.tables import AuditEvent, AuditSubject, FindingRow, PredictionRow, Series, StoredInstance, Study
from app.db.work import AwaitedStudy, Publication, PublicationState, WorkItem
from app.errors import NotFound
from app.identity import Actor

BATCH = 5000  # instances a statement; SQLite takes 32,766 values in one
State = Literal["unread", "withheld", "negative", "positive"]
Road = Literal["arriving", "queued", "in-progress", "given-up", "results-waiting", "results-refused", "results-sent"]


UNFINISHED: dict[str, Road] = {"SCHEDULED": "queued", "IN PROGRESS": "in-progress", "CANCELED": "given-up"}


@dataclass(frozen=True, slots=True)
class StudyLine:
    """One line of the list of studies."""

    study: Study
    modalities: tuple[str, ...]  # sorted
    series: int
    instances: int
    images: int  # frames
    state: State  # of the newest prediction of each image: positive if any finding is, withheld if none was answered
    road: Road | None  # how far a study from the network has come; None where nothing is left to do or to tell
    hindrance: str | None  # why it came no further


@dataclass(frozen=True, slots=True)
class Traced:
    """A prediction, with its findings and withheld answers loaded, and the event that recorded it."""

    row: PredictionRow
    event: AuditEvent | None


@dataclass(frozen=True, slots=True)
class EventLine:
    """One line of the audit page."""

    event: AuditEvent
    rows: dict[str, int]  # table -> how many of its rows the event names


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is stored, as far as the actor may see it."""

    studies: int
    series: int
    instances: int
    predictions: int
    events: int


def visible_studies(actor: Actor) -> Select[Study]:
    """The studies that an actor may see: all of them for a clinician, none for anybody else."""
    studies = select(Study)
    return studies if actor.may("clinician") else studies.where(false())


def study_lines(session: Session, actor: Actor, *, limit: int, after: Study | None = None) -> list[StudyLine]:
    """The newest studies first; `after` is the last study of the page before."""
    newest = visible_studies(actor).order_by(Study.received_at.desc(), Study.id.desc()).limit(limit)
    if after is not None:
        newest = newest.where(tuple_(Study.received_at, Study.id) < (after.received_at, after.id))
    studies = session.scalars(newest).all()
    ids = [study.id for study in studies]
    modalities: dict[int, set[str]] = {}
    known = select(Series.study_id, Series.modality).where(Series.study_id.in_(ids), Series.modality.is_not(None))
    for study_id, modality in session.execute(known):
        modalities.setdefault(study_id, set()).add(str(modality))
    counted = (
        select(
            Series.study_id,
            func.count(Series.id.distinct()),
            func.count(StoredInstance.id),
            func.coalesce(func.sum(StoredInstance.number_of_frames), 0),
        )
        .outerjoin(StoredInstance)
        .where(Series.study_id.in_(ids))
        .group_by(Series.study_id)
    )
    sizes = {
        study_id: (series, instances, int(images)) for study_id, series, instances, images in session.execute(counted)
    }
    states, roads = _states(session, ids), _roads(session, ids)
    return [
        StudyLine(
            study,
            tuple(sorted(modalities.get(study.id, ()))),
            *sizes.get(study.id, (0, 0, 0)),
            states[study.id],
            *roads.get(study.id, (None, None)),
        )
        for study in studies
    ]


def study(session: Session, actor: Actor, uid: str) -> Study:
    """One study with its series and their instances loaded. Raises NotFound, also where the actor may not see it."""
    loaded = selectinload(Study.series).selectinload(Series.instances)
    found = session.scalar(visible_studies(actor).where(Study.study_instance_uid == uid).options(loaded))
    if found is None:
        raise NotFound("study", uid)
    return found


def instance(session: Session, actor: Actor, uid: str) -> StoredInstance:
    """One stored file by its SOP Instance UID. Raises NotFound as `study` does."""
    wanted = select(StoredInstance).join(Series).where(StoredInstance.sop_instance_uid == uid)
    found = session.scalar(wanted.where(Series.study_id.in_(_visible_ids(actor))))
    if found is None:
        raise NotFound("image", uid)
    return found


def stored(
    session: Session, actor: Actor, *, study: str, series: str | None = None, instance: str | None = None
) -> list[StoredInstance]:
    """The stored files of a study, series or instance by their UIDs, in reading order, with series and study loaded.

    Raises NotFound as `study` does, also where an instance is of another series or study than the one named.
    """
    loaded = contains_eager(StoredInstance.series).contains_eager(Series.study)
    wanted = select(StoredInstance).join(Series).join(Study).options(loaded).where(Study.id.in_(_visible_ids(actor)))
    wanted = wanted.where(Study.study_instance_uid == study)
    if series is not None:
        wanted = wanted.where(Series.series_instance_uid == series)
    if instance is not None:
        wanted = wanted.where(StoredInstance.sop_instance_uid == instance)
    ordered = wanted.order_by(Series.number, Series.id, StoredInstance.instance_number, StoredInstance.id)
    found = session.scalars(ordered).all()
    if not found:
        kind = "image" if instance else "series" if series else "study"
        raise NotFound(kind, instance or series or study)
    return list(found)


def work_item(session: Session, actor: Actor, uid: str) -> WorkItem:
    """One work item with its study loaded. Raises NotFound, also where the actor may not see its study."""
    wanted = select(WorkItem).options(joinedload(WorkItem.study)).where(WorkItem.uid == uid)
    found = session.scalar(wanted.where(WorkItem.study_id.in_(_visible_ids(actor))))
    if found is None:
        raise NotFound("work item", uid)
    return found


def prediction(session: Session, actor: Actor, uid: str) -> Traced:
    """One prediction by the id that people see. Raises NotFound as `study` does."""
    wanted = select(PredictionRow).join(StoredInstance).join(Series).where(PredictionRow.uid == uid)
    traced = _traced(session, wanted.where(Series.study_id.in_(_visible_ids(actor))))
    if not traced:
        raise NotFound("prediction", uid)
    return traced[0]


def latest_predictions(session: Session, instances: Iterable[StoredInstance]) -> dict[tuple[int, int], Traced]:
    """The newest prediction of each frame of these instances, by instance id and frame number."""
    ids = [one.id for one in instances]
    found: dict[tuple[int, int], Traced] = {}
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        wanted = select(PredictionRow).where(PredictionRow.instance_id.in_(batch), _newest(PredictionRow))
        found |= {(traced.row.instance_id, traced.row.frame_number): traced for traced in _traced(session, wanted)}
    return found


def event_lines(
    session: Session, *, action: str | None = None, limit: int, before: int | None = None
) -> list[EventLine]:
    """The newest audit events first, of one action if given; `before` is the last sequence of the page before."""
    wanted = select(AuditEvent).order_by(AuditEvent.sequence.desc()).limit(limit)
    if action is not None:
        wanted = wanted.where(AuditEvent.action == action)
    if before is not None:
        wanted = wanted.where(AuditEvent.sequence < before)
    events = session.scalars(wanted).all()
    named: dict[int, dict[str, int]] = {}
    counted = (
        select(AuditSubject.sequence, AuditSubject.table_name, func.count())
        .where(AuditSubject.sequence.in_([event.sequence for event in events]))
        .group_by(AuditSubject.sequence, AuditSubject.table_name)
        .order_by(AuditSubject.table_name)
    )
    for sequence, table, count in session.execute(counted):
        named.setdefault(sequence, {})[table] = count
    return [EventLine(event, named.get(event.sequence, {})) for event in events]


def counts(session: Session, actor: Actor) -> Counts:
    """How much is stored."""
    visible = Series.study_id.in_(_visible_ids(actor))
    statements = (
        select(func.count()).select_from(visible_studies(actor).subquery()),
        select(func.count(Series.id)).where(visible),
        select(func.count(StoredInstance.id)).join(Series).where(visible),
        select(func.count(PredictionRow.id)).join(StoredInstance).join(Series).where(visible),
        select(func.count(AuditEvent.sequence)),
    )
    return Counts(*(session.scalar(statement) or 0 for statement in statements))


def _visible_ids(actor: Actor) -> Select[int]:
    return visible_studies(actor).with_only_columns(Study.id)


def _newest(row: type[PredictionRow]) -> ColumnElement[bool]:
    """No later prediction of the same frame: read from the index on instance, frame and id."""
    later = aliased(PredictionRow)
    same_frame = and_(later.instance_id == row.instance_id, later.frame_number == row.frame_number)
    return ~exists().where(same_frame, later.id > row.id)


def _traced(session: Session, wanted: Select[PredictionRow]) -> list[Traced]:
    loaded = (
        selectinload(PredictionRow.instance),
        selectinload(PredictionRow.findings),
        selectinload(PredictionRow.withheld),
    )
    rows = session.scalars(wanted.options(*loaded)).all()
    recorded = (
        select(AuditSubject.row_id, AuditEvent)
        .join(AuditEvent)
        .where(
            AuditSubject.table_name == PredictionRow.__tablename__,
            AuditSubject.row_id.in_([row.id for row in rows]),
            AuditEvent.action == "predict",
        )
    )
    events = {row_id: event for row_id, event in session.execute(recorded)}  # noqa: C416 (dict() takes no typed rows)
    return [Traced(row, events.get(row.id)) for row in rows]


def _roads(session: Session, study_ids: Sequence[int]) -> dict[int, tuple[Road, str | None]]:
    """Of the newest work item of each study, and of its results; an image that came later overrules both."""
    roads: dict[int, tuple[Road, str | None]] = {}
    items = select(WorkItem).where(WorkItem.study_id.in_(study_ids)).order_by(WorkItem.id)
    newest = {item.study_id: item for item in session.scalars(items)}
    results = select(Publication).where(Publication.work_item_id.in_([item.id for item in newest.values()]))
    published: dict[int, list[Publication]] = {}
    for result in session.scalars(results.order_by(Publication.id)):
        published.setdefault(result.work_item_id, []).append(result)
    for study_id, item in newest.items():
        if item.state != "COMPLETED":
            roads[study_id] = UNFINISHED[item.state], item.error_message
        elif item.id in published:
            roads[study_id] = _delivered(published[item.id])
    awaited = select(AwaitedStudy.study_id).where(AwaitedStudy.study_id.in_(study_ids))
    return roads | dict.fromkeys(session.scalars(awaited), ("arriving", None))


def _delivered(results: Sequence[Publication]) -> tuple[Road, str | None]:
    # A refusal needs a person; what waits needs nobody.
    ends: tuple[tuple[PublicationState, Road], ...] = (("FAILED", "results-refused"), ("PENDING", "results-waiting"))
    for state, road in ends:
        left = [result for result in results if result.state == state]
        if left:
            return road, next((f"{r.destination}: {r.error_message}" for r in left if r.error_message), None)
    return "results-sent", None


def _states(session: Session, study_ids: Sequence[int]) -> dict[int, State]:
    answered = exists().where(FindingRow.prediction_id == PredictionRow.id)
    positive = exists().where(FindingRow.prediction_id == PredictionRow.id, FindingRow.positive)
    newest = (
        select(Series.study_id, answered, positive)
        .select_from(PredictionRow)
        .join(StoredInstance)
        .join(Series)
        .where(Series.study_id.in_(study_ids), _newest(PredictionRow))
        .distinct()
    )
    states: dict[int, State] = dict.fromkeys(study_ids, "unread")
    order: tuple[State, ...] = ("unread", "withheld", "negative", "positive")
    for study_id, has_answer, has_positive in session.execute(newest):
        state: State = "positive" if has_positive else "negative" if has_answer else "withheld"
        states[study_id] = max(states[study_id], state, key=order.index)
    return states
