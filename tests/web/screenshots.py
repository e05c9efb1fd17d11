"""Take the pictures of docs/screenshots with the shipped model: `python -m tests.web.screenshots`.

They show a phantom and a file of the pydicom package: no other patient's image goes into a picture that is published.
"""

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.services import require
from tests.web.conftest import CHROMIUM_ARGUMENTS
from tests.web.images import brain_phantom
from tests.web.server import ROOT, Server

PICTURES = ROOT / "docs/screenshots"
SIZE = {"width": 1366, "height": 768}


def main() -> None:
    """Write abstention.png, phantom.png and audit.png."""
    expect.set_options(timeout=60_000)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder), model_folder=None) as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=require("chromium"), args=CHROMIUM_ARGUMENTS) as browser,
    ):
        page = browser.new_page(viewport={"width": SIZE["width"], "height": SIZE["height"]})
        page.goto(server.url)
        _sample(page, "Abdominal MR")
        _keep(page, "abstention")
        page.set_input_files(
            "#choose-files", {"name": "phantom.dcm", "mimeType": "application/dicom", "buffer": brain_phantom()}
        )
        expect(page.locator(".activity-list")).to_contain_text("phantom.dcm")
        _done(page)
        _keep(page, "phantom")
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
    expect(page.locator(".findings")).to_contain_text("No answer")


def _keep(page: Page, name: str) -> None:
    page.mouse.move(5, 760)
    page.wait_for_timeout(800)  # until the last picture is drawn
    PICTURES.mkdir(parents=True, exist_ok=True)
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    taken.quantize(256).save(PICTURES / f"{name}.png", optimize=True)  # a third of the size


if __name__ == "__main__":
    main()
