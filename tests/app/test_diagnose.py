"""From received files to audited predictions: what is read, answered, withheld and kept."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation
from sqlalchemy import func, select, text

import vision_model
from app import window
from app.db import audit
from app.db.checkpoint import Checkpoint
from app.db.session import Sessions
from app.db.tables import AuditEvent, FindingRow, PredictionRow, WithheldRow
from app.diagnose import plan
from app.results import Diagnosed, NotDiagnosed, as_json
from dicom_io.read import frames
from tests.app.conftest import Desk, on_sqlite
from tests.app.films import MR_IMAGE, US_IMAGE, ct, film, gradient, report
from tests.dicom_io import build
from tests.vision_model.tiny import tiny_model
from vision_model.runtime import Model

CHILD, ADULT = "cxr-pneumonia-child", "cxr-pneumonia-adult"
CONTRACT = {
    "study_instance_uid",
    "series_instance_uid",
    "sop_instance_uid",
    "modality",
    "model",
    "findings",
    "prediction_sets",
    "abstained",
    "ood",
    "warnings",
    "provider",
    "prediction_id",
    "audit",
}


@pytest.fixture(scope="module")
def chest_ct_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose router says CT-CHEST of everything."""
    return vision_model.load(tiny_model(tmp_path_factory.mktemp("models") / "ct", route="CT-CHEST"))


def answered(result: Diagnosed) -> list[str]:
    return [answer.task for answer in result.verdict.allowed]


def withheld(result: Diagnosed) -> dict[str | None, str]:
    return {one.task: one.code for one in result.verdict.withheld}


def counts(sessions: Sessions) -> dict[str, int]:
    with sessions() as session:
        return {
            row.__tablename__: session.scalar(select(func.count()).select_from(row)) or 0
            for row in (PredictionRow, FindingRow, WithheldRow)
        }


@on_sqlite
@pytest.mark.parametrize(
    ("header_age", "stated_age", "expected"),
    [
        ("045Y", None, [ADULT]),
        ("045Y", 3.0, [ADULT]),
        ("003Y", None, [CHILD]),
        ("003Y", 45.0, [CHILD]),
        ("018M", None, [CHILD]),
        ("010Y", None, []),
        ("011M", None, []),
        (None, None, []),
        (None, 45.0, [ADULT]),
        (None, 3.0, [CHILD]),
        (None, 10.0, []),
    ],
)
def test_a_film_is_answered_for_its_age_only(
    desk: Desk, tmp_path: Path, header_age: str | None, stated_age: float | None, expected: list[str]
) -> None:
    (result,) = desk.diagnosed(film(tmp_path / "in", PatientAge=header_age), age=stated_age)
    assert answered(result) == expected
    said = as_json(result, manifest=desk.model.manifest)
    assert {finding["task"] for finding in said["findings"]} == set(expected)
    assert (said["abstained"] is None) == bool(expected)
    with desk.sessions() as session:
        row = session.scalars(select(PredictionRow)).one()
        assert {finding.task for finding in row.findings} == set(expected)
        assert {one.task for one in row.withheld} == {CHILD, ADULT} - set(expected)
        assert row.stated_age_years == stated_age


@on_sqlite
def test_without_an_age_the_unattended_road_withholds_and_says_why(desk: Desk, tmp_path: Path) -> None:
    (result,) = desk.diagnosed(film(tmp_path / "in"))
    said = as_json(result, manifest=desk.model.manifest)
    assert said["abstained"]["code"] == "gate.age-unknown"
    assert "age is not known" in said["abstained"]["reason"]
    with desk.sessions() as session:
        row = session.scalars(select(PredictionRow)).one()
        assert (row.abstained_code, row.abstained_reason) == ("gate.age-unknown", said["abstained"]["reason"])
        event = session.scalars(select(AuditEvent).where(AuditEvent.action == "predict")).one()
        assert event.detail == {"prediction_id": row.uid, "abstained": "gate.age-unknown"}


def test_a_result_has_the_contracts_keys_and_its_trace(desk: Desk, tmp_path: Path) -> None:
    (result,) = desk.diagnosed(film(tmp_path / "in", PatientAge="045Y"))
    said = as_json(result, manifest=desk.model.manifest)
    assert said.keys() == CONTRACT
    assert said["model"] == {"name": "tiny", "version": "0", "sha256": desk.model.manifest.graph_sha256}
    assert [finding.keys() for finding in said["findings"]] == [
        {"task", "label", "code", "probability", "threshold", "positive"}
    ] * 2
    assert said["findings"][1]["code"] == {"scheme": "SCT", "value": "233604007", "meaning": "Pneumonia"}
    assert sum(finding["probability"] for finding in said["findings"]) == pytest.approx(1)
    assert set(said["prediction_sets"]) == {ADULT}
    assert said["ood"].keys() == {"score", "threshold"}
    with desk.sessions() as session:
        event = session.scalars(select(AuditEvent).order_by(AuditEvent.sequence.desc())).first()
        assert event is not None
        assert said["audit"] == {"sequence": event.sequence, "hash": event.hash}
        tables = [subject.table_name for subject in event.subjects]
        assert tables == ["prediction", "finding", "finding", "withheld"]
        assert session.scalars(select(PredictionRow.uid)).one() == said["prediction_id"]


