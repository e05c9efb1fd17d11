"""Searches find what was stored by the keys that departments use, and say what they found as the standard asks."""

from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import select

from app.db.tables import AuditEvent
from tests.web.dicomweb.conftest import Served
from tests.web.dicomweb.objects import image, uids, values

OTHER_DAY: dict[str, Any] = {
    "StudyDate": "20191231",
    "StudyTime": "235959",
    "Modality": "CT",
    "AccessionNumber": "ACC-2",
}


@dataclass(frozen=True)
class Kept:
    """Two studies of two patients; the first has two series, of one and of two instances."""

    patient_id: str
    first: Dataset
    all_of_first: list[Dataset]
    other: Dataset


@pytest.fixture(scope="module")
def kept(served: Served) -> Kept:
    patient_id = generate_uid(prefix=None)[:30]
    of_first: dict[str, Any] = {
        "PatientID": patient_id,
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "SpecificCharacterSet": "ISO_IR 192",
        "StudyDate": "20200229",
        "StudyTime": "103000.5",
        "AccessionNumber": "ACC_1",
        "StudyID": "S1",
        "ReferringPhysicianName": "Doe^Jane",
        "PatientBirthDate": "19500101",
        "PatientSex": "F",
        "Modality": "MR",
    }
    first = image(**of_first, SeriesNumber=1, InstanceNumber=1)
    second = image(like=first, **of_first, SeriesInstanceUID=generate_uid(), SeriesNumber=2, InstanceNumber=2)
    third = image(like=second, **(of_first | {"Modality": "SR"}), SeriesNumber=2, InstanceNumber=1)
    other = image(PatientID=f"{patient_id}x", PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100", **OTHER_DAY)
    served.client().store_instances([first, second, third, other])
    return Kept(patient_id, first, [first, second, third], other)


def found(client: DICOMwebClient, kept: Kept, **keys: str) -> list[str]:
    """Study Instance UIDs of those of the two studies that are found."""
    said = client.search_for_studies(search_filters={"PatientID": f"{kept.patient_id}*", **keys})
    return sorted(str(values(one, "0020000D")[0]) for one in said)


def test_a_study_is_found_with_all_that_the_standard_asks_for(
    client: DICOMwebClient, kept: Kept, served: Served
) -> None:
    (said,) = client.search_for_studies(search_filters={"PatientID": kept.patient_id})
    study = kept.first.StudyInstanceUID
    assert {tag: one.get("Value") for tag, one in said.items()} == {
        "00080005": ["ISO_IR 192"],
        "00080020": ["20200229"],
        "00080030": ["103000.5"],
        "00080050": ["ACC_1"],
        "00080056": ["ONLINE"],
        "00080061": ["MR"],
        "00080090": [{"Alphabetic": "Doe^Jane"}],
        "00081030": None,
        "00081190": [f"{served.dicomweb}/studies/{study}"],
        "00100010": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}],
        "00100020": [kept.patient_id],
        "00100030": ["19500101"],
        "00100040": ["F"],
        "0020000D": [study],
        "00200010": ["S1"],
        "00201206": [2],
        "00201208": [3],
    }


@pytest.mark.parametrize(
    "keys",
    [
        {"00200010": "S1"},
        {"PatientName": "Yamada^Tarou"},
        {"PatientName": "yamada*"},
        {"PatientName": "山田*"},
        {"PatientName": "?amada^T*"},
        {"StudyDate": "20200229"},
        {"StudyDate": "20200101-20201231"},
        {"StudyDate": "20200101-"},
        {"StudyTime": "1000-1030"},
        {"StudyTime": "-103000.5"},
        {"AccessionNumber": "ACC_1"},
        {"AccessionNumber": "ACC_*"},
        {"ModalitiesInStudy": "MR"},
        {"ModalitiesInStudy": "US,MR"},
        {"ReferringPhysicianName": "doe*"},
        {"StudyID": "S1"},
        {"PatientBirthDate": "19500101"},
        {"StudyInstanceUID": "{study}"},
        {"StudyInstanceUID": "1.2.3,{study}"},
    ],
    ids=str,
)
def test_each_key_finds_the_one_study_and_not_the_other(
    client: DICOMwebClient, kept: Kept, keys: dict[str, str]
) -> None:
    study = str(kept.first.StudyInstanceUID)
    filled = {name: value.format(patient_id=kept.patient_id, study=study) for name, value in keys.items()}
    assert found(client, kept, **filled) == [study]


