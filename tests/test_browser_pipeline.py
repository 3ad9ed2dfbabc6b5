"""The widget of lesson 06 in JupyterLab: moved by mouse and by keyboard, in both themes."""

import pytest

pytest.importorskip("playwright.sync_api")
from test_browser import CHROMIUM, chromium, open_notebook  # noqa: E402, F401 the last two are fixtures
from test_browser_widgets import picture, says  # noqa: E402

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")

SLIDERS = "from fidle_utils.widgets import pipeline_sliders\npipeline_sliders()"


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_a_pipeline_is_moved_by_hand(open_notebook, theme):  # noqa: F811
    page = open_notebook([SLIDERS], theme)
    page.run(0)
    says(page, 0, "1F1B, 4 ranks, 8 micro-batches: time 33")
    before = picture(page, 0)
    micro_batches = page.cell(0).locator(".noUi-handle").nth(2)
    micro_batches.focus()
    for _ in range(4):
        page.page.keyboard.press("ArrowRight")
    assert "Bubble 25.0% of the ideal" in says(page, 0, "12 micro-batches")
    moved = picture(page, 0)
    assert moved != before
    page.cell(0).locator("select").first.select_option("ZB-V")
    says(page, 0, "ZB-V, 4 ranks, 12 micro-batches: time 37.5")
    assert picture(page, 0) != moved
    page.cell(0).get_by_text("messages overlap with work").click()
    says(page, 0, "ZB-V")
    page.start(0)
    says(page, 0, "1F1B, 4 ranks, 8 micro-batches: time 33")
    assert page.cell(0).locator("img").count() == 1
