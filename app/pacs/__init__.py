"""The DICOM network's edge: requests of peers become calls of use cases, and errors become DIMSE statuses."""
