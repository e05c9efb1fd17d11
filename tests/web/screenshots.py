"""Take the pictures of docs/screenshots with the shipped model: `python -m tests.web.screenshots [FILM] [MODEL]`.

FILM is a chest radiograph; without one, the findings are those of the packaged head CT.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.services import require
from tests.web.conftest import CHROMIUM_ARGUMENTS
from tests.web.server import ROOT, Server

PICTURES = ROOT / "docs/screenshots"
SIZE = {"width": 1366, "height": 768}


def main(film: Path | None, model_folder: Path | None) -> None:
    """Write findings.png, abstention.png and audit.png."""
    expect.set_options(timeout=60_000)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder), model_folder=model_folder) as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=require("chromium"), args=CHROMIUM_ARGUMENTS) as browser,
    ):
        page = browser.new_page(viewport={"width": SIZE["width"], "height": SIZE["height"]})
        page.goto(server.url)
        _sample(page, "Abdominal MR")
        _keep(page, "abstention")
        if film is None:
            _sample(page, "Head CT")
        else:
            page.set_input_files("#choose-files", film)
            expect(page.locator(".activity-list")).to_contain_text(film.name)
            _done(page)
            if page.locator("#stated-age").count():
                page.fill("#stated-age", "43")
                page.get_by_role("button", name="Diagnose with this age").click()
                expect(page.locator("#stated-age")).to_have_count(0)
                _done(page)
        if page.get_by_role("button", name="Heat map for").count():
            page.get_by_role("button", name="Heat map for").first.click()
            expect(page.locator(".viewer.with-heat")).to_be_visible()
        _keep(page, "findings")
        page.get_by_role("tab", name="Audit").click()
        expect(page.locator("#events tbody tr").first).to_be_visible()
        page.get_by_role("button", name="Verify the trail").click()
        expect(page.locator("#verdict")).to_contain_text("The trail holds")
        _keep(page, "audit")


def _sample(page: Page, title: str) -> None:
    page.get_by_role("button", name=title).click()
    expect(page.locator(".activity-list")).to_contain_text(title)
    _done(page)


def _done(page: Page) -> None:
    expect(page.locator(".activity-line")).to_contain_text("diagnosed")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def _keep(page: Page, name: str) -> None:
    page.mouse.move(5, 760)
    page.wait_for_timeout(800)  # until the last picture is drawn
    PICTURES.mkdir(parents=True, exist_ok=True)
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    taken.quantize(256).save(PICTURES / f"{name}.png", optimize=True)  # a third of the size


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(given[0] if given else None, given[1] if len(given) > 1 else None)
