"""Writers that wait for each other do their work in one transaction, and none pays for another's failure."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import audit
from app.db import session as session_module
from app.db.checkpoint import Checkpoint
from app.db.session import Sessions
from app.db.tables import Study
from app.errors import AuditUnbound, DatabaseBusy
from app.identity import LOCAL_USER
from tests.app.records import Clock, study


def while_another_writes(sessions: Sessions, *works: Callable[[Session], object]) -> list[Future[object]]:
    """What became of these, which all came while one transaction was open."""
    with ThreadPoolExecutor(len(works)) as pool, sessions.begin():
        futures = [pool.submit(sessions.together, work) for work in works]
        while len(sessions._waiting) < len(works):  # nothing else tells that they wait
            time.sleep(0.001)
    return futures


def test_work_that_waits_is_done_in_one_transaction(sessions: Sessions, now: Clock) -> None:
    seen: set[Session] = set()

    def work(number: int) -> Callable[[Session], int]:
        def store(session: Session) -> int:
            seen.add(session)
            event = audit.append(
                session, actor=LOCAL_USER, action="receive", subjects=[study(now(), uid=f"1.{number}")], now=now
            )
            return event.sequence

        return store

    futures = while_another_writes(sessions, *map(work, range(5)))
    assert sorted(int(str(future.result())) for future in futures) == [1, 2, 3, 4, 5]
    assert len(seen) == 1
    checkpoint: Checkpoint = sessions.kw["info"]["checkpoint"]
    with sessions() as session:
        report = audit.verify(session, checkpoint)
    assert report.broken is None
    assert report.head == report.checkpoint
    assert report.events == 5


@pytest.mark.parametrize("fails", [1, 2])
def test_what_fails_takes_no_other_with_it(sessions: Sessions, now: Clock, fails: int) -> None:
    def work(number: int) -> Callable[[Session], None]:
        def store(session: Session) -> None:
            audit.append(
                session, actor=LOCAL_USER, action="receive", subjects=[study(now(), uid=f"1.{number}")], now=now
            )
            if number < fails:
                raise LookupError(f"number {number}")

        return store

    futures = while_another_writes(sessions, *map(work, range(4)))
    for number, future in enumerate(futures):
        if number < fails:
            with pytest.raises(LookupError, match=f"number {number}"):
                future.result()
        else:
            assert future.result() is None
    with sessions() as session:
        assert sorted(session.scalars(select(Study.study_instance_uid))) == [f"1.{n}" for n in range(fails, 4)]
        assert audit.verify(session, None).broken is None


def test_work_that_leaves_a_row_without_its_event_is_undone_alone(sessions: Sessions, now: Clock) -> None:
    def bound(session: Session) -> None:
        audit.append(session, actor=LOCAL_USER, action="receive", subjects=[study(now(), uid="1.1")], now=now)

    bare, good = while_another_writes(sessions, lambda session: session.add(study(now(), uid="1.2")), bound)
    with pytest.raises(AuditUnbound):
        bare.result()
    assert good.result() is None
    with sessions() as session:
        assert list(session.scalars(select(Study.study_instance_uid))) == ["1.1"]


def test_who_waits_too_long_is_told_and_nothing_is_done(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "WAIT_SECONDS", 0.01)
    done: list[Session] = []
    with sessions.begin(), pytest.raises(DatabaseBusy):
        sessions.together(done.append)
    assert sessions.together(lambda _session: "next") == "next"
    assert done == []
