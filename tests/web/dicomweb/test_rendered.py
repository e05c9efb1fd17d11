"""Pictures show the pixels as the file, or the request, wants them shown."""

from io import BytesIO

import httpx
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from tests.dicom_io.build import data_set
from tests.dicom_io.build import part10 as built
from tests.web.dicomweb.objects import MULTIPART, image, message, part10, path, uids

RAMP = np.arange(256, dtype=np.uint16).reshape(8, 32)
PNG = {"Accept": "image/png"}


def sent(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/studies", content=message(content), headers={"Content-Type": MULTIPART})
    assert answer.status_code == 200, answer.text


def ramp(**attributes: object) -> Dataset:
    """Values 0 to 255 in 12 bits."""
    like = image()
    study, series, instance = uids(like)
    given = {"BitsStored": 12, "HighBit": 11, **attributes}
    return data_set(RAMP, StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=instance, **given)


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(content)))


@pytest.fixture
def shown(http: httpx.Client) -> Dataset:
    dataset = ramp(WindowCenter=128, WindowWidth=256)
    sent(http, built(dataset))
    return dataset


def test_a_png_holds_the_window_of_the_file_exactly(client: DICOMwebClient, shown: Dataset) -> None:
    content = client.retrieve_instance_rendered(*uids(shown), media_types=("image/png",))
    # C.11.2.1.2.1 with centre 128 and width 256: value v becomes grey level v.
    assert np.array_equal(pixels(content), RAMP)


def test_the_requests_window_goes_over_the_files(http: httpx.Client, shown: Dataset) -> None:
    answer = http.get(f"{path(shown)}/rendered?window=64.5,129,linear", headers=PNG)
    # (x - (c - 0.5)) / (w - 1) + 0.5: 0 at 0, 255 at 128.
    expected = np.minimum(RAMP / 128 * 255, 255).astype(np.uint8)
    assert np.array_equal(pixels(answer.content), expected)
    exact = http.get(f"{path(shown)}/rendered?window=64,128,linear-exact", headers=PNG)
    assert np.array_equal(pixels(exact.content), np.minimum(RAMP / 128 * 255, 255).astype(np.uint8))
    assert http.get(f"{path(shown)}/rendered?window=64,128,sigmoid", headers=PNG).status_code == 200


def test_a_window_means_the_files_values_in_monochrome1_too(http: httpx.Client) -> None:
    dataset = ramp(PhotometricInterpretation="MONOCHROME1")
    sent(http, built(dataset))
    twin = ramp()
    sent(http, built(twin))
    query = "rendered?window=100,51,linear"
    (turned, plain) = (pixels(http.get(f"{path(one)}/{query}", headers=PNG).content) for one in (dataset, twin))
    assert np.abs(255 - plain.astype(int) - turned).max() <= 1  # levels are cut, not rounded
    assert plain.min() == 0
    assert plain.max() == 255


def test_a_jpeg_is_what_is_sent_unless_something_else_is_asked_for(http: httpx.Client, shown: Dataset) -> None:
    answer = http.get(f"{path(shown)}/rendered")
    assert answer.headers["content-type"] == "image/jpeg"
    assert np.abs(pixels(answer.content).astype(int) - RAMP).max() < 12
    assert http.get(f"{path(shown)}/rendered?accept=image/png").headers["content-type"] == "image/png"
    assert http.get(f"{path(shown)}/rendered", headers={"Accept": "image/gif"}).status_code == 406
    worse = http.get(f"{path(shown)}/rendered?quality=1")
    assert len(worse.content) < len(answer.content)


def test_a_viewport_cuts_mirrors_and_scales(http: httpx.Client, shown: Dataset) -> None:
    def seen(viewport: str) -> NDArray[np.uint8]:
        answer = http.get(f"{path(shown)}/rendered?viewport={viewport}", headers=PNG)
        assert answer.status_code == 200, answer.text
        return pixels(answer.content)

    assert np.array_equal(seen("32,8"), RAMP)
    assert seen("64,64").shape == (16, 64)
    assert np.array_equal(seen("8,4,2,1,8,4"), RAMP[1:5, 2:10])
    assert np.array_equal(seen("8,4,2,1,-8,4"), RAMP[1:5, 2:10][:, ::-1])
    assert np.array_equal(seen("8,4,2,1,8,-4"), RAMP[1:5, 2:10][::-1])
    assert np.array_equal(seen("30,8,2,"), RAMP[:, 2:])


@pytest.mark.parametrize(
    "query",
    [
        "window=1",
        "window=a,b",
        "window=1,0,linear",
        "window=1,nan",
        "window=1,2,cubic",
        "viewport=0,10",
        "viewport=99999,1",
        "viewport=10",
        "viewport=10,10,30,0,8,8",
        "viewport=10,10,-1,0",
        "quality=0",
        "quality=101",
        "quality=high",
    ],
)
def test_a_drawing_that_cannot_be_is_refused(http: httpx.Client, shown: Dataset, query: str) -> None:
    answer = http.get(f"{path(shown)}/rendered?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "web.request-invalid")


def test_what_is_not_drawn_is_said(http: httpx.Client, shown: Dataset) -> None:
    answer = http.get(f"{path(shown)}/rendered?annotation=patient")
    assert answer.status_code == 200
    assert "The annotation parameter is not supported." in answer.headers["warning"]


def test_frames_of_many_are_drawn_by_number(http: httpx.Client, client: DICOMwebClient) -> None:
    values = np.stack([np.full((4, 6), level, np.uint8) for level in (10, 20, 30)])
    like = image()
    study, series, instance = uids(like)
    dataset = data_set(values, StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=instance)
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    sent(http, built(dataset))
    assert http.get(f"{path(dataset)}/rendered").status_code == 406
    content = client.retrieve_instance_frames_rendered(*uids(dataset), [2], media_types=("image/png",))
    assert np.unique(pixels(content)) == [20]
    several = http.get(f"{path(dataset)}/frames/3,1/rendered", headers=PNG)
    assert several.headers["content-type"].startswith('multipart/related; type="image/png"')
    assert several.content.count(b"\x89PNG") == 2


def test_colour_stays_colour(http: httpx.Client) -> None:
    dataset = image("SC_rgb_rle.dcm")
    sent(http, part10(dataset))
    got = pixels(http.get(f"{path(dataset)}/rendered", headers=PNG).content)
    assert np.array_equal(got, dataset.pixel_array)


def test_a_damaged_picture_is_an_error_and_the_service_goes_on(http: httpx.Client) -> None:
    dataset = image("MR_small_jp2klossless.dcm")
    content = part10(dataset)
    middle = content.index(b"\xff\x4f\xff\x51") + 40
    sent(http, content[:middle] + bytes(200) + content[middle + 200 :])
    answer = http.get(f"{path(dataset)}/rendered")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"].startswith("dicom.")
    assert http.get(path(dataset)).status_code == 200
