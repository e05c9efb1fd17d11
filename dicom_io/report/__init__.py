"""Give results back as DICOM objects: TID 1500 report, parametric map, secondary capture, key object note.

Every function takes a `StudyFindings` and returns data sets ready for `part10_bytes`. The same work item gives the same
bytes again, SOP Instance UIDs included, so that a retry replaces nothing and doubles nothing.
"""

from dicom_io.report.capture import secondary_capture
from dicom_io.report.findings import (
    NOTICE,
    Device,
    HeatMap,
    ImageFindings,
    Installation,
    LabelFinding,
    NotAnswered,
    StudyFindings,
    TaskFindings,
)
from dicom_io.report.key_objects import key_object_note
from dicom_io.report.measurements import measurement_report
from dicom_io.report.parametric_map import can_be_mapped, parametric_maps
from dicom_io.report.part10 import part10_bytes

__all__ = [
    "NOTICE",
    "Device",
    "HeatMap",
    "ImageFindings",
    "Installation",
    "LabelFinding",
    "NotAnswered",
    "StudyFindings",
    "TaskFindings",
    "can_be_mapped",
    "key_object_note",
    "measurement_report",
    "parametric_maps",
    "part10_bytes",
    "secondary_capture",
]
