"""The whole road in a real browser, against a real server: from a dropped file to the audited row, and back."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from dicom_io.types import Frame, InstanceRef, Window
from dicom_io.voi import eight_bits
from tests.web.images import chest_film, series_zip
from tests.web.server import Server

pytestmark = [pytest.mark.browser, pytest.mark.services]

DICOM_FILES = Path(__file__).parents[3] / "shared/data/dicom"
REAL_FILM = DICOM_FILES / "ivmartel__dwv/21635f_gdcm-CR-MONO1-10-chest.dcm"
SLICES = 20
expect.set_options(timeout=30_000)


class Visit:
    """A page that remembers what the browser asked for and complained of."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, query: str = "") -> None:
        self.page.goto(self.server.url + query)
        expect(self.page.locator(".studies")).to_be_visible()
        expect(self.page.locator(".samples button")).to_have_count(3)

    def upload(self, name: str, body: bytes) -> None:
        self.page.set_input_files("#choose-files", {"name": name, "mimeType": "application/dicom", "buffer": body})

    def done(self, words: str) -> None:
        expect(self.page.locator(".activity-line")).to_contain_text(words)
        expect(self.page.get_by_role("button", name="Stop")).to_be_disabled()

    def findings(self, words: str) -> None:
        expect(self.page.locator(".findings")).to_contain_text(words)

    def corner(self, place: str) -> str:
        return self.page.locator(f".corner.{place}").inner_text()

    @property
    def counter(self) -> Any:
        return expect(self.page.locator(".counter"))


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    """A fresh browser profile on the page; afterwards, nothing was asked of anybody else and nothing went wrong."""
    context = browser.new_context(viewport={"width": 1366, "height": 768}, accept_downloads=False)
    visit = Visit(context.new_page(), server)
    visit.open()
    yield visit
    kept = visit.page.evaluate("() => Object.entries({...localStorage, ...sessionStorage}).join()")
    context.close()
    foreign = [url for url in visit.asked if not url.startswith((server.url, "data:", "blob:"))]
    assert foreign == []
    assert visit.complaints == []
    assert kept == ""  # no patient, no history


def test_from_a_film_to_the_audited_row_and_back_after_a_restart(visit: Visit) -> None:
    page = visit.page
    expect(page.get_by_text("Research use only, not for diagnostic use")).to_be_visible()
    visit.upload("film.dcm", REAL_FILM.read_bytes() if REAL_FILM.is_file() else chest_film())
    visit.findings("this patient's age is not known")

    page.get_by_label("Patient's age").fill("43")
    page.get_by_role("button", name="Diagnose with this age").click()
    visit.done("1 image diagnosed")
    visit.findings("The age of 43 years was stated by the user")
    expect(page.locator(".label .threshold")).to_have_count(1)
    visit.findings("90 % prediction set")

    page.get_by_role("button", name="Heat map for No pneumonia").click()
    expect(page.locator(".viewer")).to_have_class(re.compile("with-heat"))
    page.get_by_label("Opacity of the heat map").fill("80")
    expect(page.locator("output[for=opacity]")).to_have_text("80 %")
    address = page.url
    assert "study=" in address

    visit.upload("series.zip", series_zip(SLICES))
    visit.done(f"{SLICES} files stored, {SLICES} images diagnosed")
    visit.counter.to_have_text(f"Image 1 of {SLICES}")
    visit.findings("One of the two is wrong, so nothing is answered")
    page.locator(".viewport canvas").focus()
    for key, place in (("ArrowDown", 2), ("End", SLICES), ("ArrowUp", SLICES - 1), ("Home", 1)):
        page.keyboard.press(key)
        visit.counter.to_have_text(f"Image {place} of {SLICES}")
    page.mouse.move(700, 400)
    page.mouse.wheel(0, 120)
    visit.counter.to_have_text(f"Image 2 of {SLICES}")
    listed = page.locator(".study-list .study").count()

    assert visit.server.stop() == 0
    visit.server.start()
    visit.complaints.clear()  # what was open while the server was away
    page.goto(address)
    visit.findings("The age of 43 years was stated by the user")
    expect(page.locator(".study-list .study")).to_have_count(listed)
    expect(page.locator('.study[aria-current="true"] .mark')).to_have_text(re.compile("Finding|Below threshold"))

    page.get_by_role("tab", name="Audit").click()
    expect(page.locator("#events tbody tr").first).to_contain_text("view")
    expect(page.locator("#events")).to_contain_text("prediction")
    page.get_by_role("button", name="Verify the trail").click()
    expect(page.locator("#verdict")).to_contain_text("The trail holds")
    expect(page.get_by_text("Research use only, not for diagnostic use")).to_be_visible()


