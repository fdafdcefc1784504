"""The site: ``make docs`` builds it into build/docs, from the same pages that a code host shows.

The pages link to each other and to files outside docs/ by relative paths, so the source folder is
the checkout itself, and what belongs to the site is listed here.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import hetmp  # noqa: E402

project = "hetmp"
author = "the hetmp developers"
copyright = author
version = release = hetmp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = [
    "docs/**",
    "data/README.md",
    "tests/cluster/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
# Not looked into: an environment has thousands of folders.
exclude_patterns = [".*", "build", "runs", "src", "shared"]

myst_heading_anchors = 4
suppress_warnings = ["myst.strikethrough"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"

# Every reference leads somewhere, but for those to other packages, whose indexes are elsewhere.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|mpi4py|MPI|pydantic|annotated_types)\b.*"),
    (r"py:.*", r"(collections|fractions|pathlib|types|typing)\b.*"),
    # What has no entry of its own in docs/api.md.
    (r"py:.*", r"hetmp\.\w+\.\w+(\.\w+)*"),
]

html_theme = "furo"
html_title = f"hetmp {release}"
html_extra_path = ["site"]  # an index.html that leads to the first page
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {
        "font-stack": "system-ui, sans-serif",
        "font-stack--monospace": "ui-monospace, Menlo, Consolas, monospace",
    },
}
