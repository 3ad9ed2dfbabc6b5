"""The widgets of lessons 02 and 03 in JupyterLab: moved by mouse and by keyboard, in both themes."""

import base64

import pytest

pytest.importorskip("playwright.sync_api")
from test_browser import CHROMIUM, chromium, open_notebook  # noqa: E402, F401 the last two are fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")

STEPS = (
    "from fidle_utils.collective_steps import ring_all_reduce_steps\n"
    "from fidle_utils.widgets import step_through\n"
    "live = step_through(ring_all_reduce_steps(4, 4_000_000), seconds=0.3)\nlive"
)
ROOFLINE = (
    "from fidle_utils.measure.roofline import Roofline\n"
    "from fidle_utils.widgets import roofline_sliders\n"
    "machine = Roofline('a test', {'fp32': 1e11}, {'memory': 1e10})\n"
    "roofline_sliders(machine)"
)


def says(page, index, text):
    """Wait until the line under the controls says `text`, then until the figure is loaded; returns it all."""
    found = page.cell(index).locator("[role=status]", has_text=text)
    found.wait_for(timeout=20_000)
    page.page.wait_for_timeout(500)  # a value that the front end rounds comes back
    return found.inner_text()


def picture(page, index):
    return page.cell(index).locator("img").evaluate(
        """async image => {
            const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
            return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(''));
        }"""
    )  # fmt: skip


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_next_previous_play_and_the_keyboard_step_through_a_ring(open_notebook, theme):  # noqa: F811
    page = open_notebook([STEPS], theme)
    page.run(0)
    says(page, 0, "start: each rank")
    start = picture(page, 0)
    assert base64.b64decode(start).startswith(b"\x89PNG")
    forward = page.cell(0).locator("button[title='next step']")
    forward.click()
    assert "4 messages of 1 MB" in says(page, 0, "step 1 of 6: add")
    assert picture(page, 0) != start
    forward.focus()
    page.page.keyboard.press("Enter")
    says(page, 0, "step 2 of 6: add")
    page.cell(0).locator("button[title='previous step']").click()
    says(page, 0, "step 1 of 6: add")
    handle = page.cell(0).locator(".noUi-handle")
    handle.focus()
    page.page.keyboard.press("ArrowRight")
    says(page, 0, "step 2 of 6: add")
    page.page.keyboard.press("ArrowLeft")
    says(page, 0, "step 1 of 6: add")
    page.cell(0).locator(".widget-play button, .jupyter-widget-play button").first.click()
    assert "every rank holds the whole sum" in says(page, 0, "step 6 of 6: copy")
    page.page.evaluate("document.activeElement.blur()")


def test_a_slider_of_the_roofline_moves_its_figure(open_notebook):  # noqa: F811
    page = open_notebook([ROOFLINE])
    page.run(0)
    says(page, 0, "at most 100 GFLOP/s")
    before = picture(page, 0)
    size = page.cell(0).locator(".noUi-handle").nth(2)
    size.focus()
    for _ in range(5):
        page.page.keyboard.press("ArrowLeft")
    assert "memory-bound" in says(page, 0, "n = 32")
    assert picture(page, 0) != before
    page.cell(0).locator("select").first.select_option("A100-SXM4-80GB, published")
    says(page, 0, "at most 10.9 TFLOP/s")
    page.start(0)
    says(page, 0, "n = 1\u202f024")
    assert page.cell(0).locator("img").count() == 1
