"""Read DICOM files into studies, series, instances and frames; start at `dicom_io.read`."""
