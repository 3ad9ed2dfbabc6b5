"""The book: a small one, executed, then looked at in a browser; the real one without running a lesson."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_browser import CHROMIUM, FLAGS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book"))
import lessons  # noqa: E402
import pages  # noqa: E402

LONG = "a_line_that_is_wider_than_a_telephone " * 8
MADE = [
    new_markdown_cell(
        "# 00 · Made\n\nThe sum is $s = \\sum_{i=1}^n x_i$, and\n\n$$t = \\frac{\\alpha}{\\beta}$$"
    ),
    new_code_cell("%load_ext fidle_utils\nfrom fidle_utils.teach import check, predict\n%ranks 2"),
    new_code_cell(
        "%%ranks\ntotal = torch.tensor(1.0)  # on each\ndist.all_reduce(total)\nprint(rank, total.item())"
    ),
    new_code_cell("guess = predict('How many <ranks>?', unit='ranks')"),
    new_code_cell("def double(x):\n    ...", metadata={"tags": ["exercise"]}),
    new_code_cell("check(double, lambda f: f(2))", metadata={"tags": ["check"]}),
    new_code_cell("def double(x):\n    return 2 * x\n\ncheck(double(2), 4)", metadata={"tags": ["solution"]}),
    new_code_cell("import matplotlib.pyplot as plt\nplt.plot([1, 2]);"),
    new_code_cell("from fidle_utils.widgets import pipeline_sliders\npipeline_sliders()"),
    new_code_cell(f"print('{LONG}')"),
    new_code_cell("import pandas as pd\npd.DataFrame([range(10**6, 10**6 + 20)])"),
    new_code_cell("from fidle_utils import progress\nprogress.show()"),
    new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),
    new_code_cell("import os\nprint(chr(27) + '[31mred' + chr(27) + '[0m', os.listdir())"),
]


def make(folder, *arguments):
    """What `make book` runs, with its outputs below `folder`; returns the finished process."""
    python = [sys.executable, ROOT / "book" / "pages.py", folder / "work", *arguments]
    env = dict(os.environ, FIDLE_PROGRESS=str(folder / "progress.json"))
    done = subprocess.run(python, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", "-c", ROOT / "book"]
        done = subprocess.run(
            [*sphinx, folder / "work" / "source", folder / "site"], capture_output=True, text=True
        )
    return done


def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def loaded(page):
    """What a browser fetches by itself for a page."""
    for tag, key in (
        ("script", "src"),
        ("link", "href"),
        ("img", "src"),
        ("iframe", "src"),
        ("source", "src"),
    ):
        yield from (found[key] for found in page.find_all(tag, attrs={key: True}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A site of one made lesson, with the name of a real one so that the README links to it."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "lessons").mkdir()
    notebook = new_notebook(cells=[cell.copy() for cell in MADE])
    nbformat.write(notebook, folder / "lessons" / "00_start_here.ipynb")
    done = make(folder, "--lessons", folder / "lessons")
    assert done.returncode == 0, done.stdout + done.stderr
    assert nbformat.read(folder / "lessons" / "00_start_here.ipynb", 4) == notebook, "the lesson was touched"
    return folder


@pytest.fixture(scope="module")
def lesson(made):
    return soup(made / "site" / "notebooks" / "00_start_here.html")


def test_solutions_are_folded_and_stubs_are_not(lesson):
    (folded,) = lesson.find_all("details", class_="hide")
    assert not folded.has_attr("open") and "Solution" in folded.summary.get_text()
    assert "return 2 * x" in folded.get_text()
    stub = next(cell for cell in lesson.find_all("div", class_="cell_input") if "..." in cell.get_text())
    assert "def double" in stub.get_text() and not stub.find_parents("details")
    assert "to do" in lesson.get_text()


def test_figures_widgets_and_ranks_show_what_they_can(lesson, made):
    shown = [image["src"] for image in lesson.select(".cell_output img")]
    assert len(shown) == 2, "the figure, and the figure of the sliders"
    assert all((made / "site" / "notebooks" / source).resolve().stat().st_size > 5000 for source in shown)
    assert "▸ Your guess? How many <ranks>? (ranks)" in lesson.find("p", class_="widget").get_text()
    assert "widget-view" not in str(lesson) and "require.js" not in str(lesson)
    cell = next(c for c in lesson.find_all("div", class_="cell_input") if "%%ranks" in c.get_text())
    assert cell.find("span", class_="c1").get_text() == "# on each", "Python below %%ranks is highlighted"
    assert "rank 1 │ 1 2.0" in lesson.get_text()
    outputs = " ".join(output.get_text() for output in lesson.find_all("div", class_="cell_output"))
    assert "ZeroDivisionError" in outputs and "red" in outputs
    assert "\x1b" not in outputs and "[31m" not in outputs


def test_the_page_says_where_it_ran_and_gives_the_notebook(lesson, made):
    said = lesson.find("p", class_="lesson")
    assert re.match(
        r"Executed on \d+ cores, .+, torch [\d.]+, \w+, \d{4}-\d\d-\d\d, in \d+ s\.", said.get_text()
    )
    download = made / "site" / "notebooks" / said.a["href"]
    assert download.read_bytes() == (made / "lessons" / "00_start_here.ipynb").read_bytes()
    assert "CC BY 4.0" in lesson.footer.get_text() or "CC BY 4.0" in lesson.get_text()


def test_progress_leads_to_pages_and_is_not_kept(lesson, made):
    (table,) = (table for table in lesson.find_all("table") if "solved" in table.text)
    assert table.a["href"] == "00_start_here.html"
    assert not (made / "progress.json").exists()


def test_nothing_is_loaded_from_elsewhere(made):
    found = list((made / "site").rglob("*.html"))
    assert len(found) > 4
    for path in found:
        assert not [url for url in loaded(soup(path)) if re.match(r"(https?:)?//", url)], path
    for path in (made / "site").rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text()), path


def test_a_lesson_that_did_not_change_keeps_its_outputs(made, tmp_path):
    path = made / "lessons" / "00_start_here.ipynb"
    kept = made / "work" / "lessons"
    before = (kept / path.name).stat().st_mtime_ns
    notebook, said = lessons.outputs_of(path, kept)
    assert said.startswith("Executed on") and (kept / path.name).stat().st_mtime_ns == before
    changed = tmp_path / path.name
    changed.write_text(path.read_text().replace("return 2 * x", "return x + x"))
    notebook, said = lessons.outputs_of(changed, kept, execute=False)
    assert said.startswith("Not executed") and not any(cell.get("outputs") for cell in notebook.cells)


def test_a_lesson_whose_package_is_missing_says_so(made, tmp_path, monkeypatch):
    monkeypatch.setitem(lessons.NEEDS, "notebooks/00_start_here.ipynb", "no_such_package")
    _, said = lessons.outputs_of(made / "lessons" / "00_start_here.ipynb", tmp_path)
    assert said == "Not executed: no_such_package is not installed on the machine that made this book."


def test_a_cell_that_raises_ends_the_build_with_its_name(tmp_path):
    notebook = new_notebook(cells=[new_markdown_cell("# One"), new_code_cell("a = {}\na['absent']")])
    nbformat.write(notebook, tmp_path / "04_split_the_data.ipynb")
    done = make(tmp_path, "--lessons", tmp_path)
    assert done.returncode == 1
    assert (
        "04_split_the_data, cell 1 (the first is 0, Markdown counts), `a = {}`: KeyError: 'absent'"
        in done.stderr
    )
    assert not list((tmp_path / "work" / "lessons").glob("*")), "an unfinished lesson is not kept"


def test_a_formula_that_cannot_be_written_ends_the_build(tmp_path):
    page = new_notebook(cells=[new_markdown_cell("# One\n\n$\\nosuchcommand{a}$")])
    nbformat.write(page, tmp_path / "00_start_here.ipynb")
    done = make(tmp_path, "--lessons", tmp_path, "--no-execute")
    assert done.returncode and "00_start_here.ipynb" in done.stderr
    assert "docutils has no MathML for '\\\\nosuchcommand{a}'" in done.stderr


def test_each_lesson_leads_to_the_slides_of_its_part(tmp_path):
    for name in ("00_opening", "01_jean_zay_and_the_gpu", "03_data_parallelism"):
        (tmp_path / "slides").mkdir(exist_ok=True)
        (tmp_path / "slides" / f"{name}.html").write_text("slides")
    pages.lay_out(tmp_path, slides=tmp_path / "slides", execute=False)
    for lesson, deck in (("02_compute_on_a_gpu", "01_jean_zay_and_the_gpu"), ("00_start_here", "00_opening")):
        second = nbformat.read(tmp_path / "source" / "notebooks" / f"{lesson}.ipynb", 4).cells[1].source
        assert f'href="../slides/{deck}.html"' in second
        assert (tmp_path / "extra" / "slides" / f"{deck}.html").exists()
    front = (tmp_path / "source" / "index.md").read_text()
    assert '<a href="slides/00_opening.html">slides</a>' in front, "the README links to the deck's source"
    assert "slides/05_model_parallelism" not in front, "a deck that was not made"
    assert not list((tmp_path / "source").glob("slides/*"))


def test_the_real_book_without_running_it(tmp_path):
    """Sphinx warns of nothing, formulas become MathML, links inside the site lead somewhere."""
    done = make(tmp_path, "--no-execute")
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    names = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    front = soup(site / "index.html")
    linked = {
        Path(a["href"]).stem for a in front.find("article").find_all("a", href=re.compile("^notebooks/"))
    }
    assert set(names) <= linked
    order = [
        Path(a["href"]).stem for a in front.select(".sidebar-tree a") if a["href"].startswith("notebooks/")
    ]
    assert order[: len(names)] == names
    for path in site.rglob("*.html"):
        page = soup(path)
        for a in page.find_all("a", href=re.compile(r"^(?!https?:|mailto:|#)")):
            assert (path.parent / a["href"].partition("#")[0]).exists(), f"{path.name} links to {a['href']}"
    for before, after in zip(names, names[1:], strict=False):
        assert (
            soup(site / "notebooks" / f"{before}.html").find("a", class_="next-page")["href"]
            == f"{after}.html"
        )


@pytest.fixture(scope="module")
def served(made):
    """The address of the site on a server of its own."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=made / "site")
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")
@pytest.mark.parametrize("how", ["file", "served"])
def test_in_a_browser_on_a_desk_and_on_a_telephone(made, served, how):
    sync_api = pytest.importorskip("playwright.sync_api")
    root = (made / "site").as_uri() if how == "file" else served
    wrong = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((root, "data:")) else None)
        page.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}"))
        page.on("response", lambda r: wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        for width, height in ((390, 844), (1280, 800)):
            page.set_viewport_size({"width": width, "height": height})
            for name in ("index", "notebooks/00_start_here", "CONTRIBUTING"):
                page.goto(f"{root}/{name}.html")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} at {width}"
            page.goto(f"{root}/notebooks/00_start_here.html")
            fraction = page.locator("math mfrac").bounding_box()
            assert fraction["height"] > 1.4 * page.locator("math mi").first.bounding_box()["height"]
            for image in page.locator(".cell_output img").all():
                assert image.bounding_box()["width"] <= width and image.evaluate("i => i.naturalWidth") > 100
            solution = page.get_by_text("return 2 * x")
            assert not solution.is_visible()
            page.locator("details summary").click()
            assert solution.is_visible()
        page.goto(f"{root}/search.html?q=all_reduce")
        page.locator("#search-results li").first.wait_for()
        assert "00 · Made" in page.locator("#search-results").inner_text()
        browser.close()
    assert not wrong
