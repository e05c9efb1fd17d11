"""The images with positive findings as a Key Object Selection (PS3.16 TID 2010), which viewers show first."""

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_io.errors import NothingToReport
from dicom_io.report.document import base_arguments, complete, reference_header
from dicom_io.report.findings import NOTICE, StudyFindings
from dicom_io.report.measurements import observer

SERIES_NUMBER = 9904
_SAID_MAX = 40  # findings that the description names


def key_object_note(findings: StudyFindings) -> Dataset:
    """The note "Of Interest", whose description names the findings. Raises NothingToReport without a positive one."""
    frames: dict[str, set[int]] = {}
    said: dict[str, float] = {}
    for image, answer, label in findings.positives():
        frames.setdefault(image.sop_instance_uid, set()).add(image.frame_number)
        what = f"{answer.display}: {label.display}"
        said[what] = max(said.get(what, 0.0), label.probability)
    if not frames:
        raise NothingToReport("no finding is at or above its operating point, so there is no image to point at")
    headers = [reference_header(findings.by_uid[uid]) for uid in frames]
    for header in headers:
        # Tells highdicom that this is an image, also where its header has no Rows.
        header.Rows = header.get("Rows", 1)
        header.Columns = header.get("Columns", 1)
    listed = [f"{what}, probability up to {probability:.1%}" for what, probability in said.items()][:_SAID_MAX]
    content = KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=headers,
        observer_device_context=observer(findings),
        description="\n".join([NOTICE + ".", *listed]),
    )
    for item in content[0].ContentSequence:
        if item.ValueType == "IMAGE":
            reference = item.ReferencedSOPSequence[0]
            if findings.by_uid[reference.ReferencedSOPInstanceUID].number_of_frames > 1:
                reference.ReferencedFrameNumber = sorted(frames[reference.ReferencedSOPInstanceUID])
    made = KeyObjectSelectionDocument(
        evidence=headers,
        content=content,
        instance_number=1,
        series_description="Hilum images of interest (research use only)",
        **base_arguments(findings, "key objects", series_number=SERIES_NUMBER),
    )
    complete(made, findings)
    return made
