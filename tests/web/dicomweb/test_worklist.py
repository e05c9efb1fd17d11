"""Other applications find studies on the worklist, claim each once, and say what they did."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from pydicom.uid import generate_uid
from sqlalchemy import select

from app import worklist
from app.db import audit
from app.db.tables import AuditEvent
from app.db.work import WorkItem
from app.identity import SYSTEM
from tests.web.dicomweb.conftest import Served
from tests.web.dicomweb.objects import MULTIPART, image, message, part10, uids, values

JSON = {"Content-Type": "application/dicom+json"}
STATE, TRANSACTION = "00741000", "00081195"


def code(value: str, meaning: str) -> dict[str, Any]:
    said = {"00080100": ("SH", value), "00080102": ("SH", "99TEST"), "00080104": ("LO", meaning)}
    return {tag: {"vr": vr, "Value": [one]} for tag, (vr, one) in said.items()}


OUTPUT = {
    "0040E020": {"vr": "CS", "Value": ["DICOM"]},
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    "0020000E": {"vr": "UI", "Value": ["1.2.4"]},
    "00081199": {
        "vr": "SQ",
        "Value": [
            {
                "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.88.34"]},
                "00081155": {"vr": "UI", "Value": ["1.2.5"]},
            }
        ],
    },
}
PERFORMED = {
    "00741216": {
        "vr": "SQ",
        "Value": [
            {
                "00404028": {"vr": "SQ", "Value": [code("BOX", "The AI box")]},
                "00404050": {"vr": "DT", "Value": ["20260101120000"]},
                "00404051": {"vr": "DT", "Value": ["20260101120100"]},
                "00404019": {"vr": "SQ", "Value": [code("CAD", "Diagnosis")]},
                "00404033": {"vr": "SQ", "Value": [OUTPUT]},
            }
        ],
    }
}
PROGRESS = {"00741002": {"vr": "SQ", "Value": [{"00741004": {"vr": "DS", "Value": [50]}}]}}


@pytest.fixture
def item(served: Served, http: httpx.Client) -> str:
    """A work item of a study that has just come in; its UID."""
    dataset = image(AccessionNumber="A-77")
    sent = http.post("/studies", content=message(part10(dataset)), headers={"Content-Type": MULTIPART})
    assert sent.status_code == 200
    made = worklist.schedule(
        served.services.sessions, quiet_seconds=0, now=lambda: served.services.now() + timedelta(seconds=1)
    )
    return made[-1]


def change(http: httpx.Client, item: str, state: str, transaction: str | None) -> httpx.Response:
    said: dict[str, Any] = {STATE: {"vr": "CS", "Value": [state]}}
    if transaction is not None:
        said[TRANSACTION] = {"vr": "UI", "Value": [transaction]}
    return http.put(f"/workitems/{item}/state", json=said, headers=JSON)


def update(http: httpx.Client, item: str, said: dict[str, Any], transaction: str | None) -> httpx.Response:
    query = {} if transaction is None else {"transaction-uid": transaction}
    return http.post(f"/workitems/{item}", json=[said], headers=JSON, params=query)


def state_of(http: httpx.Client, item: str) -> str:
    (said,) = http.get(f"/workitems/{item}").json()
    assert TRANSACTION not in said
    return str(values(said, STATE)[0])


def test_a_study_is_taken_done_and_completed_with_references_to_its_results(
    http: httpx.Client, served: Served, item: str
) -> None:
    transaction = generate_uid()
    assert state_of(http, item) == "SCHEDULED"
    assert change(http, item, "IN PROGRESS", transaction).status_code == 200
    assert state_of(http, item) == "IN PROGRESS"
    assert update(http, item, PROGRESS, transaction).status_code == 200
    assert update(http, item, PERFORMED, transaction).status_code == 200
    assert change(http, item, "COMPLETED", transaction).status_code == 200
    (said,) = http.get(f"/workitems/{item}").json()
    assert values(said, STATE) == ["COMPLETED"]
    assert said["00741216"] == PERFORMED["00741216"]
    assert said["00741002"] == PROGRESS["00741002"]
    with served.services.sessions() as session:
        row = session.scalars(select(WorkItem).where(WorkItem.uid == item)).one()
        assert (row.state, row.claimed_by, row.outside) == ("COMPLETED", "orchestrator", True)
        events = session.scalars(select(AuditEvent).where(AuditEvent.action == "work-item")).all()
        states = [(event.actor, event.detail["state"]) for event in events if event.detail["work_item"] == item]
        assert audit.verify(session, None).broken is None
    assert states == [
        ("hilum", "SCHEDULED"),
        *[("orchestrator", "IN PROGRESS")] * 3,
        ("orchestrator", "COMPLETED"),
    ]


def test_a_work_item_says_whose_study_it_is_and_where_its_images_are(
    http: httpx.Client, served: Served, item: str
) -> None:
    (said,) = http.get(f"/workitems/{item}").json()
    (inputs,) = values(said, "00404021")
    assert isinstance(inputs, dict)
    study = values(inputs, "0020000D")[0]
    (retrieval,) = values(inputs, "0040E025")
    assert isinstance(retrieval, dict)
    (url,) = values(retrieval, "00081190")
    assert url == f"{served.dicomweb}/studies/{study}/series/{values(inputs, '0020000E')[0]}"
    assert http.get(str(url)).status_code == 200
    (referenced,) = values(inputs, "00081199")
    assert isinstance(referenced, dict)
    assert http.get(f"/instances?SOPInstanceUID={values(referenced, '00081155')[0]}").json()
    (what,) = values(said, "00404018")
    assert isinstance(what, dict)
    assert (values(what, "00080100"), values(what, "00080102")) == (["110003"], ["DCM"])
    assert values(said, "00080018") == [item]
    assert values(said, "00100020") == ["4MR1"]
    (request,) = values(said, "0040A370")
    assert isinstance(request, dict)
    assert values(request, "00080050") == ["A-77"]


def test_of_two_claimants_at_once_one_gets_it(served: Served, item: str) -> None:
    def claim(_number: int) -> tuple[int, str]:
        with served.http() as http:
            answer = change(http, item, "IN PROGRESS", generate_uid())
            return answer.status_code, answer.headers.get("warning", "")

    with ThreadPoolExecutor(4) as threads:
        answers = sorted(threads.map(claim, range(4)))
    assert [status for status, _ in answers] == [200, 409, 409, 409]
    inconsistent = "The submitted request is inconsistent with the state of the UPS Instance."
    assert all(warning.startswith("299 ") and warning.endswith(inconsistent) for _, warning in answers[1:])


@pytest.mark.parametrize(
    ("transaction", "warning"),
    [(None, "The Transaction UID is missing."), ("1.2.3", "The Transaction UID is incorrect.")],
)
def test_only_the_holder_changes_what_it_holds(
    http: httpx.Client, item: str, transaction: str | None, warning: str
) -> None:
    assert change(http, item, "IN PROGRESS", generate_uid()).status_code == 200
    for answer in (
        change(http, item, "COMPLETED", transaction),
        change(http, item, "CANCELED", transaction),
        update(http, item, PERFORMED, transaction),
    ):
        assert answer.status_code == 400
        assert answer.headers["warning"].endswith(warning)
    assert state_of(http, item) == "IN PROGRESS"


def test_nothing_is_completed_before_it_is_claimed_nor_before_it_is_said_what_was_done(
    http: httpx.Client, item: str
) -> None:
    transaction = generate_uid()
    assert change(http, item, "COMPLETED", transaction).json()["error"]["code"] == "worklist.not-claimed"
    assert update(http, item, PERFORMED, transaction).status_code == 409
    assert change(http, item, "IN PROGRESS", transaction).status_code == 200
    unfinished = change(http, item, "COMPLETED", transaction)
    assert (unfinished.status_code, unfinished.json()["error"]["code"]) == (409, "worklist.unfinished")
    assert "OutputInformationSequence" in unfinished.json()["error"]["message"]
    assert update(http, item, PERFORMED, transaction).status_code == 200
    assert change(http, item, "COMPLETED", transaction).status_code == 200


def test_what_has_ended_stays_as_it_is(http: httpx.Client, item: str) -> None:
    transaction = generate_uid()
    assert change(http, item, "IN PROGRESS", transaction).status_code == 200
    assert change(http, item, "CANCELED", transaction).status_code == 200
    again = change(http, item, "CANCELED", transaction)
    assert again.status_code == 200
    assert again.headers["warning"].endswith("The UPS is already in the requested state of CANCELED.")
    assert change(http, item, "IN PROGRESS", generate_uid()).status_code == 409
    assert change(http, item, "COMPLETED", transaction).status_code == 409
    assert update(http, item, PERFORMED, transaction).status_code == 400  # PS3.18 11.6.2
    assert state_of(http, item) == "CANCELED"


def test_cancelling_is_asked_for_and_done_where_nobody_outside_is_at_work(
    http: httpx.Client, served: Served, item: str
) -> None:
    assert http.post(f"/workitems/{item}/cancelrequest").status_code == 202
    assert state_of(http, item) == "CANCELED"
    again = http.post(f"/workitems/{item}/cancelrequest")
    assert (again.status_code, again.headers["warning"][-9:]) == (202, "CANCELED.")


def test_cancelling_of_what_our_worker_does_stops_it(http: httpx.Client, served: Served, item: str) -> None:
    services = served.services

    def later() -> datetime:
        """When the item of the fixture is due."""
        return services.now() + timedelta(seconds=2)

    while True:
        ours = worklist.claim(services.sessions, actor=SYSTEM, holder="w", lease_seconds=60, now=later)
        assert ours is not None
        if ours.uid == item:
            break
    assert http.post(f"/workitems/{item}/cancelrequest").status_code == 202
    assert not worklist.renew(services.sessions, ours, lease_seconds=60, now=services.now)
    with services.sessions.begin() as session:
        assert not worklist.complete(session, ours, actor=SYSTEM, now=services.now)


def test_an_outside_holder_cannot_be_told_and_the_asker_hears_so(http: httpx.Client, item: str) -> None:
    assert change(http, item, "IN PROGRESS", generate_uid()).status_code == 200
    answer = http.post(f"/workitems/{item}/cancelrequest", json={}, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "worklist.performer-unreachable")
    assert state_of(http, item) == "IN PROGRESS"


def test_our_worker_takes_over_only_when_the_holder_has_been_silent_for_the_set_time(
    http: httpx.Client, served: Served, item: str
) -> None:
    services, transaction = served.services, generate_uid()

    def ours(seconds: float) -> list[str]:
        taken: list[str] = []
        while True:
            got = worklist.claim(
                services.sessions,
                actor=SYSTEM,
                holder="w",
                lease_seconds=10 * seconds + 60,
                now=lambda: services.now() + timedelta(seconds=seconds),
            )
            if got is None:
                return taken
            taken.append(got.uid)

    assert change(http, item, "IN PROGRESS", transaction).status_code == 200
    held_seconds = services.settings.pacs.outside_hold_seconds
    assert item not in ours(held_seconds - 60)
    assert item in ours(held_seconds + 60)
    assert update(http, item, PERFORMED, transaction).headers["warning"].endswith("The Transaction UID is incorrect.")


def test_new_items_are_left_to_others_for_their_head_start(served: Served, item: str) -> None:
    services = served.services

    def taken(at_seconds: float) -> str | None:
        got = worklist.claim(
            services.sessions,
            actor=SYSTEM,
            holder="w",
            lease_seconds=60,
            head_start_seconds=100,
            now=lambda: services.now() + timedelta(seconds=at_seconds),
        )
        return got.uid if got else None

    early = set(iter(lambda: taken(50), None))
    assert item not in early
    assert item in set(iter(lambda: taken(150), None))


def test_the_worklist_is_searched_by_state_patient_and_study(http: httpx.Client, item: str) -> None:
    def found(**keys: str) -> list[object]:
        answer = http.get("/workitems", params=keys)
        return [values(one, "00080018")[0] for one in answer.json()] if answer.status_code == 200 else []

    (said,) = http.get(f"/workitems/{item}").json()
    study = str(values(said, "0020000D")[0])
    assert found(StudyInstanceUID=study) == [item]
    assert found(**{"InputInformationSequence.StudyInstanceUID": study, "ProcedureStepState": "SCHEDULED"}) == [item]
    assert found(StudyInstanceUID=study, ProcedureStepState="IN PROGRESS") == []
    assert found(StudyInstanceUID=study, **{"0040A370.00080050": "A-77"}) == [item]
    assert found(StudyInstanceUID=study, PatientID="nobody") == []
    assert found(SOPInstanceUID=item, includefield="InputInformationSequence") == [item]
    (short,) = http.get("/workitems", params={"SOPInstanceUID": item}).json()
    (long,) = http.get("/workitems", params={"SOPInstanceUID": item, "includefield": "all"}).json()
    assert "00404021" not in short
    assert values(long, "00404021")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"[]", JSON, 400),
        (b"[1]", JSON, 400),
        (b'{"1": {"vr": "CS"}}', JSON, 400),
        (b'{"00741004": {"vr": "DS", "Value": [NaN]}}', JSON, 400),
        (b'{"00741004": {"vr": "DS", "Value": [1e999]}}', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"<a/>", {"Content-Type": "application/dicom+xml"}, 415),
        (bytes((1 << 20) + 1), JSON, 413),
        (b'{"00741000": {"vr": "CS", "Value": ["DONE"]}, "00081195": {"vr": "UI", "Value": ["1.2"]}}', JSON, 400),
        (b'{"00741000": {"vr": "CS", "Value": ["IN PROGRESS"]}, "00081195": {"vr": "UI", "Value": ["x"]}}', JSON, 400),
    ],
)
def test_a_body_that_is_no_data_set_changes_nothing(
    http: httpx.Client, item: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert http.put(f"/workitems/{item}/state", content=body, headers=headers).status_code == status
    assert state_of(http, item) == "SCHEDULED"


def test_attributes_that_are_ours_are_not_taken_and_the_sender_is_told(http: httpx.Client, item: str) -> None:
    transaction = generate_uid()
    assert change(http, item, "IN PROGRESS", transaction).status_code == 200
    answer = update(http, item, PROGRESS | {"00100020": {"vr": "LO", "Value": ["another"]}}, transaction)
    assert answer.status_code == 200
    assert answer.headers["warning"].endswith("Requested optional Attributes are not supported.")
    (said,) = http.get(f"/workitems/{item}").json()
    assert values(said, "00100020") == ["4MR1"]
    assert update(http, item, {STATE: {"vr": "CS", "Value": ["COMPLETED"]}}, transaction).status_code == 400


def test_what_is_not_offered_says_so(http: httpx.Client, item: str) -> None:
    assert http.post("/workitems?1.2.3", json={}, headers=JSON).status_code == 501
    assert http.post(f"/workitems/{item}/subscribers/BOX").status_code == 501
    assert http.get("/workitems/1.2.3").status_code == 404
    assert http.delete("/studies/1.2.3").status_code == 404
    assert http.get("/gradio_api/info").status_code == 404


def test_a_study_that_came_by_the_page_is_not_on_the_worklist(served: Served) -> None:
    dataset = image()
    with httpx.Client(base_url=served.url, trust_env=False, timeout=60, auth=("kim", "staple")) as page:
        assert page.post("/api/files?name=x.dcm", content=part10(dataset)).status_code == 200
    worklist.schedule(served.services.sessions, quiet_seconds=0, now=served.services.now)
    with served.http() as http:
        assert http.get(f"/workitems?StudyInstanceUID={uids(dataset)[0]}").status_code == 204