@pytest.mark.parametrize(
    "keys",
    [
        {"PatientName": "Tarou"},
        {"AccessionNumber": "ACC%1"},
        {"AccessionNumber": "acc_1"},
        {"StudyDate": "-20181231"},
        {"StudyTime": "1031-1059"},
        {"ModalitiesInStudy": "XA"},
        {"StudyInstanceUID": "1.2.3"},
    ],
    ids=str,
)
def test_a_key_that_does_not_match_finds_neither(client: DICOMwebClient, kept: Kept, keys: dict[str, str]) -> None:
    assert found(client, kept, **keys) == []


def test_an_empty_key_matches_everything(client: DICOMwebClient, kept: Kept) -> None:
    assert len(found(client, kept, PatientName="", StudyDate="")) == 2
    assert found(client, kept, PatientName="Müller^*") == [kept.other.StudyInstanceUID]


def test_series_and_instances_are_found_below_a_study_and_everywhere(
    client: DICOMwebClient, kept: Kept, served: Served
) -> None:
    study, series, instance = uids(kept.first)
    of_study = client.search_for_series(study)
    assert [values(one, "00201209") for one in of_study] == [[1], [2]]
    assert [values(one, "00080060") for one in of_study] == [["MR"], ["MR"]]
    assert values(of_study[0], "0020000E") == [series]
    assert values(of_study[0], "00081190") == [f"{served.dicomweb}/studies/{study}/series/{series}"]
    everywhere = client.search_for_series(search_filters={"PatientID": kept.patient_id, "SeriesNumber": "2"})
    assert [values(one, "0020000E") for one in everywhere] == [[kept.all_of_first[1].SeriesInstanceUID]]
    of_series = client.search_for_instances(study, kept.all_of_first[1].SeriesInstanceUID)
    assert [values(one, "00080018") for one in of_series] == [
        [kept.all_of_first[2].SOPInstanceUID],
        [kept.all_of_first[1].SOPInstanceUID],
    ]
    assert len(client.search_for_instances(study)) == 3
    (by_uid,) = client.search_for_instances(search_filters={"SOPInstanceUID": instance})
    assert values(by_uid, "00280010") == [kept.first.Rows]
    assert values(by_uid, "00080016") == [kept.first.SOPClassUID]
    assert values(by_uid, "00081190")[0] == f"{served.dicomweb}/studies/{study}/series/{series}/instances/{instance}"


def test_pages_follow_each_other_and_say_what_is_left(http: httpx.Client, kept: Kept) -> None:
    study = kept.first.StudyInstanceUID
    first = http.get(f"/studies/{study}/instances?limit=2")
    assert len(first.json()) == 2
    assert "There are 1 additional results that can be requested" in first.headers["warning"]
    second = http.get(f"/studies/{study}/instances?limit=2&offset=2")
    assert "warning" not in second.headers
    seen = [values(one, "00080018")[0] for one in [*first.json(), *second.json()]]
    assert sorted(map(str, seen)) == sorted(one.SOPInstanceUID for one in kept.all_of_first)


def test_no_match_is_no_content(http: httpx.Client) -> None:
    answer = http.get("/studies?PatientID=nobody")
    assert (answer.status_code, answer.content) == (204, b"")


def test_fuzzy_matching_is_not_done_and_said_so(http: httpx.Client, kept: Kept) -> None:
    answer = http.get(f"/studies?PatientID={kept.patient_id}&fuzzymatching=true&includefield=00081030,PatientAge")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    assert (
        "The fuzzymatching parameter is not supported. Only literal matching has been performed."
        in (answer.headers["warning"])
    )


@pytest.mark.parametrize(
    "query",
    [
        "PatientAge=045Y",
        "NoSuchKeyword=1",
        "Modality=MR",
        "StudyDate=29.02.2020",
        "StudyDate=20200230",
        "StudyTime=noon",
        "limit=all",
        "offset=-1",
    ],
)
def test_a_query_that_cannot_be_answered_exactly_is_refused(http: httpx.Client, query: str) -> None:
    answer = http.get(f"/studies?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "web.request-invalid")


def test_a_search_is_audited_by_its_keys_and_never_their_values(
    client: DICOMwebClient, kept: Kept, served: Served
) -> None:
    client.search_for_studies(search_filters={"PatientID": kept.patient_id})
    with served.services.sessions() as session:
        newest = select(AuditEvent).where(AuditEvent.action == "search").order_by(AuditEvent.sequence.desc())
        event = session.scalars(newest.limit(1)).one()
    assert (event.actor, event.detail) == ("orchestrator", {"keys": ["PatientID"], "level": "study", "results": 1})