def test_the_record_holds_what_is_needed_to_repeat_the_prediction(desk: Desk, tmp_path: Path) -> None:
    path = film(tmp_path / "in", PatientAge="045Y", WindowCenter=300, WindowWidth=400)
    (result,) = desk.diagnosed(path)
    with desk.sessions() as session:
        row = session.scalars(select(PredictionRow)).one()
    manifest = desk.model.manifest
    assert row.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (row.model_sha256, row.threshold_set) == (manifest.graph_sha256, manifest.threshold_set)
    assert row.preprocessing["source"] == "file-window"
    # PS3.3 C.11.2.1.2.1: centre 300, width 400 -> 299.5 - 199.5 and 299.5 + 199.5
    assert (row.preprocessing["black"], row.preprocessing["white"]) == (100.0, 499.0)
    assert row.preprocessing["photometric_interpretation"] == "MONOCHROME2"
    assert row.latency_ms.keys() == {"decode", "prepare", "inference"}
    assert result.latency_ms.keys() == {"decode", "prepare", "inference", "record"}
    assert row.runtime_version.startswith("onnxruntime ")
    assert row.logits.keys() == row.ood.keys() == {task.name for task in manifest.tasks}

    instance = result.image.received.instance
    (frame,) = frames(instance, sandbox=desk.sandbox, numbers=[row.frame_number])
    repeated = window.present(frame, window.from_record(row.preprocessing), spec=manifest.input)
    assert repeated.sha256 == row.input_sha256
    (again,) = desk.model.predict_inputs([repeated])
    assert again.result(ADULT).findings[1].logit == pytest.approx(row.logits[ADULT]["pneumonia"], abs=1e-5)


def test_each_result_is_committed_before_it_is_seen(desk: Desk, tmp_path: Path) -> None:
    received = desk.received(*(film(tmp_path / "in", number, PatientAge="045Y") for number in range(1, 6)))
    seen = 0
    for result in desk.results(*received, batch_size=2):
        seen += 1
        assert isinstance(result, Diagnosed)
        assert result.trace is not None
        with desk.sessions() as session:
            assert session.scalar(select(PredictionRow.id).where(PredictionRow.uid == result.trace.prediction_id))
            assert session.get(AuditEvent, result.trace.audit_sequence)
    assert seen == 5


def test_without_an_audit_event_there_is_no_prediction(desk: Desk, tmp_path: Path) -> None:
    received = desk.received(film(tmp_path / "in", PatientAge="045Y"))
    with desk.sessions.begin() as session:
        session.execute(text("ALTER TABLE audit_event RENAME TO elsewhere"))
    results = desk.results(*received)
    with pytest.raises(Exception, match="audit_event"):
        next(results)
    assert counts(desk.sessions) == {"prediction": 0, "finding": 0, "withheld": 0}


def test_a_file_that_cannot_be_decoded_is_audited_and_the_rest_goes_on(
    desk: Desk, tmp_path: Path, checkpoint_path: Path
) -> None:
    header = build.data_set(gradient(), SOPClassUID=DigitalXRayImageStorageForPresentation, Modality="DX")
    header.SOPInstanceUID, header.SeriesInstanceUID = "1.2.3.1", "1.2.3"
    broken = build.write(
        tmp_path,
        build.encapsulated(header, [b"\xff\x4f\xff\x51 no codestream "], transfer_syntax="1.2.840.10008.1.2.4.90"),
        "broken.dcm",
    )
    results = list(desk.results(*desk.received(broken, film(tmp_path / "in", PatientAge="045Y"))))
    (failed,) = (result for result in results if isinstance(result, NotDiagnosed))
    assert failed.code == "dicom.cannot-decode"
    assert as_json(failed, manifest=desk.model.manifest) == {
        "path": "broken.dcm",
        "error": {"code": failed.code, "message": failed.message},
    }
    assert len(results) == 2
    assert failed.trace is not None
    with desk.sessions() as session:
        event = session.get_one(AuditEvent, failed.trace.audit_sequence)
        assert event.detail == {"error": "dicom.cannot-decode", "frame": 1}
        assert [subject.table_name for subject in event.subjects] == ["instance"]
        assert audit.verify(session, Checkpoint(checkpoint_path)).broken is None


