"""Sphinx: the site of docs/, which needs no network, neither to build nor to read.

Build it strictly with ``python -m sphinx -W --keep-going docs build/docs``.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import matattn  # noqa: E402

project = "matattn"
author = "The matattn developers"
release = version = matattn.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["examples", "images"]

myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are stored: CONTRIBUTING.md tells how they are renewed

html_theme = "furo"
html_title = "matattn"
html_static_path = ["_static"]
html_css_files = ["matattn.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "friendly", "native"

autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

# Pages that stand outside of docs/, and where the site has them.
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "matattn/attention.py": "reference/interfaces.rst",
    "kernels/periodic_attention/README.md": "reference/periodic_attention.md",
    "kernels/directional_sums/README.md": "reference/directional_sums.md",
    "kernels/low_rank_routing/README.md": "reference/low_rank_routing.md",
}
LINK = re.compile(r"\]\((?P<path>[\w./-]+\.\w+)(?P<anchor>#[\w-]*)?\)")


def on_the_site(text: str, written_in: Path, page: str) -> str:
    """Return the text with its links to our files as links from ``page`` to their pages."""

    def link(match: re.Match) -> str:
        target = Path(os.path.normpath(written_in / match["path"]))
        name = target.relative_to(ROOT).as_posix()
        if not target.is_relative_to(DOCS) and target.suffix != ".png":
            if name not in OUTSIDE:
                raise ExtensionError(f"{page}: {name} has no page: add one to OUTSIDE in conf.py")
            target = DOCS / OUTSIDE[name]
        return f"]({os.path.relpath(target, (DOCS / page).parent)}{match['anchor'] or ''})"

    return LINK.sub(link, text)


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Mend the links of a page that is about to be read."""
    source[0] = on_the_site(source[0], (DOCS / page).parent, page)


def read_included(app: Sphinx, file: Path, page: str, source: list[str]) -> None:
    """Mend the links of a file that a page includes."""
    page = app.env.docname  # MyST passes its last part only
    source[0] = on_the_site(source[0], (DOCS / file).resolve().parent, page)


def visit_math(translator: nodes.NodeVisitor, node: nodes.math) -> None:
    """Write a formula in a line as MathML, which browsers show without a program."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator: nodes.NodeVisitor, node: nodes.math_block) -> None:
    """Write a displayed formula as MathML; a long one scrolls in its box."""
    text = re.sub(r"^\s+", "", node.astext(), flags=re.M)
    for formula in text.split("\n\n"):
        translator.body.append(f'<div class="math">{tex2mathml(formula, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect what stands above."""
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
