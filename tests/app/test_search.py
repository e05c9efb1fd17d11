"""DICOM's keys find the same rows on both databases."""

import pytest

from app.db import audit, search
from app.db.search import BadKey
from app.db.session import Sessions
from app.db.work import WorkItem
from app.identity import LOCAL_USER, SYSTEM
from tests.app.records import Clock, study

NAMES = {"1.2.3": "Grün^Ada", "1.2.4": "山田^太郎", "1.2.5": "Yamada^Tarou=山田^太郎=やまだ^たろう"}


@pytest.fixture
def kept(sessions: Sessions, now: Clock) -> Sessions:
    """Three studies with the names above, of patients P-17, P_18 and p-17, a day apart, each with a work item."""
    for number, (uid, name) in enumerate(NAMES.items()):
        with sessions.begin() as session:
            made = study(now(), uid=uid, instances=number + 1)
            made.patient_name, made.patient_id = name, ("P-17", "P_18", "p-17")[number]
            assert made.study_date is not None
            made.study_date = made.study_date.replace(day=1 + number)
            made.study_time = ("0900", "103000.5", None)[number]
            made.series[0].modality = ("DX", "CT", None)[number]
            audit.append(session, actor=LOCAL_USER, action="receive", subjects=[made], now=now)
            session.add(WorkItem(study_id=made.id, requested_by="X", scheduled_at=now()))
    return sessions


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ["1.2.5", "1.2.4", "1.2.3"]),
        ({"PatientName": "gr*"}, ["1.2.3"]),
        ({"PatientName": "Gr?n^Ada"}, ["1.2.3"]),
        ({"PatientName": "山田^*"}, ["1.2.5", "1.2.4"]),
        ({"PatientName": "やまだ^たろう"}, ["1.2.5"]),
        ({"PatientName": "Ada"}, []),
        ({"PatientID": "P-17"}, ["1.2.3"]),
        ({"PatientID": "P?18"}, ["1.2.4"]),
        ({"PatientID": "P%"}, []),
        ({"PatientID": "P-17\\P_18"}, ["1.2.4", "1.2.3"]),
        ({"StudyDate": "20260102"}, ["1.2.4"]),
        ({"StudyDate": "20260102-"}, ["1.2.5", "1.2.4"]),
        ({"StudyDate": "-20260102"}, ["1.2.4", "1.2.3"]),
        ({"StudyTime": "09-1030"}, ["1.2.4", "1.2.3"]),
        ({"StudyTime": "10"}, ["1.2.4"]),
        ({"ModalitiesInStudy": "CT,MR"}, ["1.2.4"]),
        ({"StudyInstanceUID": "1.2.3,1.2.5"}, ["1.2.5", "1.2.3"]),
    ],
)
def test_each_kind_of_key_matches_as_the_standard_says(
    kept: Sessions, keys: dict[str, str], expected: list[str]
) -> None:
    with kept() as session:
        page = search.studies(session, LOCAL_USER, keys, limit=10, offset=0)
        assert [one.study.study_instance_uid for one in page.found] == expected
        below = search.series(session, LOCAL_USER, keys, limit=10, offset=0)
        assert [one.series.study.study_instance_uid for one in below.found] == expected


def test_what_is_counted_and_what_is_left_is_right(kept: Sessions) -> None:
    with kept() as session:
        page = search.studies(session, LOCAL_USER, {}, limit=2, offset=0)
        assert ([one.instances for one in page.found], page.more) == ([3, 2], 1)
        assert [one.modalities for one in page.found] == [(), ("CT",)]
        rows = search.instances(session, LOCAL_USER, {"InstanceNumber": "1", "PatientID": "P*"}, limit=10, offset=1)
        assert [one.sop_instance_uid for one in rows.found] == ["1.2.4.1.1", "1.2.3.1.1"]
        items = search.work_items(session, LOCAL_USER, {"PatientID": "p-17"}, limit=10, offset=0)
        assert [item.study.patient_id for item in items.found] == ["p-17"]


def test_nobody_without_the_role_finds_anything(kept: Sessions) -> None:
    with kept() as session:
        assert search.studies(session, SYSTEM, {}, limit=9, offset=0).found == []
        assert search.series(session, SYSTEM, {}, limit=9, offset=0).found == []
        assert search.instances(session, SYSTEM, {}, limit=9, offset=0).found == []
        assert search.work_items(session, SYSTEM, {}, limit=9, offset=0).found == []


@pytest.mark.parametrize(
    "keys", [{"StudyDate": "2026"}, {"StudyDate": "20260230"}, {"StudyTime": "9"}, {"SeriesNumber": "one"}], ids=str
)
def test_a_value_that_cannot_be_matched_is_refused_and_not_repeated(kept: Sessions, keys: dict[str, str]) -> None:
    with kept() as session, pytest.raises(BadKey) as caught:
        search.series(session, LOCAL_USER, keys, limit=9, offset=0)
    assert not any(value in str(caught.value) for value in keys.values() if len(value) > 1)