@on_sqlite
def test_bytes_that_changed_in_the_spool_are_not_diagnosed(desk: Desk, tmp_path: Path) -> None:
    (received,) = desk.received(film(tmp_path / "in", PatientAge="045Y"))
    path = received.instance.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    (result,) = desk.results(received)
    assert isinstance(result, NotDiagnosed)
    assert result.code == "spool.damaged"
    assert counts(desk.sessions)["prediction"] == 0


@on_sqlite
def test_an_image_that_the_model_cannot_take_does_not_take_its_batch_with_it(desk: Desk, tmp_path: Path) -> None:
    dot = film(tmp_path / "in", 1, pixels=gradient(1, 1))
    results = list(desk.results(*desk.received(dot, film(tmp_path / "in", 2, PatientAge="045Y"))))
    assert [type(result) for result in results] == [NotDiagnosed, Diagnosed]
    assert isinstance(results[0], NotDiagnosed)
    assert results[0].code == "model.image-invalid"


def test_an_object_without_an_image_abstains_and_is_audited(desk: Desk, tmp_path: Path) -> None:
    (result,) = desk.results(*desk.received(report(tmp_path / "in")))
    said = as_json(result, manifest=desk.model.manifest)
    assert said.keys() == CONTRACT
    assert said["abstained"]["code"] == "dicom.no-pixels"
    assert said["prediction_id"] is None
    assert said["audit"]["sequence"] == 2
    assert counts(desk.sessions)["prediction"] == 0


def test_a_film_far_from_the_training_images_is_withheld_with_its_distance(desk: Desk, tmp_path: Path) -> None:
    strict = vision_model.load(tiny_model(tmp_path / "strict", ood_threshold=-1.0))
    (result,) = desk.diagnosed(film(tmp_path / "in", PatientAge="045Y"), model=strict)
    assert withheld(result) == {CHILD: "gate.age-outside", ADULT: "gate.out-of-distribution"}
    said = as_json(result, manifest=strict.manifest)
    assert said["abstained"]["code"] == "gate.out-of-distribution"
    assert said["ood"]["score"] > said["ood"]["threshold"]
    with desk.sessions() as session:
        row = session.scalars(select(WithheldRow).where(WithheldRow.task == ADULT)).one()
        assert row.ood_score == pytest.approx(said["ood"]["score"])


@on_sqlite
def test_a_dry_run_predicts_and_keeps_nothing(desk: Desk, tmp_path: Path) -> None:
    received = desk.received(film(tmp_path / "in", PatientAge="045Y"))
    (result,) = desk.results(*received, dry_run=True)
    assert isinstance(result, Diagnosed)
    assert answered(result) == [ADULT]
    assert result.trace is None
    assert counts(desk.sessions) == {"prediction": 0, "finding": 0, "withheld": 0}


@on_sqlite
def test_of_a_long_series_an_even_sample_is_read_and_told(desk: Desk, tmp_path: Path) -> None:
    received = desk.received(*(ct(tmp_path / "in", number) for number in range(1, 11)))
    results = list(desk.results(*received, frames_per_series=4))
    assert all(isinstance(result, Diagnosed) for result in results)
    read = [result.image.received.instance.instance_number for result in results if isinstance(result, Diagnosed)]
    assert read == [1, 4, 7, 10]
    warning = "This series holds 10 images; 4 of them were read, evenly spaced: 1, 4, 7, 10."
    assert all(warning in result.warnings for result in results if isinstance(result, Diagnosed))


@on_sqlite
def test_of_a_long_multi_frame_an_even_sample_is_read_and_each_frame_named(desk: Desk, tmp_path: Path) -> None:
    loop = np.stack([gradient(start=frame) for frame in range(9)])
    received = desk.received(film(tmp_path / "in", pixels=loop, SOPClassUID=MR_IMAGE, Modality="MR"))
    results = [result for result in desk.results(*received, frames_per_series=3) if isinstance(result, Diagnosed)]
    assert [result.image.frame_number for result in results] == [1, 5, 9]
    assert "Frame 5 of 9." in results[1].warnings
    assert any("9 of 9 slices do not say where they lie" in warning for warning in results[1].warnings)
    with desk.sessions() as session:
        assert session.scalars(select(PredictionRow.frame_number).order_by(PredictionRow.id)).all() == [1, 5, 9]


@on_sqlite
def test_a_header_that_claims_billions_of_frames_is_planned_without_counting_them(desk: Desk, tmp_path: Path) -> None:
    (received,) = desk.received(film(tmp_path / "in", NumberOfFrames=2**31 - 1))
    ((_, numbers, _),) = plan([received], frames_per_series=3)
    assert list(numbers) == [1, 2**30, 2**31 - 1]


