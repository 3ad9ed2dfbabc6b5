"""Turn the decks into pages: `python slides/build.py FOLDER` writes HTML with speaker notes, PDF, an index.

Needs Node's `marp` (`make slides` installs it) and, for the PDF, Chromium. What it writes needs no network.
"""

import html
import os
import shutil
import subprocess
import sys
from pathlib import Path

import decks

FOLDER = Path(__file__).parent
MARP = FOLDER / "node_modules" / ".bin" / "marp"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Slides</title><style>
body {{ font: 18px/1.5 system-ui, "DejaVu Sans", sans-serif; max-width: 46em; margin: 2em auto; }}
body, td, th {{ padding: .4em .9em; text-align: left; }}
table {{ border-collapse: collapse; }} td, th {{ border-bottom: 1px solid #ccc; }}
</style></head><body><h1>Slides</h1>
<p>In a deck: <b>p</b> opens the presenter view, with notes and a clock; <b>f</b> fills the screen.</p>
<table><tr><th>Deck</th><th>Slides</th><th>Minutes</th><th></th></tr>
{rows}
<tr><th>All</th><th>{slides}</th><th>{minutes:g}</th><th></th></tr></table></body></html>
"""


def marp(*arguments):
    """Run marp-cli on arguments; raises SystemExit with what to do when something is missing."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    env = dict(os.environ)
    if browser:
        env.setdefault("CHROME_PATH", browser)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        env["CHROME_NO_SANDBOX"] = "1"  # Chromium's sandbox refuses root
    if not MARP.exists():
        sys.exit("marp is not installed: run `make slides`, which does it (Node.js ≥ 18 and npm are needed)")
    command = [
        str(MARP),
        "--theme-set",
        str(FOLDER / "fidle.css"),
        "--allow-local-files",
        "--no-stdin",
        *map(str, arguments),
    ]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        hint = "" if browser else "\nA PDF needs Chromium or Chrome: apt install chromium"
        sys.exit(f"marp failed:\n{done.stderr}{hint}")


def write_html(folder, paths=None):
    """Write NN_topic.html of each deck to `folder`, beside their figures."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(FOLDER / "figures", folder / "figures", dirs_exist_ok=True)
    for path in paths or [deck.path for deck in decks.all_decks()]:
        marp(path, "--output", folder / f"{path.stem}.html")


def write_pdf(folder):
    """Write NN_topic.pdf of each deck to `folder`, with the speaker's notes as annotations."""
    for deck in decks.all_decks():
        marp(deck.path, "--pdf", "--pdf-notes", "--output", folder / f"{deck.name}.pdf")


def write_index(folder):
    """Write index.html: every deck, with its minutes."""
    every = decks.all_decks()
    rows = "\n".join(
        f'<tr><td><a href="{deck.name}.html">{html.escape(deck.title)}</a></td><td>{len(deck.slides)}</td>'
        f'<td>{deck.minutes:g}</td><td><a href="{deck.name}.pdf">PDF</a></td></tr>'
        for deck in every
    )
    slides, minutes = sum(len(deck.slides) for deck in every), sum(deck.minutes for deck in every)
    (folder / "index.html").write_text(
        PAGE.format(rows=rows, slides=slides, minutes=minutes), encoding="utf-8"
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_html(folder)
    write_pdf(folder)
    write_index(folder)
    print(f"{folder}/index.html lists the decks")
