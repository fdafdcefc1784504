"""The page: one self-contained HTML file, from a template."""

import re
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hetmp.core.version import __version__
from hetmp.tools.report.content import Content
from hetmp.tools.report.svg import inline

PICTURES = "hetmp-pictures"
"""The name of the ``meta`` element that lists the files beside the page."""


def page(content: Content, drawings: Mapping[str, str]) -> str:
    """Return the HTML of the page.

    Args:
        content: the content of the report.
        drawings: the SVG of each picture, by name.
    """
    environment = Environment(
        loader=PackageLoader("hetmp.tools.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    environment.filters["marked"] = marked
    drawn = {
        picture.name: Markup(
            inline(drawings[picture.name], f"p{number}", picture.title, picture.words)
        )
        for number, picture in enumerate(content.pictures)
    }
    return environment.get_template("report.html.j2").render(
        report=content, drawn=drawn, pictures=PICTURES, version=__version__
    )


def pictures_beside(page: str) -> list[str]:
    """Return the file names of pictures in a page's ``meta`` element."""
    match = re.search(rf'<meta name="{PICTURES}" content="([\w.,-]*)">', page)
    return match[1].split(",") if match and match[1] else []


def marked(text: str) -> Markup:
    """Escape text for the page, with code elements for text in backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
