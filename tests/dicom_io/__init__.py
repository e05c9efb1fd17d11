"""Tests of reading DICOM."""
