"""Lesson 00 in JupyterLab by the mouse alone, and progress that survives a reload and a new kernel."""

import re

import pytest

pytest.importorskip("playwright.sync_api")
from test_browser import CHROMIUM, chromium, open_notebook  # noqa: E402, F401 the last two are fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")

RIGHT = (
    "%%ranks\ndef hello_in_order(speak):\n    for turn in range(world_size):\n        if rank == turn:\n"
    "            speak()\n        dist.barrier()"
)
MINE, ALL = 'progress.show("00")', "progress.show()"


def click(page, command):
    """Click a button of the notebook's toolbar."""
    page.page.locator(f".jp-NotebookPanel-toolbar [data-command='{command}']").first.click()


def choose(page, menu, entry):
    page.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
    page.page.locator(".lm-Menu-item", has_text=entry).first.click()


def test_lesson_00_by_the_mouse_alone(open_notebook):  # noqa: F811
    """The run button cell by cell, Run All Cells, the stop button on the hang that the lesson proposes."""
    page = open_notebook("00_start_here.ipynb")
    hello = page.index_of("hello from rank {rank} of")
    page.cell(0).click()
    for _ in range(hello + 1):
        click(page, "notebook:run-cell-and-select-next")
    assert page.done(hello).count("hello from rank") == 4

    choose(page, "Run", "Run All Cells")
    last = page.index_of(ALL)
    said = page.done(last, seconds=120)
    assert "0 of 1" in said and "1 shown" in said and "exercises solved" in said
    assert "solution shown" in page.done(page.index_of(MINE))
    assert "ZeroDivisionError" in page.done(page.index_of("share = 12 //"))

    hang = page.index_of("%%ranks --timeout 4")
    page.type(hang, "%%ranks\nif rank != 0:\n    dist.all_reduce(number)")
    page.cell(hang).locator(".jp-InputPrompt").click()
    click(page, "notebook:run-cell-and-select-next")
    page.cell(hang).get_by_text("This looks like a hang").wait_for(timeout=20_000)
    click(page, "notebook:interrupt-kernel")
    assert "stopped: ranks 1–3 wait in all_reduce" in page.done(hang)
    page.cell(hang).scroll_into_view_if_needed()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_a_solved_exercise_is_still_solved_after_a_reload_and_a_new_kernel(open_notebook, theme):  # noqa: F811
    page = open_notebook("00_start_here.ipynb", theme)
    stub = page.index_of("def hello_in_order(speak):\n    ...")
    check = page.index_of('check("hello_in_order"')
    for words in ("%load_ext", "%ranks 4"):
        page.run(page.index_of(words))
    page.type(stub, RIGHT)
    page.run(stub)
    assert "hello_in_order: right" in page.run(check)
    mine = page.index_of(MINE)
    assert re.search(r"✓ hello_in_order\s+solved", page.run(mine))
    assert page.cell(mine).get_by_role("link", name="01 · Meet Jean Zay").count() == 1

    page.page.keyboard.press("ControlOrMeta+s")
    page.page.reload()
    page.ready()
    choose(page, "Kernel", "Restart Kernel…")
    page.page.locator(".jp-Dialog").locator(".jp-mod-accept").click()
    page.page.locator(".jp-Dialog").wait_for(state="detached")
    page.ready()
    assert "solved" in page.run(page.index_of(MINE))
    everything = page.index_of(ALL)
    assert "1 of 1" in page.run(everything)
    page.cell(everything).scroll_into_view_if_needed()
    link = page.cell(everything).get_by_role("link", name="01 · Meet Jean Zay")
    link.click()
    page.page.locator(".lm-TabBar-tab.lm-mod-current", has_text="01_meet_jean_zay").wait_for()
    page.page.locator(".lm-TabBar-tab", has_text="00_start_here").click()
    page.cell(page.index_of(MINE)).locator(".jp-InputPrompt").click()
    page.page.wait_for_timeout(500)