def test_a_heat_map_is_checked_by_covering_the_image_and_the_outcome_is_said(visit: Visit) -> None:
    page = visit.page
    visit.upload("film.dcm", chest_film(age="051Y"))
    visit.done("1 image diagnosed")
    expect(page.get_by_role("button", name="Check by occlusion")).to_have_count(0)
    page.get_by_role("button", name="Heat map for Pneumonia").click()
    page.get_by_role("button", name="Check by occlusion").click()
    # The tiny model's grid is no larger than the cover, so that all is covered at once and no place stands out.
    expect(page.locator(".check p")).to_contain_text("does not bear this map out")
    expect(page.get_by_role("button", name="Check by occlusion")).to_be_enabled()


def test_an_answer_is_shown_though_the_study_it_belongs_to_arrives_after_it(visit: Visit) -> None:
    page = visit.page
    page.evaluate(
        """() => {
            const plain = window.fetch;
            window.fetch = async (...asked) => {
                const answer = await plain(...asked);
                if (!window.late && /api\\/studies\\/[^/]+$/.test(asked[0]))
                    await new Promise((arrive) => (window.late = arrive));
                return answer;
            };
        }"""
    )
    visit.upload("film.dcm", chest_film(age="051Y"))
    visit.done("1 image diagnosed")
    visit.findings("90 % prediction set")
    page.evaluate("() => { window.late(); return new Promise((later) => setTimeout(later, 500)); }")
    visit.findings("90 % prediction set")


def test_stopping_between_two_files_says_that_the_first_was_not_diagnosed(visit: Visit) -> None:
    page = visit.page
    page.route("**/api/files?name=never.dcm", lambda _: None)
    films = [
        FilePayload(name=name, mimeType="application/dicom", buffer=chest_film(age="051Y"))
        for name in ("film.dcm", "never.dcm")
    ]
    page.set_input_files("#choose-files", films)
    visit.findings("Diagnosing. The answer appears here.")
    page.get_by_role("button", name="Stop").click()
    visit.findings("These images have not been diagnosed.")


