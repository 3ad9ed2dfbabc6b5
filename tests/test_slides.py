"""The slides: their minutes, the cells and sources that they name, their figures, and every one rendered."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("agg")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "slides"))
import decks  # noqa: E402
import draw  # noqa: E402
from figure_helpers import said_by  # noqa: E402
from test_browser import CHROMIUM, FLAGS  # noqa: E402

import build  # noqa: E402
from fidle_utils.classroom import live_path  # noqa: E402

DECKS = decks.all_decks()
SLIDES = [pytest.param(slide, id=f"{deck.name}-{slide.number}") for deck in DECKS for slide in deck.slides]
# The deck of a chapter is numbered by its first lesson; its minutes are those of its lessons.
LESSONS = {
    "00_opening": ["00"],
    "01_jean_zay_and_the_gpu": ["01", "02"],
    "03_data_parallelism": ["03", "04"],
    "05_model_parallelism": ["05"],
    "06_hybrid_and_pipelines": ["06", "07"],
    "08_deepspeed_and_zero": ["08", "09"],
    "10_good_practice": ["10"],
    "11_closing": ["11"],
}
CLASSES = {"title", "question"}
SMALLEST_PIXELS = 15  # of 1280: the footer; 12 on a projector of 1024
SMALLEST_BODY_PIXELS = 18


def minutes_of(numbers):
    return sum(section.minutes for section in live_path() if section.lesson[:2] in numbers)


# ------------------------------------------------------------------------------------------- what they say


def test_the_decks_are_the_parts_of_the_sequence():
    assert [deck.name for deck in DECKS] == list(LESSONS)
    assert 60 <= sum(len(deck.slides) for deck in DECKS) <= 80
    assert sum(deck.minutes for deck in DECKS) == 120 + 5  # the closing quiz comes after the two hours


@pytest.mark.parametrize("deck", DECKS, ids=lambda deck: deck.name)
def test_a_deck_takes_the_minutes_of_its_lessons(deck):
    assert deck.minutes == minutes_of(LESSONS[deck.name])
    for line in ("marp: true", "theme: fidle", "paginate: true", "math: mathjax"):
        assert line in deck.front.splitlines(), line
    assert deck.slides[0].classes == ("title",)


@pytest.mark.parametrize("slide", SLIDES)
def test_a_slide_has_one_message_a_note_and_a_source(slide):
    assert len(re.findall(r"^# ", slide.text, re.MULTILINE)) == 1
    assert slide.minutes, "the note does not begin with its minutes, such as `1.5 min.`"
    assert len(slide.note.split()) >= 20, "a note tells the speaker what to say"
    assert "Ask:" not in slide.note or "Answer:" in slide.note
    assert set(slide.classes) <= CLASSES
    assert slide.footer or "title" in slide.classes or "question" in slide.classes, "no cell and no source"
    assert not re.search(r"<(?!!--)\w", re.sub(r"`[^`]*`|\$[^$]*\$", "", slide.text)), "raw HTML"
    assert not any("://" in image for image in slide.images)
    words = re.sub(r"!\[.*?\]\(.*?\)|```.*?```|\|", " ", slide.text, flags=re.DOTALL).split()
    assert len(words) <= 90, f"{len(words)} words are too many for a slide"


def test_the_cells_behind_the_slides_are_live():
    live = {(s.lesson[:2], s.heading.removeprefix(f"{s.lesson[:2]} · ")) for s in live_path()}
    for deck in DECKS:
        for slide in deck.slides:
            for cell in slide.cells:
                assert cell in live, f"{deck.name}, slide {slide.number}: no live section {cell}"
        named = {number for slide in deck.slides for number, _ in slide.cells}
        assert named == set(LESSONS[deck.name]), f"{deck.name} names cells of lessons {sorted(named)}"


# ------------------------------------------------------------------------------------------------ figures


def test_every_picture_is_drawn_and_every_drawing_shown():
    shown = {image for deck in DECKS for slide in deck.slides for image in slide.images}
    assert shown == {f"figures/{name}.svg" for name in draw.drawings()}


@pytest.mark.parametrize("name", draw.drawings())
def test_a_figure_is_whole_and_the_same_each_time(name, tmp_path):
    said_by(draw.drawings()[name], large=True)
    first = draw.save(name, draw.drawings()[name], tmp_path).read_bytes()
    assert draw.save(name, draw.drawings()[name], tmp_path).read_bytes() == first


def test_a_figure_that_nobody_draws_is_named(capsys):
    assert draw.main(["no_such_figure"]) == 1
    assert "No such figure: no_such_figure" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The decks as HTML, as `make slides` writes them."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt install chromium)")
    if shutil.which("npm") is None:
        pytest.skip("no Node.js on this machine (apt install nodejs npm)")
    subprocess.run(["make", "slides/node_modules/.ready"], cwd=ROOT, check=True, capture_output=True)
    folder = tmp_path_factory.mktemp("slides")
    assert draw.main([]) == 0
    build.write_html(folder)
    build.write_index(folder)
    return folder


MEASURE = """([smallestBody, smallest]) => [...document.querySelectorAll('section[id]')].map(section => {
    const frame = section.getBoundingClientRect(), scale = frame.width / 1280, found = [];
    const inside = (box, what) => {
        if (box.width && (box.left < frame.left - 2 || box.right > frame.right + 2 ||
            box.top < frame.top - 2 || box.bottom > frame.bottom + 2)) found.push(what + ' sticks out');
    };
    const footer = section.querySelector('footer');
    let lowest = 0;
    for (const node of section.querySelectorAll('h1, p, li, td, th, pre, blockquote, img, mjx-container')) {
        const box = node.getBoundingClientRect();
        inside(box, node.tagName + ' ' + node.textContent.slice(0, 30));
        lowest = Math.max(lowest, box.bottom);
        const size = parseFloat(getComputedStyle(node).fontSize);
        if (node.textContent.trim() && size < smallestBody)
            found.push(`${size} px: ` + node.textContent.slice(0, 30));
    }
    if (footer) {
        const box = footer.getBoundingClientRect();
        inside(box, 'footer');
        if (lowest > box.top + 1) found.push('runs into its footer');
        if (parseFloat(getComputedStyle(footer).fontSize) < smallest) found.push('its footer is too small');
        if (box.height / scale > 44) found.push('its footer has more than two lines');
    }
    for (const image of section.querySelectorAll('img'))
        if (!image.complete || !image.naturalWidth) found.push('no image ' + image.src);
    return [section.id, found];
})"""


@pytest.mark.parametrize("deck", DECKS, ids=lambda deck: deck.name)
@pytest.mark.parametrize("size", [(1280, 720), (1024, 768)], ids=str)
def test_nothing_overflows_and_nothing_is_fetched(pages, deck, size):
    from playwright import sync_api

    asked = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.on("request", lambda request: asked.append(request.url))
        page.goto((pages / f"{deck.name}.html").as_uri())
        page.wait_for_load_state("load")
        measured = page.evaluate(MEASURE, [SMALLEST_BODY_PIXELS, SMALLEST_PIXELS])
        browser.close()
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert len(measured) == len(deck.slides)
    assert not {name: found for name, found in measured if found}


def test_the_index_lists_every_deck(pages):
    index = (pages / "index.html").read_text()
    assert all(f"{deck.name}.html" in index and f"{deck.name}.pdf" in index for deck in DECKS)
    assert f"<th>{sum(deck.minutes for deck in DECKS):g}</th>" in index
