"""Lay out the sources of the book: `python book/pages.py FOLDER [--no-execute] [--lessons FOLDER]`.

FOLDER/source takes the pages that Sphinx reads, laid out like this project; FOLDER/extra what the site
takes as it is; FOLDER/lessons keeps the lessons with their outputs.
"""

import argparse
import html
import re
import shutil
from pathlib import Path

import nbformat
from lessons import ROOT, outputs_of
from nbformat.v4 import new_markdown_cell

LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:)([^)#]+)(#[^)]*)?\)")
NOTEBOOK = re.compile(r"(href=.[\w/]+)\.ipynb(['\"])")
WIDGET = "application/vnd.jupyter.widget-view+json"
CONTENTS = """

```{{toctree}}
:hidden:
:caption: {caption}

{pages}
```
"""


def lay_out(folder, lessons=ROOT / "notebooks", slides=ROOT / "build" / "slides", execute=True):
    """Write source/ and extra/ below `folder` for the notebooks in `lessons`, in the order of their names.

    `slides`: where `make slides` put the decks, if it did.
    """
    source, extra = folder / "source", folder / "extra"
    for old in (source, extra):
        shutil.rmtree(old, ignore_errors=True)
    decks = sorted(slides.glob("[0-9]*.html"))
    if decks:
        shutil.copytree(slides, extra / "slides")
    paths = sorted(lessons.glob("*.ipynb"))
    for path in paths:
        notebook, said = outputs_of(path, folder / "lessons", execute)
        deck = next((deck.name for deck in reversed(decks) if deck.name[:2] <= path.name[:2]), None)
        _write(_page(notebook, path, said, deck), source / "notebooks" / path.name)
        (extra / "notebooks").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, extra / "notebooks")
    about = [page for page in _copy(ROOT / "README.md", source, "index.md") if page != "index"]
    with (source / "index.md").open("a", encoding="utf-8") as index:
        names = [f"notebooks/{path.stem}" for path in paths]
        index.write(CONTENTS.format(caption="Lessons", pages="\n".join(names)))
        index.write(CONTENTS.format(caption="About", pages="\n".join(about)))


def _page(notebook, path, said, deck):
    """Return the notebook as its page: what is said below its title, solutions folded, widgets in words."""
    links = [f'<a href="{path.name}" download>Download the notebook</a>']
    if deck:
        links.append(f'<a href="../slides/{deck}">Slides</a>')
    notebook.cells.insert(1, new_markdown_cell(f'<p class="lesson">{said}<br>{" · ".join(links)}</p>'))
    notebook.metadata.setdefault("language_info", {"name": "python"})["pygments_lexer"] = "ipython3"
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            cell.metadata["tags"] = [*tags, "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": "Solution", "code_prompt_hide": "Solution"}
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = NOTEBOOK.sub(r"\1.html\2", data["text/html"])
            if data.pop(WIDGET, None) and "image/png" not in data:  # without a kernel its words stay
                data["text/html"] = f'<p class="widget">{html.escape(data["text/plain"])}</p>'
    return notebook


def _write(notebook, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def _copy(path, source, name=None):
    """Copy a file of the project to its place below `source`, and the files that a page links to.

    Returns the pages copied, as Sphinx names them. A link to what the site does not hold becomes its text.
    """
    name = name or str(path.relative_to(ROOT))
    target = source / name
    if target.exists():
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".md":
        shutil.copy(path, target)
        return []
    pages = [name.removesuffix(".md")]
    target.touch()  # copied once, however many pages link to it

    def followed(match):
        linked = (path.parent / match[3]).resolve()
        if linked.parent == ROOT / "slides":  # a deck is no page: the one that Marp made, if it did
            deck = f"slides/{linked.stem}.html"
            made = (source.parent / "extra" / deck).exists()
            return f'<a href="{"../" * name.count("/")}{deck}">{match[2]}</a>' if made else match[2]
        if linked.suffix == ".ipynb":
            inside = (source / linked.relative_to(ROOT)).exists()
        elif inside := linked.is_file():
            pages.extend(_copy(linked, source))
        return match[0] if inside else match[2]

    target.write_text(LINK.sub(followed, path.read_text(encoding="utf-8")), encoding="utf-8")
    return pages


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lessons", type=Path, default=ROOT / "notebooks")
    parser.add_argument("--no-execute", dest="execute", action="store_false")
    asked = parser.parse_args()
    lay_out(asked.folder, asked.lessons, execute=asked.execute)