def test_the_sample_is_answered_or_says_why_not(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Abdominal MR").click()
    visit.findings("The file says that this is an image of modality MR (MRI) of the body part ABDOMEN")
    expect(visit.page.locator(".withheld h3")).to_have_text("No answer")
    expect(visit.page.locator(".corner.bottom-right")).to_contain_text("484 × 300")


def test_everything_is_done_with_the_keyboard_alone(visit: Visit) -> None:
    page, keys = visit.page, visit.page.keyboard
    tab_to(page, "Head CT")
    keys.press("Enter")
    visit.done("1 image diagnosed")
    expect(page.locator(".corner.bottom-left")).to_contain_text("W ")
    tab_to(page, "Image viewport, image 1 of 1")
    keys.press("3")
    assert "C 90  W 150" in visit.corner("bottom-left")
    before = visit.corner("bottom-left")
    keys.press("+")
    assert visit.corner("bottom-left") != before
    keys.press("i")
    expect(page.get_by_role("button", name="Invert")).to_have_attribute("aria-pressed", "true")
    keys.press("z")
    expect(page.get_by_role("button", name="Zoom")).to_have_attribute("aria-pressed", "true")
    keys.press(" ")
    expect(page.get_by_role("button", name="Invert")).to_have_attribute("aria-pressed", "false")
    tab_to(page, "Window centre")
    keys.press("ArrowRight")
    expect(page.locator("#preset")).to_have_value("own")
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus can be seen


def test_dragging_changes_the_window_and_the_presets_bring_it_back(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Head CT").click()
    expect(page.locator(".corner.bottom-left")).to_contain_text("W ")
    first = visit.corner("bottom-left")
    page.mouse.move(600, 300)
    page.mouse.down()
    page.mouse.move(660, 330, steps=4)
    page.mouse.up()
    assert visit.corner("bottom-left") != first
    page.locator("#preset").select_option("Bone (4)")
    assert "C 480  W 2500" in visit.corner("bottom-left")


def test_a_patients_name_is_shown_and_never_run(visit: Visit) -> None:
    visit.upload("film.dcm", chest_film(name="<script>alert(1)</script>^Eve", age="044Y"))
    visit.done("1 image diagnosed")
    expect(visit.page.locator(".corner.top-left div").first).to_have_text("<script>alert(1)</script>, Eve")
    expect(visit.page.locator("#reader script")).to_have_count(0)


def test_a_file_that_is_no_image_says_so_and_what_to_do(visit: Visit) -> None:
    visit.upload("letter.pdf", b"%PDF-1.7 a letter")
    visit.done("1 file refused")
    expect(visit.page.locator(".activity-list .refused")).to_contain_text("This is not a DICOM file. Export the images")


def test_nothing_on_the_page_is_cut_or_moves_it(visit: Visit) -> None:
    for width, height in ((1366, 768), (1920, 1080)):
        visit.page.set_viewport_size({"width": width, "height": height})
        overflowing = visit.page.evaluate(
            """() => [...document.querySelectorAll("html, #reader button, #reader label, #masthead *")]
                .filter((one) => one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline")
                .map((one) => one.outerHTML.slice(0, 120))"""
        )
        assert overflowing == []


WINDOWS = [
    Window(40, 400),
    Window(-600, 1500),
    Window(10, 1),
    Window(10.5, 3, "LINEAR_EXACT"),
    Window(5, 20, "SIGMOID"),
]


def test_the_browser_shows_the_same_grey_levels_as_the_server(visit: Visit) -> None:
    values = [float(value) for value in range(-1024, 1024, 7)] + [9.5, 10.0, 10.5, 39.5]
    for window in WINDOWS:
        setting = {"centre": window.centre, "width": window.width, "function": window.function}
        shown = visit.page.evaluate(
            """async ([values, setting]) => {
                const { table } = await import("/hilum/window.js");
                const frame = (value) => ({ highest: 0, slope: 1, intercept: value });
                return values.map((value) => table(frame(value), setting, false)[0] & 255);
            }""",
            [values, setting],
        )
        pixels = np.array([values], np.float32)
        frame = Frame(InstanceRef("1", "2", "3", "4"), 1, pixels, None, (window,), (), "none")
        assert shown == eight_bits(frame)[0].tolist()


def test_a_probability_beside_a_threshold_near_certainty_can_be_told_from_it(visit: Visit) -> None:
    shown = visit.page.evaluate(
        """async (values) => {
            const { percent } = await import("/hilum/elements.js");
            return values.map(percent);
        }""",
        [0, 0.0004, 0.004, 0.125, 0.97, 0.9946, 0.9962, 0.99951, 1],
    )
    assert [text.replace("\u00a0", " ") for text in shown] == [
        "0 %",
        "< 0.1 %",
        "0.4 %",
        "13 %",
        "97 %",
        "99.5 %",
        "99.6 %",
        "> 99.9 %",
        "100 %",
    ]


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the control of this accessible name has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "() => document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || ''"
        )
        if focused.strip() == name:
            return
    pytest.fail(f"Tab never reaches {name!r}")
