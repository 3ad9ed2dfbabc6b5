"""Sphinx's settings for the book. Nothing that it writes needs the network."""

import html
import re
import tomllib
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from ipython_pygments_lexers import IPython3Lexer
from pygments.lexer import bygroups, using
from pygments.lexers import Python3Lexer
from pygments.token import Operator, Text
from sphinx.util.logging import getLogger

logger = getLogger(__name__)

ROOT = Path(__file__).parent.parent
project = "Moving up a gear"
version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
_holder = re.search(r"Copyright \(c\) (.+)", (ROOT / "LICENSE-LESSONS").read_text())[1]
copyright = f"{_holder}. Lessons: CC BY 4.0. Code: MIT"

extensions = ["myst_nb"]
nb_execution_mode = "off"  # lessons.py has run them
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False
suppress_warnings = ["misc.highlighting_failure"]  # the words of %%ranks below a traceback are no Python
smartquotes = False
language = "en"

html_theme = "furo"
html_title = project
html_math_renderer = "mathml"
html_static_path = [str(Path(__file__).parent / "book.css")]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses to do from a file
pygments_dark_style = "github-dark"


class RanksLexer(IPython3Lexer):
    """IPython whose `%%ranks` cells are Python below their first line."""

    tokens = IPython3Lexer.tokens | {
        "root": [
            (r"(?s)(\s*)(%%ranks)([^\n]*\n)(.*)", bygroups(Text, Operator, Text, using(Python3Lexer))),
            *IPython3Lexer.tokens["root"],
        ]
    }


def write_mathml(page, node, block=False):
    """Write a formula as MathML, which browsers draw by themselves."""
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        formula = f"<code>{html.escape(node.astext())}</code>"
        logger.warning("docutils has no MathML for %r: %s", node.astext(), error, location=node)
    page.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise SkipNode


def setup(app):
    app.add_lexer("ipython3", RanksLexer)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(write_mathml, None),
        block_renderers=(lambda page, node: write_mathml(page, node, block=True), None),
    )
    app.connect("config-inited", lambda app, config: config.html_extra_path.append(f"{app.srcdir}/../extra"))
