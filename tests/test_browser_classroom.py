"""The instructor in JupyterLab: the page of the path, a large figure, `%recorded` below what failed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from matplotlib import rc_params_from_file
from nbformat.v4 import new_code_cell

from fidle_utils.plots.style import STYLE

pytest.importorskip("playwright.sync_api")
from test_browser import CHROMIUM, Lab, Page, chromium  # noqa: E402, F401 the last one is a fixture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")

ROOT = Path(__file__).parents[1]
FIGURE = (
    "from fidle_utils import plots\n"
    "ax = plots.plot_moments([0.1, 0.3, 0.2, 0.4], title='Mine')\nprint('dpi', ax.figure.dpi)"
)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of the course whose lesson 00 was just recorded, and its view; kernels import from the copy."""
    home = tmp_path_factory.mktemp("course")
    for folder in ("fidle_utils", "notebooks"):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    env = dict(os.environ, PYTHONPATH=str(home))
    for command in (["notebooks/recorded/record_live.py", "00"], ["-m", "fidle_utils.classroom"]):
        subprocess.run([sys.executable, *command], cwd=home, env=env, check=True, capture_output=True)
    path = home / "build/live/00_start_here.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(new_code_cell(FIGURE))  # an instructor's own
    nbformat.write(notebook, path)
    again = subprocess.run(
        [sys.executable, "-m", "fidle_utils.classroom"], cwd=home, env=env, check=True, text=True,
        capture_output=True,
    )  # fmt: skip
    assert "kept as you changed it: build/live/00_start_here.ipynb" in again.stdout
    return home


def run_below(page, index, source):
    """Make a cell below the one at `index`, by the keyboard, and run it; returns what it shows."""
    page.cell(index).locator(".jp-InputPrompt").click()
    page.page.keyboard.press("b")
    page.page.keyboard.press("Enter")
    page.page.keyboard.insert_text(source)
    page.page.keyboard.press("Shift+Enter")
    return page.done(index + 1)


def keep(page, name):
    if folder := os.environ.get("FIDLE_SCREENSHOTS"):
        page.page.wait_for_timeout(500)
        page.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_a_class_goes_on_when_a_demonstration_fails(chromium, course, tmp_path, monkeypatch, theme):  # noqa: F811
    monkeypatch.setenv("PYTHONPATH", str(course))
    monkeypatch.setenv("FIDLE_PRESENTATION", "1")  # as `make live` does
    lab = Lab(tmp_path / "home", f"JupyterLab {theme}")
    shutil.copytree(course / "build", tmp_path / "home/build", symlinks=True)
    tab = chromium.new_page(viewport={"width": 1200, "height": 1400}, device_scale_factor=2)
    try:
        page = Page(tab, lab, "../build/live/index.ipynb")
        assert "%recorded" in page.cell(0).inner_text()
        keep(page, f"path-{theme}")
        page.cell(0).get_by_role("link", name="00_start_here").click()
        tab.locator(".jp-NotebookPanel", has_text="load_ext").wait_for()

        page = Page(tab, lab, "../build/live/00_start_here.ipynb")
        page.run(page.index_of("%load_ext"))
        dots = page.run(figure := page.index_of("title='Mine'"))
        usual = rc_params_from_file(STYLE, use_default_template=False)["figure.dpi"]
        assert float(dots.split()[1]) > 1.2 * usual and page.cell(figure).locator("img").count() == 1
        keep(page, f"figure-{theme}")

        demonstration = page.index_of("dist.all_reduce(number)\nprint")
        page.type(demonstration, "%%ranks\nnumber = torch.ones(1)\ndist.all_reduce(nmber)")
        assert "NameError" in page.run(demonstration)
        shown = run_below(page, demonstration, "%recorded")
        assert shown.startswith("Recorded on ") and "not measured now. Your cell differs" in shown
        assert "10.0" in shown
        keep(page, f"failed-{theme}")

        hang = page.index_of("if rank != 0:\n    dist")
        page.start(hang)
        tab.wait_for_timeout(1500)
        tab.locator("[data-command='notebook:interrupt-kernel']").first.click()
        assert "stopped" in page.done(hang)
        shown = run_below(page, hang, "%recorded")
        assert "not measured now" in shown and "all_reduce" in shown and "4 s" in shown
        keep(page, f"stopped-{theme}")
    finally:
        tab.close()
        lab.close()