@on_sqlite
def test_an_instance_that_was_sent_twice_is_diagnosed_once(desk: Desk, tmp_path: Path) -> None:
    path = film(tmp_path / "in", PatientAge="045Y")
    assert len(list(desk.results(*desk.received(path, path)))) == 1


@on_sqlite
def test_slices_are_read_in_the_order_of_their_places(desk: Desk, tmp_path: Path) -> None:
    received = desk.received(*(ct(tmp_path / "in", number, InstanceNumber=9 - number) for number in (3, 1, 2)))
    planned = plan(received, frames_per_series=64)
    assert [each.instance.ref.sop_instance_uid[-1] for each, _, _ in planned] == ["1", "2", "3"]


@on_sqlite
@pytest.mark.parametrize(("numbers", "said"), [((1, 2, 3, 4), False), ((1, 2, 3, 5), True)])
def test_a_stack_with_a_missing_slice_says_so(desk: Desk, tmp_path: Path, numbers: tuple[int, ...], said: bool) -> None:
    received = desk.received(*(ct(tmp_path / "in", number) for number in numbers))
    [warnings] = {warnings for _, _, warnings in plan(received, frames_per_series=64)}
    assert any("1 slices are missing, after slice 3" in warning for warning in warnings) is said


@on_sqlite
@pytest.mark.parametrize("body_part", ["CHEST", "THORAX", "LUNG"])
def test_a_chest_ct_is_shown_with_the_window_of_the_training_images(
    desk: Desk, tmp_path: Path, chest_ct_model: Model, body_part: str
) -> None:
    path = ct(tmp_path / "in", BodyPartExamined=body_part, PatientAge="060Y", WindowCenter=40, WindowWidth=400)
    (result,) = desk.diagnosed(path, model=chest_ct_model)
    assert answered(result) == ["ct-covid"]
    shown = result.image.preprocessing
    assert (shown["source"], shown["centre"], shown["width"]) == ("training-window", -600.0, 1500.0)


@on_sqlite
def test_a_ct_without_a_body_part_gets_the_window_of_what_the_router_sees(
    desk: Desk, tmp_path: Path, chest_ct_model: Model
) -> None:
    path = ct(tmp_path / "in", PatientAge="060Y", WindowCenter=40, WindowWidth=400)
    (result,) = desk.diagnosed(path, model=chest_ct_model)
    assert result.image.preprocessing["source"] == "training-window"
    assert any("Body Part Examined" in warning for warning in result.warnings)


@on_sqlite
@pytest.mark.parametrize(
    ("attributes", "source"),
    [
        ({"SOPClassUID": MR_IMAGE, "Modality": "MR", "WindowCenter": 90, "WindowWidth": 100}, "file-window"),
        (
            {"WindowCenter": 90, "WindowWidth": 100, "VOILUTFunction": "SIGMOID"},
            "file-voi",
        ),
        ({"SOPClassUID": MR_IMAGE, "Modality": "MR"}, "percentiles"),
        ({"SOPClassUID": US_IMAGE, "Modality": "US", "pixels": gradient(8, 8).astype(np.uint8)}, "eight-bit"),
        ({"pixels": np.zeros((8, 8, 3), np.uint8)}, "colour"),
    ],
)
def test_without_a_training_window_the_file_says_what_is_black_and_white(
    desk: Desk, tmp_path: Path, attributes: dict[str, object], source: str
) -> None:
    (result,) = desk.diagnosed(film(tmp_path / "in", **attributes))  # type: ignore[arg-type]
    assert result.image.preprocessing["source"] == source


@on_sqlite
def test_eight_bit_ultrasound_reaches_the_model_as_it_is(desk: Desk, tmp_path: Path) -> None:
    pixels = np.full((8, 8), 128, np.uint8)
    path = film(tmp_path / "in", pixels=pixels, SOPClassUID=US_IMAGE, Modality="US")
    (result,) = desk.diagnosed(path)
    expected = vision_model.preprocess.prepare(pixels, spec=desk.model.manifest.input)
    assert result.prediction.input_sha256 == expected.sha256


@on_sqlite
def test_a_lateral_film_is_withheld_and_on_record(desk: Desk, tmp_path: Path) -> None:
    (result,) = desk.diagnosed(film(tmp_path / "in", ViewPosition="LL", PatientAge="045Y"))
    assert withheld(result) == {None: "gate.view-not-covered"}
    with desk.sessions() as session:
        row = session.scalars(select(WithheldRow)).one()
        assert (row.task, row.code) == (None, "gate.view-not-covered")
