"""Settings of the documentation site. `make docs` builds it into build/site; nothing is fetched from the network."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from generated import PAGES, linked

project = "neuronlake"
author = "the neuronlake authors"
project_copyright = author
version = release = installed_version("neuronlake")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["Thumbs.db"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3  # so that page.md#heading is checked, too
highlight_language = "none"
smartquotes_action = "De"  # dashes and ellipses; quotation marks as they were typed

napoleon_google_docstring = False
napoleon_use_param = False  # types are prose, such as "float32 (rows, neurons)", not names to link
napoleon_use_rtype = False
autodoc_typehints = "none"  # the signature has them, the text says more
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False
maximum_signature_line_length = 100

html_theme = "pydata_sphinx_theme"
html_title = "neuronlake"
html_static_path = ["static"]
html_css_files = ["neuronlake.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {
    "show_prev_next": True,
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars: dict[str, list[str]] = {"index": [], "tutorial": [], "peers": [], "changelog": []}


def _fill(_app: Any, page: str, source: list[str]) -> None:
    """Put what is made from the code in the place of the page's marker."""
    if page in PAGES:
        source[0] = source[0].replace("<!-- generated -->", PAGES[page]())


def _link(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = linked(lines)
    if what in ("attribute", "property") and lines:  # napoleon takes what stands before a colon for the name of a type
        lines[0] = lines[0].replace(": ", " – ")


def setup(app: Any) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _link, priority=100)  # before napoleon
