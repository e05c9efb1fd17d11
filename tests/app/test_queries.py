"""The reads of the pages start from the actor, and their number does not grow with what is stored."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import Engine, event, insert, text
from sqlalchemy.orm import Session

from app.db import audit, queries
from app.db.session import Sessions
from app.db.tables import Base, PredictionRow, Series, StoredInstance, Study
from app.errors import NotFound
from app.identity import LOCAL_USER, SYSTEM, Actor
from tests.app.records import Clock, fill, instance, prediction, study

ADMINISTRATOR = Actor("root", "user", frozenset({"administrator"}))


@contextmanager
def statements_of(engine: Engine) -> Iterator[list[str]]:
    seen: list[str] = []

    def see(*parts: object) -> None:
        seen.append(str(parts[2]))

    event.listen(engine, "before_cursor_execute", see)
    yield seen
    event.remove(engine, "before_cursor_execute", see)


def diagnose(session: Session, image: StoredInstance, now: Clock, *, answered: bool, positive: bool = False) -> str:
    session.add(image)
    row = prediction(image, now())
    row.findings = row.findings if answered else []
    for finding in row.findings:
        finding.positive = positive and not finding.normal
    audit.append(session, actor=LOCAL_USER, action="predict", subjects=[row], now=now)
    return row.uid


def test_the_newest_study_comes_first_with_what_it_holds(sessions: Sessions, now: Clock) -> None:
    fill(sessions, now, uid="1.2.3", instances=3)
    with sessions.begin() as session:
        other = study(now(), uid="1.2.4", instances=1)
        other.series.append(Series(series_instance_uid="1.2.4.2", modality="CT", number=2))
        other.series.append(Series(series_instance_uid="1.2.4.3", modality=None, number=3))
        volume = instance(now(), uid="1.2.4.2.1", number=1)
        volume.number_of_frames = 20
        other.series[1].instances.append(volume)
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[other], now=now)
    with sessions() as session:
        lines = queries.study_lines(session, LOCAL_USER, limit=10)
    assert [line.study.study_instance_uid for line in lines] == ["1.2.4", "1.2.3"]
    assert [line.modalities for line in lines] == [("CT", "DX"), ("DX",)]
    assert [(line.series, line.instances, line.images) for line in lines] == [(3, 2, 21), (1, 3, 3)]
    assert [line.state for line in lines] == ["unread", "positive"]


def test_pages_of_studies_follow_each_other_without_gap_or_overlap(sessions: Sessions, now: Clock) -> None:
    with sessions.begin() as session:
        at = now()  # received in the same microsecond, some of them
        kept = [study(at + timedelta(seconds=number // 3), uid=f"1.2.{number}", instances=0) for number in range(10)]
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=kept, now=now)
    seen: list[str] = []
    with sessions() as session:
        after = None
        while page := queries.study_lines(session, LOCAL_USER, limit=4, after=after):
            seen += [line.study.study_instance_uid for line in page]
            after = page[-1].study
    assert seen == [f"1.2.{number}" for number in reversed(range(10))]


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ([], "unread"),
        ([(False, False)], "withheld"),
        ([(True, False)], "negative"),
        ([(True, True)], "positive"),
        ([(True, True), (True, False)], "negative"),  # only the newest counts
        ([(True, False), (False, False)], "withheld"),
    ],
)
def test_a_study_is_what_its_newest_predictions_say(
    sessions: Sessions, now: Clock, answers: list[tuple[bool, bool]], state: str
) -> None:
    with sessions.begin() as session:
        kept = study(now(), instances=1)
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[kept], now=now)
        for answered, positive in answers:
            diagnose(session, kept.series[0].instances[0], now, answered=answered, positive=positive)
    with sessions() as session:
        (line,) = queries.study_lines(session, LOCAL_USER, limit=1)
    assert line.state == state


def test_one_positive_image_makes_a_study_positive(sessions: Sessions, now: Clock) -> None:
    with sessions.begin() as session:
        kept = study(now(), instances=3)
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[kept], now=now)
        for image, positive in zip(kept.series[0].instances, (False, True, False), strict=True):
            diagnose(session, image, now, answered=True, positive=positive)
    with sessions() as session:
        (line,) = queries.study_lines(session, LOCAL_USER, limit=1)
    assert line.state == "positive"


def test_the_latest_prediction_of_each_frame_comes_with_findings_and_its_event(sessions: Sessions, now: Clock) -> None:
    fill(sessions, now)
    with sessions.begin() as session:
        kept = queries.study(session, LOCAL_USER, "1.2.3")
        first, second = kept.series[0].instances
        uid = diagnose(session, first, now, answered=True)
        last = audit.append(session, actor=LOCAL_USER, action="view", subjects=[kept], now=now)
    with sessions() as session:
        kept = queries.study(session, LOCAL_USER, "1.2.3")
        latest = queries.latest_predictions(session, kept.series[0].instances)
        assert set(latest) == {(first.id, 1), (second.id, 1)}
        assert latest[first.id, 1].row.uid == uid
        assert len(latest[second.id, 1].row.findings) == 2
        assert len(latest[second.id, 1].row.withheld) == 1
        recorded = latest[first.id, 1].event
        assert recorded
        assert recorded.sequence == last.sequence - 1
        assert recorded.action == "predict"


def test_events_come_newest_first_with_what_they_name(sessions: Sessions, now: Clock) -> None:
    fill(sessions, now)
    with sessions() as session:
        lines = queries.event_lines(session, limit=10)
        assert [line.event.sequence for line in lines] == [4, 3, 2, 1]
        assert lines[0].rows == {"study": 1}
        assert lines[1].rows == {"finding": 2, "prediction": 1, "withheld": 1}
        assert lines[3].rows == {"instance": 2, "reception": 1, "series": 1, "study": 1}
        predicted = queries.event_lines(session, action="predict", limit=10)
        assert [line.event.sequence for line in predicted] == [3, 2]
        earlier = queries.event_lines(session, limit=2, before=3)
        assert [line.event.sequence for line in earlier] == [2, 1]


def test_counts_count_what_is_there(sessions: Sessions, now: Clock) -> None:
    fill(sessions, now, uid="1.2.3", instances=3)
    fill(sessions, now, uid="1.2.4", instances=1)
    with sessions() as session:
        assert queries.counts(session, LOCAL_USER) == queries.Counts(2, 2, 4, 4, 8)
        assert queries.counts(session, SYSTEM) == queries.Counts(0, 0, 0, 0, 8)


@pytest.mark.parametrize("actor", [SYSTEM, ADMINISTRATOR], ids=lambda actor: actor.name)
@pytest.mark.parametrize("read", [queries.study, queries.instance, queries.prediction])
def test_who_may_not_see_a_study_is_told_what_one_is_told_who_asks_for_nothing(
    sessions: Sessions, now: Clock, actor: Actor, read: Callable[[Session, Actor, str], object]
) -> None:
    kept = fill(sessions, now)
    with sessions() as session:
        row = queries.latest_predictions(session, kept.series[0].instances)[kept.series[0].instances[0].id, 1].row
        names = {queries.study: "1.2.3", queries.instance: "1.2.3.1.1", queries.prediction: row.uid}
        uid = names[read]  # type: ignore[index]
        assert read(session, LOCAL_USER, uid)
        answers = []
        for asked, who in ((uid, actor), ("9.9.9", LOCAL_USER)):
            with pytest.raises(NotFound) as caught:
                read(session, who, asked)
            answers.append(str(caught.value).replace(asked, "..."))
        assert answers[0] == answers[1]
        assert queries.study_lines(session, actor, limit=10) == []


def test_the_number_of_statements_does_not_grow_with_what_is_stored(
    sessions: Sessions, engine: Engine, now: Clock
) -> None:
    def read_everything() -> int:
        with sessions() as session, statements_of(engine) as seen:
            lines = queries.study_lines(session, LOCAL_USER, limit=50)
            kept = queries.study(session, LOCAL_USER, lines[0].study.study_instance_uid)
            traced = queries.latest_predictions(session, kept.series[0].instances)
            assert all(one.row.findings and one.event for one in traced.values())
            queries.event_lines(session, limit=50)
        return len(seen)

    fill(sessions, now, instances=1)
    few = read_everything()
    for number in range(5):
        fill(sessions, now, uid=f"1.3.{number}", instances=6)
    assert read_everything() == few


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_page_reads_through_a_whole_table(sessions: Sessions, engine: Engine, now: Clock) -> None:
    bulk(engine, now, studies=200, instances=5)
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    with sessions() as session, statements_of(engine) as seen:
        lines = queries.study_lines(session, LOCAL_USER, limit=5)
        kept = queries.study(session, LOCAL_USER, lines[0].study.study_instance_uid)
        queries.latest_predictions(session, kept.series[0].instances)
        queries.instance(session, LOCAL_USER, "1.5.1.1.1")
        queries.event_lines(session, action="predict", limit=20)
        queries.event_lines(session, limit=20)
    plans = []
    with engine.connect() as connection:
        for statement in seen:
            if statement.startswith("SELECT"):
                values = tuple(1 for _ in range(statement.count("?")))
                plans += [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    tables = {f"SCAN {name}" for name in Base.metadata.tables}
    through = {plan for plan in plans if plan in tables}
    # The newest events are read backwards along their key, up to the limit.
    assert through <= {"SCAN audit_event"}
    assert any("ix_study_received_at" in plan for plan in plans)


def bulk(engine: Engine, now: Clock, *, studies: int, instances: int) -> None:
    """Many rows at once, past the audit trail: only their number matters here."""
    at = now()
    with engine.begin() as connection:
        for number in range(1, studies + 1):
            connection.execute(insert(Study).values(id=number, study_instance_uid=f"1.5.{number}", received_at=at))
            series_uid = f"1.5.{number}.1"
            connection.execute(insert(Series).values(id=number, study_id=number, series_instance_uid=series_uid))
        images = [
            (series, image, instance(at, uid=f"1.5.{series}.1.{image}", number=image))
            for series in range(1, studies + 1)
            for image in range(1, instances + 1)
        ]
        rows = [{**_columns(row), "series_id": series} for series, _, row in images]
        connection.execute(insert(StoredInstance), rows)
        said = _columns(prediction(images[0][2], at))
        ids = range(1, studies * instances + 1)
        connection.execute(insert(PredictionRow), [{**said, "instance_id": one, "uid": f"{one:032}"} for one in ids])


def _columns(row: StoredInstance | PredictionRow) -> dict[str, object]:
    return {key: value for key, value in vars(row).items() if key in row.__table__.columns}
