"""Give results back as DICOM objects: TID 1500 report, parametric map, secondary capture, key object note.

Every function takes a `StudyFindings` and returns data sets ready for `part10_bytes`. The same work item gives the same
bytes again, SOP Instance UIDs included, so that a retry replaces nothing and doubles nothing.
"""
